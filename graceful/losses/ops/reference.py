"""Reference distillation: also learn from unconstrained runs of the same recipe. Runs in workers.

    D = tau^2 * KL(softmax(z_ref / tau) || softmax(z_new / tau)),   z_ref = weighted mean of the runs' logits

The runs share the new version's classes, so no label space is mapped. They pay the accuracy that the old model costs.

Source: ours; relatives are the double source of model-growth distillation and the ensemble reference of ELODI.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from graceful.losses.ops.divergence import kl_divergence
from graceful.losses.ops.reduction import accurate


def mean_logits(runs: Sequence[Tensor], *, weights: Sequence[float] | None = None) -> Tensor:
    """Return the weighted mean of the logits of several runs; every run counts in numerator and denominator.

    Args:
        runs: At least one tensor [N, C].
        weights: One non-negative number per run with a positive sum; None: the plain mean.

    Returns:
        [N, C] fp32 (fp64 for fp64).

    Raises:
        ValueError: No runs, or weights that do not fit.
    """
    if not runs:
        raise ValueError("mean_logits needs at least one run, got none")
    shares = [1.0] * len(runs) if weights is None else list(weights)
    if len(shares) != len(runs) or min(shares) < 0.0 or sum(shares) <= 0.0:
        raise ValueError(f"weights must be {len(runs)} non-negative numbers with a positive sum, got {shares}")
    mean = torch.zeros_like(accurate(runs[0]))
    for run, share in zip(runs, shares, strict=True):
        mean += (share / sum(shares)) * accurate(run)
    return mean


def reference_divergence(new: Tensor, reference: Tensor, *, temperature: float) -> Tensor:
    """Return the divergence from the reference, one value per sample.

    Args:
        new: [B, C] logits.
        reference: [B, C] mean logits, constant.
        temperature: tau > 0.

    Returns:
        [B], fp32 whatever the inputs (fp64 for fp64).
    """
    return kl_divergence(new, reference, temperature=temperature)
