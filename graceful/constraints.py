"""What must hold between a new version and its ancestors: floats and names only, no torch. Runs in every process."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Direction(StrEnum):
    """Which side of the bound is good. The judged value is the unfavourable end of the interval."""

    AT_MOST = "at_most"
    AT_LEAST = "at_least"
    ABOVE = "above"


CHAIN_METRICS = (
    "chain_max_nfr",
    "chain_mean_nfr",
    "usage_weighted_nfr",
    "union_nfr",
    "unanimous_nfr",
    "step_nfr",
    "cumulative_negative_flips",
)
"""Measured on a version itself but about all of its ancestors: vacuous for a first link."""

UNMEASURED = ("usage_weighted_nfr",)
"""Reported, but undefined until shares of usage are recorded: no bound on them could ever be met."""

OWN_METRICS = ("error_rate", "self_test_recall_at_1", "self_test_map", *CHAIN_METRICS)
"""What an evaluation measures on a version itself, or over all of its ancestors together."""

COMPARISON_METRICS = (
    "negative_flip_rate",
    "positive_flip_rate",
    "relative_nfr",
    "macro_nfr",
    "negative_flip_impact",
    "negative_flip_severity",
    "severe_flip_share",
    "backward_trust",
    "backward_error",
    "inconsistency",
    "new_error_rate",
    "old_error_rate",
    "error_rate_change",
    "shared_class_coverage",
    "cross_test_recall_at_1",
    "cross_test_map",
    "cross_test_gain_recall_at_1",
    "cross_test_gain_map",
    "old_old_recall_at_1",
    "old_old_map",
    "retrieval_nfr",
    "retrieval_nfr_backfilled",
)
"""What an evaluation measures against each ancestor."""

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
