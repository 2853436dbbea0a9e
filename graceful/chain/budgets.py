"""Budgets of negative flips against each predecessor, and whether training can meet them. Pure floats, before training.

With error rates on the constraint split, ER_ref that of a run without constraints and ER_k the predecessor's:

    budget      eps_k = rho_k (1 - ER_k) ER_ref             a share of the flips that independent errors would make
    infeasible  eps_k < max(0, ER_ref - ER_k)               NFR - PFR = ER_new - ER_k leaves no room
                or too few ids to ever show eps_k
    vacuous     eps_k >= min(ER_ref, 1 - ER_k)              no model of that error can break it
    implied     eps_k + upper NFR(k, j) <= eps_j            triangle inequality: a model that keeps the nearer k keeps j

Implied constraints cost nothing and come back by themselves when a release between k and j broke something. On ids of
which k knows more classes than j, eps_k counts n_k / n_j times; where k knows fewer, it implies nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

from graceful.errors import SpecError
from graceful.proportions import minimum_n


class Status(StrEnum):
    """What becomes of a budget."""

    ACTIVE = "active"
    IMPLIED = "implied"
    VACUOUS = "vacuous"
    INFEASIBLE = "infeasible"


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Error rates of one predecessor on the constraint split.

    Attributes:
        name: Version name.
        n: Ids whose class it knows.
        error: Its error rate on them.
        reference_error: The error of the unconstrained run on the same ids.
    """

    name: str
    n: int
    error: float
    reference_error: float


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The budget of negative flips against one predecessor.

    Attributes:
        name: Version name.
        bound: eps, a fraction of the ids whose class it knows.
        status: Only `active` ones have a multiplier; all are evaluated and judged.
        reason: One sentence for people.
        standing: The facts it rests on.
        implied_by: The nearer version whose budget it follows from; None unless `implied`.
    """

    name: str
    bound: float
    status: Status
    reason: str
    standing: Standing
    implied_by: str | None = None

    def document(self) -> dict[str, Any]:
        """Return the budget as JSON values."""
        return asdict(self)


def plan(
    chain: Sequence[Standing],
    *,
    relative: float,
    growth: float = 0.0,
    bounds: Mapping[str, float] | None = None,
    upper: Mapping[tuple[str, str], float] | None = None,
) -> tuple[Budget, ...]:
    """Give each predecessor its budget and say what becomes of it.

    Args:
        chain: Nearest first.
        relative: rho of the nearest.
        growth: What rho gains with each further release, as a share of itself.
        bounds: Budgets by name that replace the relative ones.
        upper: (k, j) -> upper end of NFR(k, j) on ids that both know, for k nearer than j; missing where k does not
            know every class of j.

    Raises:
        SpecError: A bound names no predecessor.
    """
    bounds, upper = bounds or {}, upper or {}
    unknown = sorted(set(bounds) - {standing.name for standing in chain})
    if unknown:
        names = ", ".join(standing.name for standing in chain) or "none"
        raise SpecError(
            f"compatibility.weighting.bounds: {unknown[0]!r} is not a predecessor in training, which are {names}"
        )
    budgets: list[Budget] = []
    for distance, standing in enumerate(chain):
        rho = relative * (1.0 + growth * distance)
        bound = bounds.get(standing.name, rho * (1.0 - standing.error) * standing.reference_error)
        budgets.append(
            _budget(standing, bound, [budget for budget in budgets if budget.status is Status.ACTIVE], upper)
        )
    return tuple(budgets)


def require_feasible(budgets: Sequence[Budget]) -> None:
    """Refuse budgets that no training can meet.

    Raises:
        SpecError: The reason of the first, how many more there are, and all of them in its facts.
    """
    reasons = {budget.name: budget.reason for budget in budgets if budget.status is Status.INFEASIBLE}
    _refuse(reasons)


def require_evidence(
    chain: Sequence[Standing], *, relative: float, growth: float = 0.0, bounds: Mapping[str, float] | None = None
) -> None:
    """Refuse budgets that the constraint split is too small to show, before an unconstrained run is trained for them.

    A relative budget is at most `rho (1 - ER_k)`, whatever ER_ref turns out to be. Arguments as of `plan`; the
    standings' reference errors are not read.

    Raises:
        SpecError: As `require_feasible`; or a bound names no predecessor.
    """
    reasons = {}
    largest = [replace(standing, reference_error=1.0) for standing in chain]
    for budget in plan(largest, relative=relative, growth=growth, bounds=bounds):
        if not _can_be_shown(budget.bound, budget.standing.n):
            reasons[budget.name] = _reason_not_shown(budget.bound, budget.standing.n)
    _refuse(reasons)


def _refuse(reasons: Mapping[str, str]) -> None:
    if reasons:
        (name, reason), *other_reasons = reasons.items()
        suffix = f" (and {len(other_reasons)} more)" if other_reasons else ""
        raise SpecError(
            f"compatibility.weighting: {name}: {reason}{suffix}; raise the budget (relative, or bounds), leave the"
            " predecessor out of compatibility.against, or write infeasible: skip",
            {"infeasible": dict(reasons)},
        )


def _can_be_shown(bound: float, n: int) -> bool:
    required = minimum_n(bound)
    return required is not None and required <= n


def _reason_not_shown(bound: float, n: int) -> str:
    required = minimum_n(bound)
    required_text = "infinitely many" if required is None else str(required)
    return f"a budget of {_percent(bound)} cannot be shown on {n} ids of the constraint split, it needs {required_text}"


def _budget(
    standing: Standing, bound: float, active: Sequence[Budget], upper: Mapping[tuple[str, str], float]
) -> Budget:
    status, reason = Status.ACTIVE, f"at most {_percent(bound)} of {standing.n} ids may flip"
    floor = max(0.0, standing.reference_error - standing.error)
    implying = next((nearer for nearer in active if _implies(nearer, standing, bound, upper)), None)
    if bound < floor:
        status = Status.INFEASIBLE
        reason = (
            f"a budget of {_percent(bound)} is below {_percent(floor)}, by which the unconstrained error"
            f" {_percent(standing.reference_error)} exceeds its error {_percent(standing.error)}"
        )
    elif not _can_be_shown(bound, standing.n):
        status, reason = Status.INFEASIBLE, _reason_not_shown(bound, standing.n)
    elif bound >= min(standing.reference_error, 1.0 - standing.error):
        status = Status.VACUOUS
        reason = (
            f"a budget of {_percent(bound)} asks for nothing: at most {_percent(standing.reference_error)} can flip"
        )
    elif implying is not None:
        status = Status.IMPLIED
        between = upper[implying.name, standing.name]
        reason = (
            f"follows from {implying.name}: {_percent(implying.bound)} and at most {_percent(between)} between the two"
            f" stay within {_percent(bound)}"
        )
    implied_by = implying.name if implying and status is Status.IMPLIED else None
    return Budget(
        name=standing.name, bound=bound, status=status, reason=reason, standing=standing, implied_by=implied_by
    )


def _implies(nearer: Budget, farther: Standing, bound: float, upper: Mapping[tuple[str, str], float]) -> bool:
    between = upper.get((nearer.name, farther.name))
    return between is not None and nearer.bound * nearer.standing.n / max(farther.n, 1) + between <= bound


def _percent(rate: float) -> str:
    return f"{100 * rate:.2f} %"
