"""Judge a fit by who answers what right: worst negative flip rate, error against its limit. Runs in the driver.

Against reference runs the error is compared on the same ids, so that what is hard for everybody cancels, and the mean
over several runs stands for "untreated". The bound covers ids (which belong together in groups) and, with several
seeds, seeds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Limit:
    """The error rate to keep.

    Attributes:
        absolute: As a rate; None: that of the reference runs.
        tolerance: Share of it by which the bound may exceed it.
        confidence: One-sided, of that bound.
    """

    absolute: float | None
    tolerance: float
    confidence: float


@dataclass(frozen=True, kw_only=True)
class Old:
    """What one predecessor said.

    Attributes:
        name: The name of the version.
        right: [N]
        known: [N] ids whose class it knows: flips are counted among these.
    """

    name: str
    right: Mask
    known: Mask


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """What a fit is judged against on one split.

    Attributes:
        reference: [R, N] unconstrained runs: right or wrong.
        chain: Latest first.
        units: [N] number of the group of each id.
    """

    reference: Mask
    chain: tuple[Old, ...]
    units: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Score:
    """One treatment on one split; rates are fractions, means over seeds.

    Attributes:
        error: Error rate.
        limit: What it is compared with: the reference runs' error rate, or the absolute one.
        excess: error - limit.
        excess_upper: Upper end of its one-sided interval.
        violation: excess_upper - tolerance x limit; feasible if at most 0.
        nfr: Worst negative flip rate over the chain.
        nfr_lower: Lower end of its two-sided 95 % interval.
        nfr_upper: Upper end.
        against: Negative flip rate by predecessor.
        reference_nfr: Worst negative flip rate of the reference runs.
    """

    error: float
    limit: float
    excess: float
    excess_upper: float
    violation: float
    nfr: float
    nfr_lower: float
    nfr_upper: float
    against: Mapping[str, float]
    reference_nfr: float

    @property
    def feasible(self) -> bool:
        """Return whether the error rate is kept."""
        return self.violation <= 0.0

    def document(self) -> dict[str, Any]:
        """As JSON values."""
        return {**asdict(self), "against": dict(self.against), "feasible": self.feasible}


def score(correct: Mask, base: Baseline, limit: Limit) -> Score:
    """Judge what a treatment answers.

    Args:
        correct: [S, N] one row per seed.
        base: Same ids, same order.
        limit: The error to keep.
    """
    errors = (~correct).astype(np.float64)
    reference_errors = (~base.reference).astype(np.float64).mean(axis=0)
    target = reference_errors if limit.absolute is None else np.full(correct.shape[1], limit.absolute)
    excess, upper = mean_bounds(errors - target, base.units, limit.confidence)[1:]
    rates = {old.name: _flips(correct, old, base.units) for old in base.chain}
    worst = max(rates, key=lambda name: rates[name][1], default=None)
    lower, nfr, nfr_upper = rates[worst] if worst is not None else (0.0, 0.0, 0.0)
    return Score(
        error=float(errors.mean()),
        limit=float(target.mean()),
        excess=excess,
        excess_upper=upper,
        violation=upper - limit.tolerance * float(target.mean()),
        nfr=nfr,
        nfr_lower=max(0.0, lower),
        nfr_upper=nfr_upper,
        against={name: rate[1] for name, rate in rates.items()},
        reference_nfr=max((_flips(base.reference, old, base.units)[1] for old in base.chain), default=0.0),
    )


def _flips(correct: Mask, old: Old, units: NDArray[np.int64]) -> tuple[float, float, float]:
    """Return lower end, negative flip rate, upper end."""
    if not old.known.any():
        return 0.0, 0.0, 0.0
    flips = (old.right & ~correct)[:, old.known].astype(np.float64)
    return mean_bounds(flips, units[old.known], 0.975)


def mean_bounds(values: Floats, units: NDArray[np.int64], confidence: float) -> tuple[float, float, float]:
    """Return a mean with its one-sided bounds below and above.

    The variance is that of group sums (never less than that of independent ids), plus that of seeds where there are
    several. An outcome with hardly any events gets one pseudo-observation, so that the bound never collapses.

    Args:
        values: [S, N] in [-1, 1].
        units: [N] groups.
        confidence: The confidence of each bound; 0.5: the mean itself.
    """
    seeds, n = values.shape
    by_id = values.mean(axis=0)
    mean = float(by_id.mean())
    centred = by_id - mean
    sums = np.bincount(units, weights=centred)
    groups = len(np.unique(units))
    clustered = float((sums**2).sum()) * groups / max(groups - 1, 1)
    independent = float((centred**2).sum()) + 1.0
    variance = max(clustered, independent) / n**2
    if seeds > 1:
        variance += float(values.mean(axis=1).var(ddof=1)) / seeds
    half = NormalDist().inv_cdf(confidence) * math.sqrt(variance)
    return mean - half, mean, mean + half


def front(points: Sequence[Sequence[float]]) -> list[int]:
    """Return positions of the points that none dominates (as good everywhere, better somewhere); lower is better."""
    positions = []
    for index, point in enumerate(points):
        dominated = any(
            all(a <= b for a, b in zip(other, point, strict=True)) and tuple(other) != tuple(point) for other in points
        )
        if not dominated:
            positions.append(index)
    return positions


def hypervolume(points: Sequence[tuple[float, float]], corner: tuple[float, float]) -> float:
    """Return the area that two-dimensional points dominate below a corner; lower is better."""
    area, ceiling = 0.0, corner[1]
    for x, y in sorted(points):
        if x < corner[0] and y < ceiling:
            area += (corner[0] - x) * (ceiling - y)
            ceiling = y
    return area
