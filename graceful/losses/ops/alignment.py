"""Embeddings of different length: the first components of the new one stand for the old one. Runs in workers.

Order matters: slice or pad first, normalise afterwards. Linear old heads saw raw embeddings, so nothing is normalised
for them; cosine heads normalise by themselves; prototypes and regression use `normalise`.

Source: Shen et al., Towards backward-compatible representation learning (CVPR 2020).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from graceful.losses.ops.reduction import accurate

ZERO_NORM = 1e-12
"""A vector shorter than this has no direction: it is normalised to zeros, so that its cosine with anything is 0."""


def align(embedding: Tensor, *, size: int) -> Tensor:
    """Map new embeddings [B, d_new] -> [B, size]: the first `size` components, or zeros appended."""
    width = embedding.shape[-1]
    if width == size:
        return embedding
    return embedding[..., :size] if width > size else F.pad(embedding, (0, size - width))


def normalise(vectors: Tensor) -> Tensor:
    """Scale vectors [..., d] to length 1, fp32 at least; zero vectors stay zero and get zero gradient."""
    vectors = accurate(vectors)
    safe = torch.where(has_direction(vectors).unsqueeze(-1), vectors, 1.0)
    unit = safe / torch.linalg.vector_norm(safe, dim=-1, keepdim=True)
    return torch.where(has_direction(vectors).unsqueeze(-1), unit, 0.0)


@torch.no_grad()
def has_direction(vectors: Tensor) -> Tensor:
    """Return [...] bool: which vectors [..., d] are long enough to have a direction."""
    lengths: Tensor = torch.linalg.vector_norm(accurate(vectors), dim=-1)
    return lengths > ZERO_NORM
