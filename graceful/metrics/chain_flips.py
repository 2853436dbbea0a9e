"""Negative flips of one new version against its whole chain of predecessors at once. Runs in the driver, NumPy.

Maxima and means over the chain have intervals drawn jointly, because all ancestors are judged on the same ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from graceful.constraints import CHAIN_METRICS
from graceful.errors import DataError
from graceful.metrics.intervals import Evidence, Floats, proportion, statistic
from graceful.metrics.predictions import Joined, Predictions, join
from graceful.proportions import wilson
from graceful.report import Measurement


def chain_flips(
    new: Predictions,
    olds: Sequence[Predictions],
    usage: Sequence[float] | None = None,
    /,
    *,
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, Measurement]:
    """Measure the new version against all ancestors together.

    Args:
        new: The new version's predictions.
        olds: Its ancestors', nearest first.
        usage: Share of traffic that still depends on each ancestor, adding up to 1; None: not measured.
        draws: Bootstrap draws.
        seed: Seed of the draws.

    Returns:
        `chain_max_nfr`, `chain_mean_nfr`, `usage_weighted_nfr`: over the ancestors' NFRs, each on the ids it can
        answer. `union_nfr`, `unanimous_nfr`: any, or every, ancestor was right and new is wrong, over ids that any, or
        every, ancestor can answer; the union grows with weak ancestors, the unanimous one is the severe one.
        `step_nfr`: against the latest. `cumulative_negative_flips`: flips of every step of the chain added up (a
        count, without interval). All None without ancestors.

    Raises:
        DataError: Ids do not join, or shares of usage that do not add up to 1.
    """
    if usage is not None and (len(usage) != len(olds) or min(usage, default=0.0) < 0 or abs(sum(usage) - 1) > 1e-6):
        raise DataError(f"usage: needs {len(olds)} shares that add up to 1, one per ancestor, got {list(usage)}")
    if not olds:
        return {name: Measurement(value=None, reason="no ancestors yet") for name in CHAIN_METRICS}
    new = new.unique(where="new predictions")
    wrong, right, known = _masks(new, [join(new, old) for old in olds])
    evidence = Evidence.of(new.groups, draws=draws, seed=seed)
    flips = right & wrong[:, None]
    measurements = _over_ancestors(flips, known, usage, evidence)
    for name, combine in (("union_nfr", np.logical_or), ("unanimous_nfr", np.logical_and)):
        measurements[name] = proportion(combine.reduce(flips, axis=1), evidence, among=combine.reduce(known, axis=1))
    measurements["step_nfr"] = proportion(flips[:, 0], evidence, among=known[:, 0])
    measurements["cumulative_negative_flips"] = _cumulative(~wrong, right, known)
    return measurements


def _masks(new: Predictions, joined: Sequence[Joined]) -> tuple[NDArray[np.bool_], ...]:
    """Return [N] new is wrong, [N, k] the ancestor is right, [N, k] both know the class."""
    wrong = np.ones(len(new), dtype=np.bool_)
    right = np.zeros((len(new), len(joined)), dtype=np.bool_)
    known = np.zeros_like(right)
    for index, pair in enumerate(joined):
        rows = np.searchsorted(new.ids, pair.ids)
        wrong[rows] = ~pair.ok_new
        right[rows, index] = pair.ok_old
        known[rows, index] = True
    return wrong, right, known


def _over_ancestors(
    flips: NDArray[np.bool_], known: NDArray[np.bool_], usage: Sequence[float] | None, evidence: Evidence
) -> dict[str, Measurement]:
    columns = np.concatenate([flips, known], axis=1)
    k = flips.shape[1]

    def rates(sums: Floats) -> Floats:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(sums[..., :k] / sums[..., k:])

    ancestor_rates, counts = rates(columns.sum(axis=0).astype(np.float64)), known.sum(axis=0)
    if not counts.all():
        empty = f"{int((counts == 0).sum())} of {k} ancestors share no id with the new version"
        return dict.fromkeys(CHAIN_METRICS[:3], Measurement(value=None, n=len(flips), reason=empty))

    def floor(value: float, n: int) -> tuple[float, float]:
        return wilson(min(value, 1.0) * n, n)

    largest, n = int(ancestor_rates.argmax()), int(counts.min())
    shares = None if usage is None else np.asarray(usage, dtype=np.float64)
    measurements = {
        "chain_max_nfr": statistic(
            columns,
            lambda sums: rates(sums).max(axis=-1),
            evidence,
            floor=floor(float(ancestor_rates[largest]), int(counts[largest])),
        ),
        "chain_mean_nfr": statistic(
            columns, lambda sums: rates(sums).mean(axis=-1), evidence, floor=floor(float(ancestor_rates.mean()), n)
        ),
        "usage_weighted_nfr": Measurement(value=None, n=len(flips), reason="usage shares were not given"),
    }
    if shares is not None:
        measurements["usage_weighted_nfr"] = statistic(
            columns,
            lambda sums: np.asarray(rates(sums) @ shares),
            evidence,
            floor=floor(float(ancestor_rates @ shares), n),
        )
    return measurements


def _cumulative(ok_new: NDArray[np.bool_], right: NDArray[np.bool_], known: NDArray[np.bool_]) -> Measurement:
    """Return the flips of each step, oldest to newest, added up; None unless every step is judged on the same ids."""
    if not (known.all(axis=1) == known.any(axis=1)).all():
        return Measurement(value=None, n=len(ok_new), reason="the versions do not answer the same ids")
    shared = known[:, 0]
    versions = [*right.T[::-1], ok_new]
    steps = list(pairwise(versions))
    negative = sum(int((old & ~new & shared).sum()) for old, new in steps)
    positive = sum(int((new & ~old & shared).sum()) for old, new in steps)
    return Measurement(
        value=float(negative),
        count=negative,
        n=int(shared.sum()),
        reason=f"{len(steps)} steps, {positive} positive flips",
    )
