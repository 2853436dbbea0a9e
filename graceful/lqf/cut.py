"""Outputs of the blocks below everything that has a delta, kept once and replayed in every pass. Workers.

Of a list of blocks that run one after the other (layers of a transformer, stages of a convolutional network), those
below the first with a delta give the same outputs in every pass. A batch then carries the outputs of the last of them,
and the blocks below are skipped. Networks in which something else reads what a skipped block made are recognised,
because outputs and derivatives with and without the cut are compared on a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from graceful.learners.batch import Batch, leaves, size
from graceful.lqf.tangent import Run, Tangent
from graceful.models.base import CODE_FAULTS, Outputs

_TOLERANCE = 1e-4


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Blocks that are skipped, and the one whose outputs are replayed.

    Attributes:
        network: The network.
        run: Network and batch -> outputs, without the cut.
        skipped: Blocks below.
        kept: The block whose outputs a batch carries.
        structure: The structure of these outputs, as `torch.utils` flattens them; tensors are None in it.
    """

    network: nn.Module
    run: Run
    skipped: tuple[nn.Module, ...]
    kept: nn.Module
    structure: tuple[Any, tuple[Any, ...]]

    def carrying(self, batch: Batch) -> dict[str, Any]:
        """Return a batch with the outputs of the kept block beside it."""
        values, _ = _outputs_of(self.kept, self.network, self.run, batch)
        return {"batch": batch, "kept": {str(index): value for index, value in enumerate(values)}}

    def replay(self, network: nn.Module, batch: Mapping[str, Any]) -> Outputs:
        """Return the outputs of a batch that `carrying` made; in place of `run`."""
        spec, constants = self.structure
        tensors = iter(batch["kept"].values())
        flat = [next(tensors) if constant is None else constant[0] for constant in constants]
        with _replaced(self.skipped, self.kept, pytree.tree_unflatten(flat, spec)):
            return self.run(network, batch["batch"])


def find(network: nn.Module, run: Run, names: Sequence[str], batch: Batch) -> Cut | None:
    """Return the cut that skips most, or None where there is none, or the network does not bear one.

    Args:
        network: At w0, in eval mode.
        run: Network and batch -> outputs.
        names: Parameters with a delta.
        batch: A few samples.
    """
    candidates = sorted(_candidates(network, names), key=lambda blocks: -sum(map(_parameters, blocks)))
    for blocks in candidates[:1]:
        try:
            values, structure = _outputs_of(blocks[-1], network, run, batch)
            if not values or any(len(value) != size(batch) for value in values):
                return None
            cut = Cut(network=network, run=run, skipped=tuple(blocks[:-1]), kept=blocks[-1], structure=structure)
            return cut if _same(cut, names, batch) else None
        except CODE_FAULTS:
            return None
    return None


class Carried(Sequence[Batch]):
    """Batches with the outputs of the kept block, made when they are first read.

    Args:
        cut: The cut.
        batches: Without them.
    """

    def __init__(self, cut: Cut, batches: Sequence[Batch]) -> None:
        self._cut, self._batches = cut, batches
        self._made: dict[int, Batch] = {}

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> Batch:  # type: ignore[override]
        if index not in self._made:
            if index >= len(self._batches):
                raise IndexError(index)
            self._made[index] = self._cut.carrying(self._batches[index])
        return self._made[index]

    def __iter__(self) -> Iterator[Batch]:
        return (self[index] for index in range(len(self)))


def bytes_per_sample(cut: Cut, batch: Batch) -> int:
    """Return how many bytes the kept outputs of a sample take."""
    carried = cut.carrying(batch)
    return sum(tensor.nbytes for _, tensor in leaves(carried["kept"])) // max(size(batch), 1)


def _candidates(network: nn.Module, names: Sequence[str]) -> Iterator[list[nn.Module]]:
    """Yield the blocks of each list of modules below its first block with a delta, or all where none has one."""
    for prefix, module in network.named_modules():
        if not isinstance(module, nn.ModuleList | nn.Sequential) or not prefix:
            continue
        blocks = list(module)
        moved = [i for i in range(len(blocks)) if any(name.startswith(f"{prefix}.{i}.") for name in names)]
        below = blocks[: min(moved, default=len(blocks))]
        if below and sum(map(_parameters, below)):
            yield below


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _outputs_of(
    block: nn.Module, network: nn.Module, run: Run, batch: Batch
) -> tuple[list[Tensor], tuple[Any, tuple[Any, ...]]]:
    """Return the tensors that a block makes of a batch, and the structure they are in."""
    seen: list[Any] = []
    handle = block.register_forward_hook(lambda _module, _inputs, outputs: seen.append(outputs))
    try:
        with torch.no_grad():
            run(network, batch)
    finally:
        handle.remove()
    if len(seen) != 1:
        return [], (None, ())
    flat, spec = pytree.tree_flatten(seen[0])
    tensors = [value.detach() for value in flat if isinstance(value, Tensor)]
    return tensors, (spec, tuple(None if isinstance(value, Tensor) else (value,) for value in flat))


@contextmanager
def _replaced(skipped: Sequence[nn.Module], kept: nn.Module, outputs: Any) -> Iterator[None]:
    def first(*arguments: Any, **named: Any) -> Any:
        return arguments[0] if arguments else next(iter(named.values()))

    try:
        for block in skipped:
            block.forward = first
        kept.forward = lambda *_arguments, **_named: outputs
        yield
    finally:
        for block in (*skipped, kept):
            block.__dict__.pop("forward", None)


def _same(cut: Cut, names: Sequence[str], batch: Batch) -> bool:
    """Return whether outputs and derivatives are those of the network without the cut."""
    whole, replayed = Tangent(cut.network, cut.run, names), Tangent(cut.network, cut.replay, names)
    carried = cut.carrying(batch)
    expected, actual = whole.outputs(batch).logits, replayed.outputs(carried).logits
    if not torch.allclose(expected, actual, rtol=_TOLERANCE, atol=_TOLERANCE * float(expected.abs().max())):
        return False
    cotangent = torch.ones_like(expected) * torch.linspace(-1.0, 1.0, expected.shape[1]).to(expected)
    first, second = whole.pull(batch, cotangent), replayed.pull(carried, cotangent)
    largest = max(float(first[name].abs().max()) for name in names)  # some have a derivative of zero and rounding
    return all(torch.allclose(first[name], second[name], rtol=_TOLERANCE, atol=_TOLERANCE * largest) for name in names)
