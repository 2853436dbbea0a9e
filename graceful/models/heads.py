"""Classifiers on top of an embedding: what influence losses freeze and `classify` calls. Drivers and workers."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LinearHead(nn.Linear):
    """Weights and bias: embedding [B, d] -> logits [B, C]."""

    def __init__(self, embedding_size: int, classes: int) -> None:
        super().__init__(embedding_size, classes)


class CosineHead(nn.Module):
    """Cosine of embedding and class direction, times a scale: trains the angles that retrieval compares.

    Normalises both sides itself, so `embed` may return embeddings of any length. An all-zero embedding has no
    direction and gets all-zero logits.

    Args:
        embedding_size: d.
        classes: C.
        scale: Factor on the cosines, above 0; it is part of the spec, not of the weights.
    """

    def __init__(self, embedding_size: int, classes: int, *, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(torch.empty(classes, embedding_size))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5.0))

    def forward(self, embedding: Tensor) -> Tensor:
        """Return the logits [B, C] of embeddings [B, d], in [-scale, scale]."""
        return self.scale * F.linear(F.normalize(embedding, dim=1), F.normalize(self.weight, dim=1))

    def extra_repr(self) -> str:
        """Return what a printed network shows of this layer."""
        return f"classes={self.weight.shape[0]}, scale={self.scale:g}"


def head_of(kind: str, embedding_size: int, classes: int, *, scale: float) -> nn.Module:
    """Build an untrained head: `linear`, or `cosine` with a scale."""
    if kind == "cosine":
        return CosineHead(embedding_size, classes, scale=scale)
    return LinearHead(embedding_size, classes)
