"""One loss against one predecessor on one batch: what the objective adds up. Runs in workers."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from graceful.losses.base import Loss
from graceful.losses.ops import focus
from graceful.losses.ops.pair import Pair
from graceful.losses.ops.reduction import weighted_mean


@dataclass(frozen=True, kw_only=True)
class Term:
    """One loss bound to one predecessor.

    Attributes:
        key: `<kind>/<version>`, the name of its value in logs.
        loss: Its section of the spec.
        index: Position of the predecessor.
        constants: What `Loss.constants` returned, on the device of the objective.
    """

    key: str
    loss: Loss
    index: int
    constants: tuple[Tensor, ...]


def value(term: Term, pair: Pair, *, mean: Tensor | None) -> Tensor:
    """Return `mean_i(F_i D_i)` of one term, before its weight.

    Args:
        term: The loss.
        pair: The batch beside the term's predecessor.
        mean: Running mean of the sample weights; None where their mean is known before training.
    """
    values, participates = term.loss.compare(pair, term.constants)
    weights = term.loss.sample_weights(pair)
    if weights is not None:
        version = pair.version
        divisor: float | Tensor | None = mean
        if divisor is None:
            share = version.correct_share or 0.0
            divisor = term.loss.mean_weight(correct_share=share, near_chance=version.near_chance)
        weights = focus.normalise(weights, mean=divisor)
    return weighted_mean(values, weights=weights, participates=participates)
