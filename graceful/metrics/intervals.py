"""Intervals of what was measured: Wilson, cluster bootstrap, paired differences. Runs in driver and workers, NumPy.

Ids that belong together (a typeface, a person) are not independent, so wherever groups are known the bootstrap draws
groups. Drawing with replacement depends only on each group's sums, and groups with equal sums are interchangeable:
draws are multinomial over the **distinct** sums, exact and as cheap for a million ids as for a hundred.

A bootstrap of a few rare events is too narrow, and of none it is empty. Every interval that can degenerate so is
therefore at least as wide as a closed form that cannot (Wilson, or Bonett and Price for differences).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graceful.proportions import minimum_n, quantile, wilson
from graceful.report import Measurement

__all__ = ["Evidence", "minimum_n", "paired_difference", "proportion", "statistic", "wilson"]

FEW_GROUPS = 20
_CELLS = 4_000_000

Floats = NDArray[np.float64]
Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """The groups of dependent ids, and the bootstrap's draws and seed.

    Attributes:
        units: [N] int64 in [0, G): the group of each id; None: ids are independent.
        draws: Bootstrap draws.
        seed: Seed of the draws; equal arguments give equal intervals.
    """

    units: NDArray[np.int64] | None = None
    draws: int = 1000
    seed: int = 0

    @classmethod
    def of(cls, groups: NDArray[Any] | None, *, draws: int = 1000, seed: int = 0) -> Evidence:
        """Return the number the groups; as many groups as ids means independent ids."""
        if groups is None or len(groups) == 0:
            return cls(draws=draws, seed=seed)
        codes: dict[Any, int] = {}
        units = np.fromiter((codes.setdefault(name, len(codes)) for name in groups.tolist()), np.int64, len(groups))
        return cls(units=None if len(codes) == len(groups) else units, draws=draws, seed=seed)

    def at(self, subset: NDArray[Any]) -> Evidence:
        """Return the evidence of a subset of the ids, given as a mask or positions."""
        if self.units is None:
            return self
        return Evidence.of(self.units[subset], draws=self.draws, seed=self.seed)

    @property
    def groups(self) -> int | None:
        """Return the number of groups; None where ids are independent."""
        return None if self.units is None else int(self.units.max()) + 1


def resampled_sums(columns: NDArray[Any], evidence: Evidence) -> Floats:
    """Return the sums of each column over bootstrap samples of the groups (of the ids, where there are none).

    Args:
        columns: [N, C] finite numbers or booleans.
        evidence: Groups, draws, seed.

    Returns:
        [draws, C]; the order of the ids does not matter.
    """
    rows, counts = _distinct_rows(_group_sums(columns, evidence.units))
    total = int(counts.sum())
    rng = np.random.default_rng(evidence.seed)
    step = max(1, _CELLS // len(rows))
    parts = [
        rng.multinomial(total, counts / total, size=min(step, evidence.draws - start)) @ rows
        for start in range(0, evidence.draws, step)
    ]
    return np.concatenate(parts)


def _group_sums(columns: NDArray[Any], units: NDArray[np.int64] | None) -> Floats:
    if units is None:
        return np.asarray(columns, dtype=np.float64)
    groups = int(units.max()) + 1
    return np.stack([np.bincount(units, weights=column, minlength=groups) for column in columns.T], axis=1)


def _distinct_rows(rows: Floats) -> tuple[Floats, NDArray[np.int64]]:
    """Return distinct rows and how often each occurs; small whole numbers are packed into one key, which sorts fast."""
    radix = rows.max(axis=0) + 1.0
    packable = rows.min() >= 0.0 and math.prod(radix.tolist()) < 2.0**53 and bool((rows == np.floor(rows)).all())
    if not packable:
        return np.unique(rows, axis=0, return_counts=True)
    scale = np.concatenate([[1.0], np.cumprod(radix[:-1])])
    _, first, counts = np.unique(rows @ scale, return_index=True, return_counts=True)
    return rows[first], counts


def percentiles(draws: Floats, value: float) -> Interval | None:
    """Return the middle 95 % of the finite draws, always around the value; None if under half of them are finite."""
    finite = draws[np.isfinite(draws)]
    if len(finite) * 2 < len(draws):
        return None
    lower, upper = np.quantile(finite, [0.025, 0.975])
    return min(float(lower), value), max(float(upper), value)


def _wider(first: Interval | None, second: Interval | None) -> Interval | None:
    if first is None or second is None:
        return first or second
    return min(first[0], second[0]), max(first[1], second[1])


def caveat(evidence: Evidence, *reasons: str | None) -> str | None:
    """Join reasons, with a warning where an interval rests on too few groups."""
    groups = evidence.groups
    warning = f"only {groups} groups behind the interval" if groups is not None and groups < FEW_GROUPS else None
    return "; ".join(reason for reason in (*reasons, warning) if reason) or None


def proportion(
    hits: NDArray[np.bool_],
    evidence: Evidence,
    *,
    among: NDArray[np.bool_] | None = None,
    empty: str = "no ids",
    reason: str | None = None,
) -> Measurement:
    """Return the share of ids that are hits, among all or among some.

    Args:
        hits: [N]
        evidence: Groups, draws, seed.
        among: [N]; None: all. Hits outside it do not count.
        empty: Reason of an undefined value.
        reason: Caveat to carry along.

    Returns:
        Count over n with its Wilson interval; grouped: the wider, at each end, of Wilson and the cluster bootstrap.
    """
    included = np.ones(len(hits), dtype=np.bool_) if among is None else among
    included_hits = hits & included
    count, n = int(included_hits.sum()), int(included.sum())
    if n == 0:
        return Measurement(value=None, n=0, reason=empty)
    ends: Interval | None = wilson(count, n)
    if evidence.units is not None:
        ends = _wider(ends, _ratio_interval(np.stack([included_hits, included], axis=1), evidence, count / n))
    assert ends is not None
    return Measurement(value=count / n, lower=ends[0], upper=ends[1], count=count, n=n, reason=caveat(evidence, reason))


def _ratio_interval(columns: NDArray[Any], evidence: Evidence, value: float) -> Interval | None:
    sums = resampled_sums(columns, evidence)
    return percentiles(_divide(sums[:, 0], sums[:, 1]), value)


def _divide(numerator: Floats, denominator: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(denominator > 0, numerator / denominator, np.nan)


def statistic(
    columns: NDArray[Any],
    function: Callable[[Floats], Floats],
    evidence: Evidence,
    *,
    floor: Interval | None = None,
    undefined: str = "no ids",
    reason: str | None = None,
) -> Measurement:
    """Return any function of column sums with a bootstrap interval.

    Args:
        columns: [N, C] summed over ids.
        function: [..., C] sums -> [...] values, NaN where undefined.
        evidence: Groups, draws, seed.
        floor: An interval that the result must cover, for statistics whose bootstrap can degenerate.
        undefined: Reason where the value is not finite.
        reason: Caveat to carry along.
    """
    n = len(columns)
    if n == 0:
        return Measurement(value=None, n=0, reason=undefined)
    value = float(function(np.asarray(columns, dtype=np.float64).sum(axis=0)))
    if not math.isfinite(value):
        return Measurement(value=None, n=n, reason=undefined)
    ends = _wider(percentiles(function(resampled_sums(columns, evidence)), value), floor)
    if ends is None:
        return Measurement(value=value, n=n, reason=caveat(evidence, reason, "too few ids for an interval"))
    return Measurement(value=value, lower=ends[0], upper=ends[1], n=n, reason=caveat(evidence, reason))


def paired_difference(
    first: NDArray[Any], second: NDArray[Any], evidence: Evidence, *, reason: str | None = None
) -> Measurement:
    """Return the mean of `first` minus mean of `second` over the same ids: first above second is positive.

    Args:
        first: [N] booleans (right or wrong) or numbers (average precision).
        second: [N], same ids in the same order.
        evidence: Groups, draws, seed.
        reason: Caveat to carry along.

    Returns:
        Booleans: Bonett and Price's interval, widened by the cluster bootstrap where there are groups. Numbers:
        bootstrap over ids or groups.

    Source: Bonett and Price 2012 (adjusted Wald interval for paired proportions).
    """
    n = len(first)
    if n == 0:
        return Measurement(value=None, n=0, reason="no ids")
    change = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    floor = _bonett_price(int((change > 0).sum()), int((change < 0).sum()), n) if first.dtype == np.bool_ else None
    if floor is not None and evidence.units is None:
        return Measurement(value=float(change.sum()) / n, lower=floor[0], upper=floor[1], n=n, reason=reason)
    columns = np.stack([change, np.ones(n)], axis=1)
    return statistic(columns, lambda sums: sums[..., 0] / sums[..., 1], evidence, floor=floor, reason=reason)


def _bonett_price(gains: int, losses: int, n: int) -> Interval:
    up, down = (gains + 1) / (n + 2), (losses + 1) / (n + 2)
    half = quantile() * math.sqrt((up + down - (up - down) ** 2) / (n + 2))
    value = (gains - losses) / n
    return max(-1.0, min(value, up - down - half)), min(1.0, max(value, up - down + half))
