"""Every metric of a version: what it is about, which values are good, its unit and range. Runs in every process.

Names, words and floats only. The gate's constraints, the spec and the evaluation derive what they know of a metric from
here. Other packages add metrics through the entry-point group `graceful.metrics`: the entry point's name is the
metric's, its value a `Metric` with a function that measures it.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from functools import partial
from math import inf
from types import MappingProxyType

from graceful import plugins
from graceful.metric import About, Better, Metric, fault, shown

__all__ = [
    "ADAPTED",
    "GROUP",
    "METRICS",
    "PAIRED",
    "About",
    "Better",
    "Metric",
    "find",
    "named",
    "others",
    "recorded",
    "shown",
    "unavailable",
    "unit_of",
]

GROUP = "graceful.metrics"


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
"""Ends of the names of metrics of a search -> what they measure."""


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
