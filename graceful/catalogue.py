"""Every metric of a version: what it is about, which values are good, its unit and range. Runs in every process.

Names, words and floats only. The gate's constraints, the spec and the evaluation derive what they know of a metric from
here. Other packages add metrics through the entry-point group `graceful.metrics`: the entry point's name is the
metric's, its value a `Metric` with a function that measures it.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from math import inf, isfinite
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

from graceful import plugins

if TYPE_CHECKING:
    from graceful.metrics.inputs import MetricInputs
    from graceful.report import Measurement

GROUP = "graceful.metrics"
NAME = r"[a-z][a-z0-9_]{0,99}"


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
    PAIR = "pair"
    """A query model on the index of a gallery model, whichever of the two is the new version."""
    ADAPTER = "adapter"
    """An adapter between two versions, against searches without it; only `graceful adapt` measures it."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One entry of the catalogue.

    Attributes:
        name: As reports and specs write it.
        about: What it is measured on.
        better: Which values are good.
        lowest: Smallest value that it, and a bound on it, may have.
        highest: Largest value that it, and a bound on it, may have; infinite where there is none.
        unit: `fraction`: 0.02 is two percent; `points`: a difference of two fractions; any other word, such as `flips`
            or `nats`, is written behind the number.
        retrieval: Whether only an evaluation with retrieval measures it.
        measured: False: reported as undefined until shares of usage are recorded, so that no bound could be met.
        measure: Measures it, for metrics of other packages; None: graceful does.
        meaning: What it measures, in one sentence for people.
    """

    name: str
    about: About
    better: Better
    lowest: float = 0.0
    highest: float = 1.0
    unit: str = "fraction"
    retrieval: bool = False
    measured: bool = True
    measure: Callable[[MetricInputs], Measurement] | None = field(default=None, compare=False, repr=False)
    meaning: str = field(default="", compare=False, repr=False)

    def row(self) -> dict[str, Any]:
        """Return everything but the function, as JSON values; no upper end of the range is None."""
        return {
            "name": self.name,
            "about": self.about.value,
            "better": self.better.value,
            "lowest": self.lowest if isfinite(self.lowest) else None,
            "highest": self.highest if isfinite(self.highest) else None,
            "unit": self.unit,
            "retrieval": self.retrieval,
        }

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> Self:
        """Read what `row` wrote.

        Raises:
            ValueError: A key is missing, unknown, or has another value than a metric may have.
        """
        try:
            ends = {
                "lowest": -inf if row["lowest"] is None else row["lowest"],
                "highest": inf if row["highest"] is None else row["highest"],
            }
            words = {"about": About(row["about"]), "better": Better(row["better"])}
            metric = cls(**{**row, **ends, **words})
        except (KeyError, TypeError) as e:
            raise ValueError(f"not a metric: {e}") from e
        if (reason := fault(metric, metric.name)) is not None:
            raise ValueError(f"not a metric: {reason}")
        return metric


def _version(name: str, better: Better, meaning: str, *, retrieval: bool = False) -> Metric:
    return Metric(name=name, about=About.VERSION, better=better, retrieval=retrieval, meaning=meaning)


def _chain(name: str, meaning: str, *, measured: bool = True) -> Metric:
    return Metric(name=name, about=About.CHAIN, better=Better.LOWER, measured=measured, meaning=meaning)


def _ancestor(name: str, better: Better, meaning: str, *, retrieval: bool = False) -> Metric:
    return Metric(name=name, about=About.ANCESTOR, better=better, retrieval=retrieval, meaning=meaning)


def _change(name: str, better: Better, meaning: str, *, retrieval: bool = False) -> Metric:
    """Return a difference between the new version and an ancestor."""
    return Metric(
        name=name,
        about=About.ANCESTOR,
        better=better,
        lowest=-1.0,
        unit="points",
        retrieval=retrieval,
        meaning=meaning,
    )


_RANKING: Mapping[str, str] = {
    "recall_at_1": "share of queries whose first result answers them",
    "recall_at_10": "share of queries with an answer among the first ten results",
    "mrr": "mean over queries of 1 / rank of the first answer",
    "ndcg_at_10": "mean over queries of the discounted gain of the first ten results, over the best possible one",
    "map": "mean over queries of the precision at each answer, averaged over the answers",
}
"""Ends of the names of what is measured of a search -> what it says."""


def _rankings(prefix: str, better: Better, sides: str) -> tuple[Metric, ...]:
    """Return the metrics of one search; `prefix` is `self_test`, `cross_test` or `old_old`."""
    add = _version if prefix == "self_test" else _ancestor
    return tuple(
        add(f"{prefix}_{name}", better, f"{sides}: {meaning}.", retrieval=True) for name, meaning in _RANKING.items()
    )


def _pair(name: str, better: Better, meaning: str, *, points: bool = False, highest: float = 1.0) -> Metric:
    """Return a metric of a query model and a gallery model."""
    lowest, unit = (-1.0, "points") if points else (0.0, "fraction")
    return Metric(
        name=name,
        about=About.PAIR,
        better=better,
        lowest=lowest,
        highest=highest,
        unit=unit,
        retrieval=True,
        meaning=meaning,
    )


def _pairs(name: str, measure: str) -> tuple[Metric, ...]:
    """Return the metrics of a query model q on a gallery model g, by one measure of a search."""
    both, better, either = f"{measure} of queries by q on the index of g", Better.HIGHER, Better.EITHER
    alone = f"{measure} of queries by q on an index by q"
    return (
        _pair(f"pair_{name}", better, f"{both}."),
        _pair(f"pair_query_alone_{name}", either, f"{alone}."),
        _pair(f"pair_paragon_{name}", either, f"{measure} of queries by g on the index of g."),
        _pair(f"pair_reversed_{name}", better, f"{measure} of queries by g on an index by q."),
        _pair(f"pair_gain_{name}", better, f"{both}, minus that on an index by q.", points=True),
        _pair(
            f"pair_gain_over_baseline_{name}",
            better,
            f"{both}, minus that of `gallery.baseline` on an index of its own.",
            points=True,
        ),
        _pair(f"pair_share_{name}", better, f"{both}, over that of queries by g.", highest=inf),
        Metric(
            name=f"pair_gain_ratio_{name}",
            about=About.PAIR,
            better=better,
            lowest=-inf,
            highest=inf,
            retrieval=True,
            meaning=f"What q gains on the index of g, over what g has more than q: by {measure}.",
        ),
    )


ADAPTED = ("recall_at_1", "recall_at_10", "ndcg_at_10")
"""Ends of the names of what is measured of a search with an adapter."""


def _adapted(ending: str) -> tuple[Metric, ...]:
    """Return the metrics of an adapter by one measure of a search."""
    measure = {"recall_at_1": "Recall at 1", "recall_at_10": "Recall at 10", "ndcg_at_10": "NDCG at 10"}[ending]
    row = partial(Metric, about=About.ADAPTER, retrieval=True)
    return (
        row(
            name=f"adapter_share_{ending}",
            better=Better.HIGHER,
            highest=inf,
            meaning=f"{measure} of the search with the adapter, over that after embedding the whole gallery again.",
        ),
        row(
            name=f"adapter_gain_{ending}",
            better=Better.HIGHER,
            lowest=-1.0,
            unit="points",
            meaning=f"{measure} of the search with the adapter, minus that of old queries in the old gallery.",
        ),
        row(
            name=f"full_{ending}",
            better=Better.EITHER,
            meaning=f"{measure} of new queries in the gallery that the new version has embedded again.",
        ),
    )


PAIRED = ("recall_at_1", "map")
"""Ends of the names of what is measured of a query model on a gallery."""

_ENTRIES = (
    _version("error_rate", Better.LOWER, "Share of samples that the new version has wrong."),
    *_rankings("self_test", Better.HIGHER, "New queries in the new gallery"),
    _chain("chain_max_nfr", "Largest negative flip rate against any ancestor."),
    _chain("chain_mean_nfr", "Mean of the negative flip rates against the ancestors."),
    _chain("usage_weighted_nfr", "Mean of them, weighted by the traffic of each ancestor.", measured=False),
    _chain("union_nfr", "Share of samples that any ancestor has right and the new version wrong."),
    _chain("unanimous_nfr", "Share of samples that every ancestor has right and the new version wrong."),
    _chain("step_nfr", "Negative flip rate against the latest ancestor."),
    Metric(
        name="cumulative_negative_flips",
        about=About.CHAIN,
        better=Better.LOWER,
        highest=inf,
        unit="flips",
        meaning="Number of negative flips in every step of the chain, added up.",
    ),
    _ancestor("negative_flip_rate", Better.LOWER, "Share of samples that old has right and new wrong (NFR)."),
    _ancestor("positive_flip_rate", Better.HIGHER, "Share of samples that old has wrong and new right."),
    _ancestor(  # may exceed 1, which is worse than independent errors: no bound needs it
        "relative_nfr", Better.LOWER, "NFR / ((1 - error of old) x error of new): 1 for independent errors."
    ),
    _ancestor("macro_nfr", Better.LOWER, "Mean over classes of each class's negative flip rate."),
    _ancestor("negative_flip_impact", Better.LOWER, "Share of the new errors that are negative flips."),
    _ancestor("negative_flip_severity", Better.LOWER, "Mean over negative flips of p(predicted) - p(label) of new."),
    _ancestor("severe_flip_share", Better.LOWER, "Share of negative flips whose p(label) moved by a half or more."),
    _ancestor("backward_trust", Better.HIGHER, "Share of what old has right that new has right, too."),
    _ancestor(  # none of these errors is new
        "backward_error", Better.HIGHER, "Share of the new errors that old makes, too."
    ),
    _ancestor("inconsistency", Better.LOWER, "Share of samples that new has wrong with another answer than old."),
    _ancestor("new_error_rate", Better.LOWER, "Error rate of new on the samples that both can answer."),
    _ancestor("old_error_rate", Better.EITHER, "Error rate of old on the samples that both can answer."),
    _change("error_rate_change", Better.LOWER, "Error rate of new minus that of old, paired by sample."),
    _ancestor("shared_class_coverage", Better.HIGHER, "Share of samples whose class old knows."),
    *_rankings("cross_test", Better.HIGHER, "New queries in the old gallery"),
    _change(
        "cross_test_gain_recall_at_1",
        Better.HIGHER,
        "Recall at 1 of new queries in the old gallery, minus that of old queries in it.",
        retrieval=True,
    ),
    _change(
        "cross_test_gain_map",
        Better.HIGHER,
        "Mean average precision of new queries in the old gallery, minus that of old queries in it.",
        retrieval=True,
    ),
    *_rankings("old_old", Better.EITHER, "Old queries in the old gallery"),
    _ancestor(
        "retrieval_nfr",
        Better.LOWER,
        "Share of queries whose first result in the old gallery is right with old queries and wrong with new ones.",
        retrieval=True,
    ),
    _ancestor(
        "retrieval_nfr_backfilled",
        Better.LOWER,
        "The same with new queries in the new gallery.",
        retrieval=True,
    ),
    *_pairs("recall_at_1", "Recall at 1"),
    *_pairs("map", "Mean average precision"),
    *(metric for ending in ADAPTED for metric in _adapted(ending)),
)

METRICS: Mapping[str, Metric] = MappingProxyType({metric.name: metric for metric in _ENTRIES})
"""Name -> metric, in the order in which reports list them."""


def named(*about: About) -> tuple[str, ...]:
    """Return the names of graceful's own metrics that are measured on one of these."""
    return tuple(metric.name for metric in _ENTRIES if metric.about in about)


def others() -> Mapping[str, Metric]:
    """Return the metrics of other packages that can be used, by name."""
    return _registered()[0]


def unavailable() -> Mapping[str, str]:
    """Return why a metric cannot be used, for those of other packages that failed."""
    return _registered()[1]


def find(name: str) -> Metric | None:
    """Return a metric: graceful's own, one of a report that is being judged, or of another package; None: no such."""
    return METRICS.get(name) or _RECORDED.get().get(name) or others().get(name)


def unit_of(name: str) -> str:
    """Return the unit of a metric; empty where it is not known here."""
    metric = find(name)
    return "" if metric is None else metric.unit


@contextlib.contextmanager
def recorded(metrics: Mapping[str, Metric]) -> Iterator[None]:
    """Let `find` return metrics as a report has them: their packages may be missing here, or may have changed."""
    token = _RECORDED.set(metrics)
    try:
        yield
    finally:
        _RECORDED.reset(token)


def shown(value: float, unit: str, digits: int = 2) -> str:
    """Return a value with its unit: percent for fractions, points for differences of them.

    Args:
        value: As measured.
        unit: As of `Metric`; empty: none.
        digits: Behind the point of percent and points; other numbers have two significant ones more.
    """
    match unit:
        case "fraction":
            return f"{100 * value:.{digits}f} %"
        case "points":
            return f"{100 * value:.{digits}f} points"
    return f"{value:.{digits + 2}g} {unit}".rstrip()


def fault(metric: object, name: str) -> str | None:
    """Return what is wrong with what another package offers as a metric of a name; None: nothing."""
    if not isinstance(metric, Metric):
        return "which is not a graceful.catalogue.Metric"
    if metric.name != name or not re.fullmatch(NAME, name):
        return f"whose name is {metric.name!r}; both must be the same: lower case letters, digits and _, at most 100"
    words: dict[type, object] = {About: metric.about, Better: metric.better}
    if not all(isinstance(word, kind) for kind, word in words.items()):
        return "whose about and better must be members of About and Better"
    ends = (metric.lowest, metric.highest)
    if not all(type(end) in (int, float) for end in ends) or not metric.lowest < metric.highest:
        return f"whose range must be two numbers, the lower first, got {ends}"
    if not isinstance(metric.unit, str) or not metric.unit.isprintable():
        return f"whose unit must be a word, got {metric.unit!r}"
    return None


_RECORDED: ContextVar[Mapping[str, Metric]] = ContextVar("recorded metrics", default=MappingProxyType({}))


@functools.cache
def _registered() -> tuple[dict[str, Metric], dict[str, str]]:
    return plugins.collected(
        GROUP, "metric", owner=lambda name: "graceful" if name in METRICS else None, fault=_offered_fault
    )


def _offered_fault(metric: object, name: str) -> str | None:
    reason = fault(metric, name)
    if reason is None and isinstance(metric, Metric) and not callable(metric.measure):
        return "which has no function that measures it; give it measure"
    return reason
