"""Mean directions of classes in an embedding space. Runs in workers.

Source: Shen et al., Towards backward-compatible representation learning (CVPR 2020); the shrinkage is ours.
"""

from __future__ import annotations

import torch
from torch import Tensor

from graceful.losses.ops.alignment import normalise


@torch.no_grad()
def prototypes(embeddings: Tensor, labels: Tensor, number_of_classes: int, minimum: int = 5) -> tuple[Tensor, Tensor]:
    """Return the mean directions of classes in the old embedding space.

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
