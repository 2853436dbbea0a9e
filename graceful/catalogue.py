"""Every metric of a version: what it is about, which values are good, its unit and range. Runs in every process.

Names, words and floats only. The gate's constraints, the spec and the evaluation derive what they know of a metric from
here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from math import inf
from types import MappingProxyType


class Better(StrEnum):
    """Which values of a metric are good."""

    LOWER = "lower"
    HIGHER = "higher"
    EITHER = "either"
    """The metric describes the data or an old version; what is good about it depends on who asks."""


class About(StrEnum):
    """What a metric is measured on."""

    VERSION = "version"
    CHAIN = "chain"
    """All ancestors of a version together."""
    ANCESTOR = "ancestor"
    """A version against each of its ancestors."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One entry of the catalogue.

    Attributes:
        name: As reports and specs write it.
        about: What it is measured on.
        better: Which values are good.
        lowest: Smallest value that it, and a bound on it, may have.
        highest: Largest value that it, and a bound on it, may have; infinite where there is none.
        unit: `fraction`: 0.02 is two percent; `points`: a difference of two fractions; `flips`: a number of flips.
        retrieval: Whether only an evaluation with retrieval measures it.
        measured: False: reported as undefined until shares of usage are recorded, so that no bound could be met.
    """

    name: str
    about: About
    better: Better
    lowest: float = 0.0
    highest: float = 1.0
    unit: str = "fraction"
    retrieval: bool = False
    measured: bool = True


def _version(name: str, better: Better, *, retrieval: bool = False) -> Metric:
    return Metric(name=name, about=About.VERSION, better=better, retrieval=retrieval)


def _chain(name: str, *, measured: bool = True) -> Metric:
    return Metric(name=name, about=About.CHAIN, better=Better.LOWER, measured=measured)


def _ancestor(name: str, better: Better, *, retrieval: bool = False) -> Metric:
    return Metric(name=name, about=About.ANCESTOR, better=better, retrieval=retrieval)


def _change(name: str, better: Better, *, retrieval: bool = False) -> Metric:
    """A difference between the new version and an ancestor."""
    return Metric(name=name, about=About.ANCESTOR, better=better, lowest=-1.0, unit="points", retrieval=retrieval)


_ENTRIES = (
    _version("error_rate", Better.LOWER),
    _version("self_test_recall_at_1", Better.HIGHER, retrieval=True),
    _version("self_test_map", Better.HIGHER, retrieval=True),
    _chain("chain_max_nfr"),
    _chain("chain_mean_nfr"),
    _chain("usage_weighted_nfr", measured=False),
    _chain("union_nfr"),
    _chain("unanimous_nfr"),
    _chain("step_nfr"),
    Metric(name="cumulative_negative_flips", about=About.CHAIN, better=Better.LOWER, highest=inf, unit="flips"),
    _ancestor("negative_flip_rate", Better.LOWER),
    _ancestor("positive_flip_rate", Better.HIGHER),
    _ancestor("relative_nfr", Better.LOWER),  # may exceed 1, which is worse than independent errors: no bound needs it
    _ancestor("macro_nfr", Better.LOWER),
    _ancestor("negative_flip_impact", Better.LOWER),
    _ancestor("negative_flip_severity", Better.LOWER),
    _ancestor("severe_flip_share", Better.LOWER),
    _ancestor("backward_trust", Better.HIGHER),
    _ancestor("backward_error", Better.HIGHER),  # the share of errors that the ancestor made as well: none of them new
    _ancestor("inconsistency", Better.LOWER),
    _ancestor("new_error_rate", Better.LOWER),
    _ancestor("old_error_rate", Better.EITHER),
    _change("error_rate_change", Better.LOWER),
    _ancestor("shared_class_coverage", Better.HIGHER),
    _ancestor("cross_test_recall_at_1", Better.HIGHER, retrieval=True),
    _ancestor("cross_test_map", Better.HIGHER, retrieval=True),
    _change("cross_test_gain_recall_at_1", Better.HIGHER, retrieval=True),
    _change("cross_test_gain_map", Better.HIGHER, retrieval=True),
    _ancestor("old_old_recall_at_1", Better.EITHER, retrieval=True),
    _ancestor("old_old_map", Better.EITHER, retrieval=True),
    _ancestor("retrieval_nfr", Better.LOWER, retrieval=True),
    _ancestor("retrieval_nfr_backfilled", Better.LOWER, retrieval=True),
)

METRICS: Mapping[str, Metric] = MappingProxyType({metric.name: metric for metric in _ENTRIES})
"""Name -> metric, in the order in which reports list them."""


def named(*about: About) -> tuple[str, ...]:
    """Names of the metrics that are measured on one of these."""
    return tuple(metric.name for metric in _ENTRIES if metric.about in about)
