"""What a new version may break against each predecessor, and whether that can be asked: before training, pure floats.

With error rates on the constraint split, ER_ref that of a run without constraints and ER_k the predecessor's:

    budget      eps_k = rho_k (1 - ER_k) ER_ref             a share of the flips that independent errors would make
    infeasible  eps_k < max(0, ER_ref - ER_k)               NFR - PFR = ER_new - ER_k leaves no room
                or too few ids to ever show eps_k
    vacuous     eps_k >= min(ER_ref, 1 - ER_k)              no model of that error can break it
    implied     eps_k + upper NFR(k, j) <= eps_j            triangle inequality: whoever keeps the nearer k keeps j

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
    """One predecessor on the constraint split.

    Attributes:
        name: Version name.
        n: Ids whose class it knows.
        error: Its error rate on them.
        reference_error: Of the unconstrained run on the same ids.
    """

    name: str
    n: int
    error: float
    reference_error: float


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What may flip against one predecessor.

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
        """As JSON values."""
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
    unknown = sorted(set(bounds) - {one.name for one in chain})
    if unknown:
        names = ", ".join(one.name for one in chain) or "none"
        raise SpecError(
            f"compatibility.weighting.bounds: {unknown[0]!r} is no predecessor in training, which are {names}"
        )
    found: list[Budget] = []
    for distance, one in enumerate(chain):
        rho = relative * (1.0 + growth * distance)
        bound = bounds.get(one.name, rho * (1.0 - one.error) * one.reference_error)
        found.append(_judged(one, bound, [item for item in found if item.status is Status.ACTIVE], upper))
    return tuple(found)


def require_feasible(budgets: Sequence[Budget]) -> None:
    """Refuse budgets that no training can meet.

    Raises:
        SpecError: The reason of the first, how many more there are, and all of them in its facts.
    """
    refused = {one.name: one.reason for one in budgets if one.status is Status.INFEASIBLE}
    _refuse(refused)


def require_evidence(
    chain: Sequence[Standing], *, relative: float, growth: float = 0.0, bounds: Mapping[str, float] | None = None
) -> None:
    """Refuse budgets that the constraint split is too small to show, before an unconstrained run is trained for them.

    A relative budget is at most `rho (1 - ER_k)`, whatever ER_ref turns out to be. Arguments as of `plan`; the
    standings' reference errors are not read.

    Raises:
        SpecError: As `require_feasible`; or a bound names no predecessor.
    """
    refused = {}
    free = [replace(one, reference_error=1.0) for one in chain]
    for budget in plan(free, relative=relative, growth=growth, bounds=bounds):
        if not _shown(budget.bound, budget.standing.n):
            refused[budget.name] = _unshown(budget.bound, budget.standing.n)
    _refuse(refused)


def _refuse(reasons: Mapping[str, str]) -> None:
    if reasons:
        (name, reason), *others = reasons.items()
        more = f" (and {len(others)} more)" if others else ""
        raise SpecError(
            f"compatibility.weighting: {name}: {reason}{more}; raise the budget (relative, or bounds), leave the"
            " predecessor out of compatibility.against, or write infeasible: skip",
            {"infeasible": dict(reasons)},
        )


def _shown(bound: float, n: int) -> bool:
    needed = minimum_n(bound)
    return needed is not None and needed <= n


def _unshown(bound: float, n: int) -> str:
    needed = minimum_n(bound)
    wanted = "infinitely many" if needed is None else str(needed)
    return f"a budget of {_percent(bound)} cannot be shown on {n} ids of the constraint split, it needs {wanted}"


def _judged(one: Standing, bound: float, active: Sequence[Budget], upper: Mapping[tuple[str, str], float]) -> Budget:
    status, reason = Status.ACTIVE, f"at most {_percent(bound)} of {one.n} ids may flip"
    floor = max(0.0, one.reference_error - one.error)
    implying = next((near for near in active if _implies(near, one, bound, upper)), None)
    if bound < floor:
        status = Status.INFEASIBLE
        reason = (
            f"a budget of {_percent(bound)} is below {_percent(floor)}, by which the unconstrained error"
            f" {_percent(one.reference_error)} exceeds its error {_percent(one.error)}"
        )
    elif not _shown(bound, one.n):
        status, reason = Status.INFEASIBLE, _unshown(bound, one.n)
    elif bound >= min(one.reference_error, 1.0 - one.error):
        status = Status.VACUOUS
        reason = f"a budget of {_percent(bound)} asks for nothing: at most {_percent(one.reference_error)} can flip"
    elif implying is not None:
        status = Status.IMPLIED
        between = upper[implying.name, one.name]
        reason = (
            f"follows from {implying.name}: {_percent(implying.bound)} and at most {_percent(between)} between the two"
            f" stay within {_percent(bound)}"
        )
    implied_by = implying.name if implying and status is Status.IMPLIED else None
    return Budget(name=one.name, bound=bound, status=status, reason=reason, standing=one, implied_by=implied_by)


def _implies(near: Budget, far: Standing, bound: float, upper: Mapping[tuple[str, str], float]) -> bool:
    between = upper.get((near.name, far.name))
    return between is not None and near.bound * near.standing.n / max(far.n, 1) + between <= bound


def _percent(rate: float) -> str:
    return f"{100 * rate:.2f} %"
