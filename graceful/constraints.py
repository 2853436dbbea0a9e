"""What must hold between a new version and its ancestors: floats and names only, no torch. Runs in every process."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Direction(StrEnum):
    """Which side of the bound is good. The judged value is the unfavourable end of the interval."""

    AT_MOST = "at_most"
    AT_LEAST = "at_least"
    ABOVE = "above"


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
