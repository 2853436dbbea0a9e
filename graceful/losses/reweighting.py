"""Naive reweighting: samples the old model got right count more in the task loss. Runs in workers.

    L = mean_i of (1 + weight * right_i) / mean(1 + weight * right) * CE_i

An honest baseline: it does not lower negative flips reliably, and raised them on one of the two published data sets.

Source: Yan et al., Positive-congruent training (CVPR 2021), its naive baseline; the normalisation is ours.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def reweighting(old_correct: Tensor, *, weight: float, mean_share: float) -> Tensor:
    """Weights of the task loss, mean 1 over the training ids.

    Args:
        old_correct: [B] in [0, 1]: share of the predecessors that got the sample right; unknown samples are 0.
        weight: Additional weight of a sample that all of them got right, >= 0.
        mean_share: Mean of `old_correct` over all training ids, in [0, 1].

    Returns:
        [B] fp32.
    """
    return (1.0 + weight * old_correct.float()) / (1.0 + weight * mean_share)
