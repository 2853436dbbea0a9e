"""Influence loss: the frozen old head must classify new embeddings. Runs in workers; prototypes in the driver.

    D = CE( [ h_old(P f_new) | s * cos(P f_new, w_c) for unseen c ], label )          P: align

Classes the old head does not know get prototypes `w_c = normalise(mean of normalise(f_old(x)) over images of c)`. No
forward pass of the old backbone is needed while training. A linear old head sees raw embeddings with its bias, a
cosine head normalises by itself: the head is called as it was trained.

Source: Shen et al., Towards backward-compatible representation learning (CVPR 2020); cosine logits for the
synthesised classes and the shrinkage are ours.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from graceful.losses.alignment import normalise
from graceful.losses.reduction import accurate, full_precision


def influence(
    embedding: Tensor,
    labels: Tensor,
    *,
    head: Callable[[Tensor], Tensor] | None,
    prototypes: Tensor | None = None,
    scale: float = 16.0,
) -> Tensor:
    """Cross-entropy of the old classifier on aligned new embeddings.

    Args:
        embedding: [B, d_old] aligned new embeddings, not normalised.
        labels: [B] int64, index into the old head's classes followed by the prototypes; -1: neither knows the class.
        head: Frozen old head, [B, d_old] -> [B, C_old]; None: prototypes alone.
        prototypes: [U, d_old] of unit length; None: the old head alone.
        scale: Scale s of the prototypes' cosine logits.

    Returns:
        [B], fp32 whatever the inputs (fp64 for fp64); 0 where the label is -1, or where there is no classifier at all.
    """
    embedding = accurate(embedding)
    logits = []
    with full_precision(embedding.device):
        if head is not None:
            logits.append(accurate(head(embedding)))
        if prototypes is not None and len(prototypes):
            logits.append(scale * normalise(embedding) @ prototypes.to(embedding).T)
    if not logits:
        return 0.0 * embedding.sum(-1)
    losses = F.cross_entropy(torch.cat(logits, -1), labels.clamp(min=0), reduction="none")
    return torch.where(labels >= 0, losses, 0.0)


@torch.no_grad()
def prototypes(embeddings: Tensor, labels: Tensor, number_of_classes: int, minimum: int = 5) -> tuple[Tensor, Tensor]:
    """Mean directions of classes in the old embedding space.

    Args:
        embeddings: [N, d_old] old embeddings of training images, clean view, not normalised.
        labels: [N] int64 new labels.
        number_of_classes: C.
        minimum: A class with n < minimum images is shrunk towards the mean of all images: its own mean counts
            n / (n + minimum). The caller flags these classes by their counts.

    Returns:
        Prototypes [C, d_old] of unit length, NaN where a class has no images or its mean has no direction; counts [C].
    """
    directions = normalise(embeddings)
    counts = torch.bincount(labels, minlength=number_of_classes)
    sums = torch.zeros(number_of_classes, directions.shape[1], dtype=directions.dtype, device=directions.device)
    sums.index_add_(0, labels, directions)
    means = sums / counts.clamp(min=1).unsqueeze(1)
    share = torch.where(counts < minimum, counts / (counts + minimum), 1.0).to(means).unsqueeze(1)
    units = normalise(share * means + (1.0 - share) * directions.mean(0))
    empty = (counts == 0) | (units == 0.0).all(1)
    return units.masked_fill(empty.unsqueeze(1), torch.nan), counts
