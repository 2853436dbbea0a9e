"""What must hold between a new version and its ancestors: floats and names only, no torch. Runs in every process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from graceful.catalogue import METRICS, About, Better, find, named


class Direction(StrEnum):
    """Which side of the bound is good. The judged value is the unfavourable end of the interval."""

    AT_MOST = "at_most"
    AT_LEAST = "at_least"
    ABOVE = "above"


DIRECTIONS: Mapping[Better, tuple[Direction, ...]] = {
    Better.LOWER: (Direction.AT_MOST,),
    Better.HIGHER: (Direction.AT_LEAST, Direction.ABOVE),
    Better.EITHER: tuple(Direction),
}
"""Directions that a constraint on such a metric may have; the first is meant where it names none, unless it must."""

CHAIN_METRICS = named(About.CHAIN)
"""Measured on a version itself but about all of its ancestors: vacuous for a first link."""

UNMEASURED = tuple(metric.name for metric in METRICS.values() if not metric.measured)
"""Reported, but undefined until shares of usage are recorded: no bound on them could ever be met."""

OWN_METRICS = named(About.VERSION, About.CHAIN)
"""What graceful measures on a version itself, or over all of its ancestors together."""

COMPARISON_METRICS = named(About.ANCESTOR)
"""What graceful measures against each ancestor."""

PAIR_METRICS = named(About.PAIR)
"""What graceful measures of a query model on each gallery, and of a gallery model for each of its query models."""

ADAPTER_METRICS = named(About.ADAPTER)
"""What graceful measures of an adapter between two versions, against the old one."""

SELF = "self"
LATEST = "latest"
ALL = "all"


@dataclass(frozen=True, kw_only=True)
class Constraint:
    """A bound on one metric of the new version.

    Attributes:
        metric: Name of a measurement in the report, e.g. `negative_flip_rate`.
        direction: `at_most`: the upper end of the interval must not exceed the bound; `at_least`: the lower end must
            reach it; `above`: the lower end must exceed it (the strict compatibility criterion, bound 0).
        bound: In the unit of the metric; rates are fractions in [0, 1], not percent.
        against: `self` (the version's own measurements), `latest`, `all`, or the name of one ancestor.
    """

    metric: str
    direction: Direction
    bound: float
    against: str = ALL


def implied_direction(metric: str) -> Direction | None:
    """Return the direction of a constraint that names none; None where the metric implies none, or is not known."""
    known = find(metric)
    return None if known is None or known.better is Better.EITHER else DIRECTIONS[known.better][0]
