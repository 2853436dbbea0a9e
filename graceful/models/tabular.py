"""The body of a network for rows: numbers and embedded categories, side by side, through layers. Driver and workers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

WIDEST = 32
"""Numbers that a category is embedded in, at most."""


def width_of(values: int) -> int:
    """Return how many numbers a category of so many values is embedded in: about their square root."""
    return min(WIDEST, math.ceil(1.6 * math.pow(values, 0.56)))


class TabularBody(nn.Module):
    """Batch {numbers [B, F], categories [B, K] int64} -> embedding [B, d]; numbers may be left out.

    Row 0 of each table of embeddings stands for values that are unknown or missing. It begins at zero and stays there
    unless values are missing in training, so that an unknown value adds nothing.

    Args:
        values: Known values of each of the K categories.
        layers: Numbers and embedded categories [B, F + sum of widths] -> [B, d].
    """

    def __init__(self, values: Sequence[int], layers: nn.Module) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList(nn.Embedding(count + 1, width_of(count)) for count in values)
        self.layers = layers
        with torch.no_grad():
            for embedding in self.embeddings:
                cast(nn.Embedding, embedding).weight[0].zero_()

    def forward(self, x: Mapping[str, Tensor]) -> Tensor:
        """Return the embeddings [B, d] of a batch of the learner."""
        codes = x["categories"]
        parts = [x["numbers"]] if "numbers" in x else []
        parts += [embedding(codes[:, index]) for index, embedding in enumerate(self.embeddings)]
        return cast(Tensor, self.layers(torch.cat(parts, dim=1)))
