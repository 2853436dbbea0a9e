"""Embedding regression: pull each new embedding to the old one of the same sample. Runs in workers.

    cosine:  D = 1 - cos(P f_new, f_old)
    l2:      D = || n(P f_new) - n(f_old) ||^2 = 2 (1 - cos)          n: normalise, P: align

Needs no labels, so it also covers classes the old version never saw. A vector of zero length has cosine 0 with
anything: D = 1 or 2, no gradient.

Source: feature regression baselines of Shen et al., Towards backward-compatible representation learning (CVPR 2020).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from graceful.losses.alignment import align, has_direction, normalise


def embedding_regression(new: Tensor, old: Tensor, *, distance: Literal["cosine", "l2"] = "cosine") -> Tensor:
    """Distance of the aligned, normalised embeddings.

    Args:
        new: [B, d_new] embeddings, not normalised.
        old: [B, d_old] embeddings, constant.
        distance: See above.

    Returns:
        [B], fp32 whatever the inputs (fp64 for fp64), in [0, 2] or [0, 4].
    """
    aligned, old = align(new, size=old.shape[-1]), old.detach()
    squared = (normalise(aligned) - normalise(old)).square().sum(-1)
    # Half the squared distance of unit vectors is 1 - cos without its cancellation near 0.
    squared = torch.where(has_direction(aligned) & has_direction(old), squared, 2.0)
    return squared if distance == "l2" else 0.5 * squared
