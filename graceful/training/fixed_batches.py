"""Training samples in the order of their ids, in batches that are always the same, and their digest. Runs in workers.

Whatever order the data come in, these batches hold the same samples in the same places, so sums over them have the same
bits. Rank r of n takes the batches r, r + n, ...
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed

from graceful.errors import SpecError
from graceful.learners import Batch, Learner
from graceful.learners.batch import leaves, to_device
from graceful.tasks.base import Samples
from graceful.tasks.portions import portion

KEPT = 512 * 2**20
"""Bytes of batches that stay in memory; larger data are read in every pass."""
Positions = NDArray[np.int64]


class FixedBatches(Sequence[Batch]):
    """Clean views of some samples.

    Args:
        samples: The split.
        learner: Makes batches.
        positions: The positions of each batch.
        device: Where batches go.
    """

    def __init__(
        self, samples: Samples, learner: Learner, positions: Sequence[Positions], *, device: torch.device
    ) -> None:
        self.samples, self.positions = samples, tuple(positions)
        self._learner, self._device = learner, device
        self._kept: dict[int, Batch] = {}
        self._room = KEPT

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> Batch:  # type: ignore[override]
        if index in self._kept:
            return self._kept[index]
        batch = self._learner.collate(self.samples.read(self.positions[index]), None)
        batch = to_device(batch, self._device)
        size = sum(tensor.nbytes for _, tensor in leaves(batch))
        if size <= self._room:
            self._kept[index] = batch
            self._room -= size
        return batch

    def __iter__(self) -> Iterator[Batch]:
        return (self[index] for index in range(len(self)))

    @property
    def sizes(self) -> list[int]:
        """Return the samples of each batch."""
        return [len(part) for part in self.positions]

    @property
    def rows(self) -> Positions:
        """Return the positions of all samples, in order of the batches."""
        return np.concatenate(self.positions) if self.positions else np.zeros(0, dtype=np.int64)

    def of_rank(self, rank: int, world_size: int) -> FixedBatches:
        """Return the batches of one rank."""
        return FixedBatches(self.samples, self._learner, self.positions[rank::world_size], device=self._device)

    def some(self, count: int) -> FixedBatches:
        """Return the batches of `count` samples, chosen by the digests of their ids."""
        rows = self.rows
        digests = [hashlib.sha256(str(name).encode()).digest() for name in self.samples.ids[rows]]
        chosen = np.sort(np.asarray(sorted(range(len(rows)), key=lambda index: digests[index])[:count], dtype=np.int64))
        return FixedBatches(
            self.samples, self._learner, _split(rows[chosen], max(self.sizes, default=1)), device=self._device
        )


def fixed_batches(samples: Samples, learner: Learner, *, size: int, device: torch.device) -> FixedBatches:
    """Return all samples of a split in batches of at most `size`, in the order of their ids.

    Raises:
        SpecError: The samples are a stream, which has no order of its own.
    """
    if samples.stream is not None:
        raise SpecError(
            "train.method: lqf reads all training samples in every pass, which a stream cannot; give a table"
        )
    size = portion(samples, learner.collate, most=size)
    order = np.argsort(np.asarray(samples.ids[np.arange(len(samples), dtype=np.int64)], dtype=np.str_), kind="stable")
    return FixedBatches(samples, learner, _split(order.astype(np.int64), size), device=device)


def data_digest(
    batches: FixedBatches, weights: NDArray[np.floating] | None, *, rank: int, world_size: int, labels: bool = True
) -> str:
    """Return the SHA-256 of ids, labels, weights and inputs, whatever order the data had; every rank must ask.

    Args:
        batches: The batches of all ranks; this one reads its own.
        weights: [N] of the samples in order of the batches; None: all the same.
        rank, world_size: This rank, and how many there are.
        labels: false: inputs alone.
    """
    digests = torch.zeros(len(batches), 32, dtype=torch.int64)
    for index in range(rank, len(batches), world_size):
        total = hashlib.sha256()
        for path, tensor in leaves(batches[index]):
            total.update(f"{path} {tensor.dtype} {list(tensor.shape)}".encode())
            total.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        digests[index] = torch.frombuffer(bytearray(total.digest()), dtype=torch.uint8).long()
    if world_size > 1:
        distributed.all_reduce(digests)
    samples, rows = batches.samples, batches.rows
    whole = hashlib.sha256(digests.to(torch.uint8).numpy().tobytes())
    for name, label in zip(samples.ids[rows], samples.labels[rows].tolist(), strict=True) if labels else ():
        whole.update(f"{name}\x00{samples.classes[label]}\x00".encode())
    if weights is not None:
        whole.update(np.asarray(weights, dtype=np.float64).tobytes())
    return whole.hexdigest()


def _split(order: Positions, size: int) -> list[Positions]:
    return [order[start : start + size] for start in range(0, len(order), size)]
