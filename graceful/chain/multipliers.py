"""Strengths of the predecessors' losses: fixed shares, or multipliers that follow budgets. Pure, on every rank.

Dual ascent, once per epoch, from counts on the constraint split that all ranks share:

    mu_k <- [mu_k + step clip((NFR_k - eps_k) / eps_k, -1, 1)]_+        active budgets; the others stay 0
    error above (1 + margin) ER_ref:  all mu x 0.75                     the guard
    sum mu > largest_total:           all mu scaled down to it          the total must not grow with the chain

An epoch is compared with the same epoch of the unconstrained run: eps_k and ER_ref are multiplied by `pace`, the ratio
of that run's error then to its final one, because an untrained model breaks every budget whatever the multipliers are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from graceful import spec
from graceful.chain.budgets import Budget, Status

SHRINK = 0.75
"""What the error guard leaves of the multipliers."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Negative flip rates and error rate of a model on the constraint split.

    Attributes:
        flips: NFR against each predecessor, in their order.
        error: Error rate over all ids.
    """

    flips: tuple[float, ...]
    error: float


def strengths(weighting: spec.Weighting, count: int) -> tuple[float, ...]:
    """Return the factors of the predecessors' losses where no budget moves them; they add up to 1."""
    if isinstance(weighting, spec.Decay):
        powers = [weighting.factor**index for index in range(count)]
        return tuple(power / math.fsum(powers) for power in powers)
    return (1.0 / max(count, 1),) * count


def initial(budgets: Sequence[Budget], *, start: float) -> tuple[float, ...]:
    """Return the multipliers at the start: those of the nearest active predecessor alone are above 0."""
    active = [index for index, budget in enumerate(budgets) if budget.status is Status.ACTIVE]
    return tuple(start if active[:1] == [index] else 0.0 for index in range(len(budgets)))


def advance(
    multipliers: Sequence[float],
    *,
    budgets: Sequence[Budget],
    measured: Measured,
    reference_error: float,
    pace: float,
    weighting: spec.Adaptive,
) -> tuple[float, ...]:
    """Return the multipliers after one step of the dual ascent.

    Args:
        multipliers: One per budget.
        budgets: As planned before training.
        measured: The model now.
        reference_error: ER_ref over all ids of the constraint split.
        pace: ER of the unconstrained run at this epoch over its final one, at least 1.
        weighting: Step, margin, largest total.
    """
    updated = []
    for mu, budget, rate in zip(multipliers, budgets, measured.flips, strict=True):
        if budget.status is not Status.ACTIVE:
            updated.append(0.0)
            continue
        allowed = budget.bound * pace
        excess = max(-1.0, min(1.0, (rate - allowed) / allowed))
        updated.append(max(0.0, mu + weighting.step * excess))
    if measured.error > (1.0 + weighting.error_margin) * reference_error * pace:
        updated = [SHRINK * mu for mu in updated]
    total = math.fsum(updated)
    if total > weighting.largest_total:
        updated = [mu * weighting.largest_total / total for mu in updated]
    return tuple(updated)


def rank(measured: Measured, budgets: Sequence[Budget], *, error: float) -> tuple[float, float, float]:
    """Sort key of a checkpoint, the smallest is kept: feasible before not, then the lowest error.

    Among infeasible ones the largest relative violation counts first. Feasible: every active budget is met.

    Args:
        measured: The checkpoint on the constraint split.
        budgets: As planned before training.
        error: Its error on the validation split.
    """
    excesses = [
        (rate - budget.bound) / budget.bound
        for rate, budget in zip(measured.flips, budgets, strict=True)
        if budget.status is Status.ACTIVE
    ]
    worst = max(0.0, max(excesses, default=0.0))
    return (0.0, 0.0, error) if worst == 0.0 else (1.0, worst, error)
