"""From one value per sample to one number per batch, and the precision losses are computed in. Runs in workers."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor


def accurate(values: Tensor) -> Tensor:
    """Bring values to the precision that losses are computed in: fp32 at least, fp64 stays fp64."""
    return values if values.dtype == torch.float64 else values.float()


def full_precision(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Switch autocast off inside, on devices that have it, so that products of matrices stay fp32."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()


def weighted_mean(values: Tensor, *, weights: Tensor | None = None, participates: Tensor | None = None) -> Tensor:
    """Return the mean of weighted values over the whole batch: `sum(F_i D_i over participants) / B`.

    Dividing by B and not by the number of participants keeps the strength of a constraint proportional to its share of
    the batch. Without participating samples, or with B = 0: zero, still connected to the graph of `values`.

    Args:
        values: [B] D, one value per sample.
        weights: [B] F; None: all ones. [B, 1] is refused: it would broadcast to [B, B] and average the focus away.
        participates: [B] bool; None: everybody. The values of the others are not read, but they must be finite if a
            gradient is wanted, because zero times NaN is NaN on the way back.

    Returns:
        Scalar in the precision of `values`.

    Raises:
        ValueError: A tensor is not [B].
    """
    if values.dim() != 1:
        raise ValueError(f"values must have shape [B], got {list(values.shape)}; reduce the class axis first")
    for name, tensor in (("weights", weights), ("participates", participates)):
        if tensor is not None and tensor.shape != values.shape:
            raise ValueError(
                f"{name} must have shape {list(values.shape)} like values, got {list(tensor.shape)}; use squeeze(-1)"
            )
    weighted = values if weights is None else weights * values
    if participates is not None:
        weighted = torch.where(participates, weighted, torch.zeros_like(weighted))
    return weighted.sum() / max(len(values), 1)
