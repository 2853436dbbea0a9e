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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from graceful import spec
from graceful.chain.budgets import Budget, Status

SHRINK = 0.75
"""What the error guard leaves of the multipliers."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Negative flip rates and error rate of a model on the constraint split.

    Attributes:
        flips: NFR against each predecessor, by its name.
        error: Error rate over all ids.
    """

    flips: Mapping[str, float]
    error: float


def strengths(weighting: spec.Weighting, names: Sequence[str]) -> dict[str, float]:
    """Return the factors of the predecessors' losses where no budget moves them; they add up to 1."""
    if isinstance(weighting, spec.Decay):
        powers = {name: weighting.factor**index for index, name in enumerate(names)}
        return {name: power / math.fsum(powers.values()) for name, power in powers.items()}
    return {name: 1.0 / len(names) for name in names}


def initial(budgets: Sequence[Budget], *, start: float) -> dict[str, float]:
    """Return the multipliers at the start: those of the nearest active predecessor alone are above 0."""
    active = [budget.name for budget in budgets if budget.status is Status.ACTIVE]
    return {budget.name: start if active[:1] == [budget.name] else 0.0 for budget in budgets}


def advance(
    multipliers: Mapping[str, float],
    *,
    budgets: Sequence[Budget],
    measured: Measured,
    reference_error: float,
    pace: float,
    weighting: spec.Adaptive,
) -> dict[str, float]:
    """Return the multipliers after one step of the dual ascent.

    Args:
        multipliers: By the name of the predecessor.
        budgets: As planned before training.
        measured: The model now.
        reference_error: ER_ref over all ids of the constraint split.
        pace: ER of the unconstrained run at this epoch over its final one, at least 1.
        weighting: Step, margin, largest total.
    """
    updated = {}
    for budget in budgets:
        updated[budget.name] = 0.0
        if budget.status is Status.ACTIVE:
            allowed = budget.bound * pace
            excess = max(-1.0, min(1.0, (measured.flips[budget.name] - allowed) / allowed))
            updated[budget.name] = max(0.0, multipliers[budget.name] + weighting.step * excess)
    if measured.error > (1.0 + weighting.error_margin) * reference_error * pace:
        updated = {name: SHRINK * mu for name, mu in updated.items()}
    total = math.fsum(updated.values())
    if total > weighting.largest_total:
        updated = {name: mu * weighting.largest_total / total for name, mu in updated.items()}
    return updated


def rank(measured: Measured, budgets: Sequence[Budget], *, error: float) -> tuple[float, float, float]:
    """Sort key of a checkpoint, the smallest is kept: feasible before not, then the lowest error.

    Among infeasible ones the largest relative violation counts first. Feasible: every active budget is met.

    Args:
        measured: The checkpoint on the constraint split.
        budgets: As planned before training.
        error: Its error on the validation split.
    """
    excesses = [
        (measured.flips[budget.name] - budget.bound) / budget.bound
        for budget in budgets
        if budget.status is Status.ACTIVE
    ]
    worst = max(0.0, max(excesses, default=0.0))
    return (0.0, 0.0, error) if worst == 0.0 else (1.0, worst, error)
