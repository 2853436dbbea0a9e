"""Batches: one tensor, or mappings of tensors, nested as a network wants them. Driver and workers.

graceful moves, slices and counts batches with these functions and never looks at what their tensors mean. The first
axis of every tensor is the sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from graceful.errors import SpecError

Batch = Tensor | Mapping[str, Any]
"""Tensors of any dtype and device, [B, ...] each; the values of a mapping are batches themselves."""


def leaves(batch: Batch, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a batch with their paths, e.g. `text.input_ids`; a batch that is one tensor has path ''."""
    if isinstance(batch, Tensor):
        yield path, batch
        return
    for name, value in batch.items():
        yield from leaves(value, f"{path}.{name}" if path else name)


def apply(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    """Return a batch of the same structure with each tensor changed."""
    if isinstance(batch, Tensor):
        return change(batch)
    return {name: apply(value, change) for name, value in batch.items()}


def to_device(batch: Batch, device: torch.device | str) -> Batch:
    """Return the batch on a device; copies to a GPU go through pinned memory, and its streams alone wait for them."""
    if torch.device(device).type != "cuda":
        return apply(batch, lambda tensor: tensor.to(device))
    pinned = apply(batch, lambda tensor: tensor if tensor.is_cuda else tensor.pin_memory())
    return apply(pinned, lambda tensor: tensor.to(device, non_blocking=True))


def take(batch: Batch, rows: Any) -> Batch:
    """Return some samples of a batch; `rows` indexes the first axis (slice, bool or integer tensor)."""
    return apply(batch, lambda tensor: tensor[rows])


def size(batch: Batch) -> int:
    """Return the number of samples of a batch that `require_batch` has accepted."""
    return len(next(tensor for _, tensor in leaves(batch)))


def shape(batch: Batch) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Return the shape of one sample: path and shape without the first axis of each tensor."""
    return tuple((path, tuple(tensor.shape[1:])) for path, tensor in leaves(batch))


def finite_rows(batch: Batch) -> Tensor:
    """Return for each sample whether all of its floating-point numbers are finite, [B] bool."""
    rows = [
        tensor.reshape(len(tensor), -1).isfinite().all(1)
        for _, tensor in leaves(batch)
        if tensor.is_floating_point() or tensor.is_complex()
    ]
    return torch.stack(rows).all(0) if rows else torch.ones(size(batch), dtype=torch.bool)


def described(batch: Batch) -> str:
    """Describe a batch for a message: samples, shapes, types."""
    parts = []
    for path, tensor in leaves(batch):
        text = f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
        parts.append(f"{path} {text}" if path else text)
    count = size(batch)
    return f"{'one sample' if count == 1 else f'{count} samples'}, {', '.join(parts)}"


def require_batch(value: object, *, rows: int | None, who: str) -> None:
    """Refuse what is not a batch.

    Args:
        value: What a learner's `collate`, or a task's `transform`, returned.
        rows: Samples that it was made of; None: not known.
        who: The function, for the message.

    Raises:
        SpecError: It is neither a tensor nor a mapping, a tensor of it has no first axis, or the tensors hold different
            numbers of samples; with the path of the first culprit.
    """
    _require_tensors(value, who=who, path="")
    counts = {path: len(tensor) for path, tensor in leaves(value)}  # type: ignore[arg-type]
    if not counts:
        raise SpecError(f"{who} returned an empty mapping; return at least one tensor [B, ...]")
    wanted = next(iter(counts.values())) if rows is None else rows
    for path, count in counts.items():
        if count != wanted:
            what = f"the tensor {path}" if path else "a tensor"
            raise SpecError(f"{who} made {what} of {count} rows for {wanted} samples; return one row for each sample")


def _require_tensors(value: object, *, who: str, path: str) -> None:
    at = f" in {path}" if path else ""
    if isinstance(value, Mapping):
        for name, part in value.items():
            if not isinstance(name, str):
                raise SpecError(f"{who} returned the key {name!r}{at}; keys of a batch must be strings")
            _require_tensors(part, who=who, path=f"{path}.{name}" if path else name)
        return
    if not isinstance(value, Tensor):
        raise SpecError(
            f"{who} returned a {type(value).__name__}{at}; return a torch.Tensor, or a mapping of names to tensors"
        )
    if value.dim() == 0:
        raise SpecError(f"{who} returned a tensor without axes{at}; the first axis must be the sample")
