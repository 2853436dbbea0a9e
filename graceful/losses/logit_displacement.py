"""Logit displacement (LDI): logits may move by a margin for free, further moves cost. Runs in workers.

    D = mean over c in S of max(0, |z_new,c - z_old,c| - margin)^power

S is all classes or the k classes with the largest old logits, without the label if so asked.

Source: Zhao et al., ELODI: Ensemble logit difference inhibition (2022); here the reference is the old model.
"""

from __future__ import annotations

import torch
from torch import Tensor

from graceful.losses.reduction import accurate


def logit_displacement(
    new: Tensor,
    old: Tensor,
    *,
    margin: float,
    power: float = 2.0,
    top_k: int | None = None,
    exclude_labels: Tensor | None = None,
) -> Tensor:
    """Mean displacement beyond the margin.

    Args:
        new: [B, C] logits.
        old: [B, C] logits, constant.
        margin: Displacement that is free, >= 0.
        power: >= 1.
        top_k: Size of S, chosen by old logits along the class axis after the label has left; None or >= C: all.
        exclude_labels: [B] int64 labels to leave out of S (-1: nothing to leave out); None: labels stay in.

    Returns:
        [B], fp32 whatever the inputs (fp64 for fp64). S empty (C = 0, or C = 1 without its label): 0.
    """
    new, old = accurate(new), accurate(old).detach()
    if new.shape[-1] == 0:
        return new.sum(-1)
    chosen = _chosen(old, top_k=top_k, exclude_labels=exclude_labels)
    excess = ((new - old).abs() - margin).clamp(min=0.0).pow(power)
    if chosen is None:
        return excess.mean(-1)
    return torch.where(chosen, excess, 0.0).sum(-1) / chosen.sum(-1).clamp(min=1)


def _chosen(old: Tensor, *, top_k: int | None, exclude_labels: Tensor | None) -> Tensor | None:
    """[B, C] bool, which classes are in S; None: all of them."""
    classes = old.shape[-1]
    allowed = None
    if exclude_labels is not None:
        columns = torch.arange(classes, device=old.device)
        allowed = columns != exclude_labels.unsqueeze(-1)
        old = old.masked_fill(~allowed, -torch.inf)
    if top_k is None or top_k >= classes:
        return allowed
    top = torch.zeros_like(old, dtype=torch.bool).scatter(-1, old.topk(top_k, dim=-1).indices, True)
    return top if allowed is None else top & allowed
