"""J of many samples as one operator on flat vectors: batch by batch, or as a matrix. Workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from graceful.learners.batch import Batch
from graceful.lqf.tangent import Piece, Tangent


class Dense:
    """J as a matrix [M, P]."""

    def __init__(self, rows: Tensor) -> None:
        self._rows = rows

    def push(self, delta: Tensor) -> Tensor:
        """Implement `Derivative.push`."""
        return (self._rows @ delta.to(self._rows)).to(delta)

    def pull(self, values: Tensor) -> Tensor:
        """Implement `Derivative.pull`."""
        return (self._rows.T @ values.to(self._rows)).to(values)


class Batched:
    """J through the network, batch by batch.

    Args:
        tangent: The network.
        batches: The batches of this worker, always in the same order.
        classes: C.
        sizes: Samples of each batch.
    """

    def __init__(self, tangent: Tangent, batches: Sequence[Batch], *, sizes: Sequence[int], classes: int) -> None:
        self.tangent, self.batches, self._sizes, self._classes = tangent, batches, sizes, classes

    def push(self, delta: Tensor) -> Tensor:
        """Implement `Derivative.push`."""
        named = unflat(delta, self.tangent.start)
        parts = [self.tangent.push(batch, named)[1].logits.reshape(-1) for batch in self.batches]
        return torch.cat(parts).to(delta) if parts else delta.new_zeros(0)

    def pull(self, values: Tensor) -> Tensor:
        """Implement `Derivative.pull`."""
        total = values.new_zeros(sum(tensor.numel() for tensor in self.tangent.start.values()))
        first = next(iter(self.tangent.start.values()))
        for batch, part in zip(
            self.batches, torch.split(values, [n * self._classes for n in self._sizes]), strict=True
        ):
            cotangent = part.reshape(-1, self._classes).to(first)
            total += flat(self.tangent.pull(batch, cotangent), self.tangent.start).to(total)
        return total

    def kernel(self, *, elements: int | None = None) -> Tensor:
        """Return K = J J', [M, M] float64; J is made piece by piece and never kept whole.

        Args:
            elements: Of a row of J at once; None: all.
        """
        whole = sum(tensor.numel() for tensor in self.tangent.start.values())
        total: Tensor | None = None
        for group in grouped(self.tangent.start, elements or whole):
            matrix = torch.cat([self.tangent.rows(batch, group).flatten(0, 1) for batch in self.batches])
            part = (matrix @ matrix.T).double()
            total = part if total is None else total.add_(part)
        assert total is not None
        return total


def grouped(tensors: Mapping[str, Tensor], elements: int) -> list[list[Piece]]:
    """Return all of the tensors as groups of pieces, each of at most so many elements."""
    groups: list[list[Piece]] = [[]]
    room = elements
    for name, tensor in tensors.items():
        start = 0
        while start < tensor.numel():
            if room == 0:
                groups.append([])
                room = elements
            stop = min(start + room, tensor.numel())
            groups[-1].append(Piece(name, start, stop))
            room -= stop - start
            start = stop
    return groups


def flat(tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> Tensor:
    """Return tensors by name as one vector, in the order of `like`."""
    return torch.cat([tensors[name].reshape(-1) for name in like])


def unflat(vector: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a vector as tensors with names, shapes and type of `like`."""
    parts = torch.split(vector, [tensor.numel() for tensor in like.values()])
    return {
        name: part.reshape(tensor.shape).to(tensor) for (name, tensor), part in zip(like.items(), parts, strict=True)
    }
