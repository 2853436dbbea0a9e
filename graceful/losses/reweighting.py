"""Naive reweighting: samples the old model got right count more in the task loss. Runs in workers.

    L = mean_i of (1 + weight * right_i) / mean(1 + weight * right) * CE_i

An honest baseline: it does not lower negative flips reliably, and raised them on one of the two published data sets.

Source: Yan et al., Positive-congruent training (CVPR 2021), its naive baseline; the normalisation is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from graceful.losses.base import Loss, Reading
from graceful.sections import Weight

if TYPE_CHECKING:
    from torch import Tensor

    from graceful.losses.ops.pair import Pair


class Reweighting(Loss):
    """Naive baseline: up-weight the samples the old model got right. Not reliable; kept for comparison."""

    kind: Literal["reweighting"] = "reweighting"
    weight: Weight = 1.0
    """Factor of this loss beside the task's."""

    order: ClassVar[int] = 50
    search_range: ClassVar[tuple[float, float] | None] = None

    @property
    def reads(self) -> frozenset[Reading]:
        """Return what the loss reads: logits, and how many samples each predecessor gets right."""
        return frozenset({"logits", "correctness"})

    @property
    def adds_term(self) -> bool:
        """Return False: the loss weighs the task's samples and adds no term."""
        return False

    def emphasis(self, pairs: Sequence[Pair]) -> tuple[Tensor, float]:
        """Return `weight * right_i`, where `right_i` is the share of predecessors right on a sample, and its mean.

        Samples that a predecessor does not know count as wrong.
        """
        import math

        import torch

        right = torch.stack([pair.old_correct for pair in pairs]).float().mean(0)
        shares = [(pair.version.correct_share or 0.0) * pair.version.known_share for pair in pairs]
        return self.weight * right, self.weight * (math.fsum(shares) / len(shares))
