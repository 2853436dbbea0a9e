"""Two searches of the same queries, result by result: overlap, rank-biased overlap, relevance. Driver, NumPy.

Results are ids, best first; an empty id is a place that nothing fills. Only the first k results are known, so recall
and NDCG look no further.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from graceful.errors import DataError
from graceful.metrics.intervals import Evidence, paired_difference, proportion, statistic
from graceful.report import Measurement

PERSISTENCE = 0.9
"""Persistence of rank-biased overlap: the share of readers who look at the next result; 86 % of the weight is on the
first ten."""
Ids = NDArray[np.str_]
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Relevance:
    """What answers the queries, as far as it was returned.

    Attributes:
        first, second: [Q, k] grades of the results of either search, 0 or more.
        ideal: [Q, k] the best grades that there are for each query, highest first.
    """

    first: Floats
    second: Floats
    ideal: Floats

    @property
    def judged(self) -> NDArray[np.bool_]:
        """Return [Q] whether something answers the query."""
        return np.asarray(self.ideal[:, 0] > 0)

    def take(self, rows: NDArray[Any]) -> Self:
        """Return that of some queries."""
        return type(self)(first=self.first[rows], second=self.second[rows], ideal=self.ideal[rows])

    @classmethod
    def of_labels(
        cls,
        queries: NDArray[Any],
        results: tuple[NDArray[Any], NDArray[Any]],
        counts: Mapping[Any, int],
        *,
        stored: NDArray[np.bool_] | None = None,
    ) -> Self:
        """Return relevance by equal labels.

        Args:
            queries: [Q] labels.
            results: [Q, k] labels of the results of either search; empty where there is none.
            counts: Label -> items of the gallery that have it.
            stored: [Q] the query itself is one of them, and no answer; None: none is.
        """
        depth = results[0].shape[1]
        positives = np.array([counts.get(label, 0) for label in queries.tolist()])
        positives = positives if stored is None else positives - stored
        first, second = ((side == queries[:, None]).astype(np.float64) for side in results)
        return cls(first=first, second=second, ideal=(np.arange(depth) < positives[:, None]).astype(np.float64))

    @classmethod
    def of_grades(cls, ids: Ids, results: tuple[Ids, Ids], grades: Mapping[tuple[str, str], float]) -> Self:
        """Return relevance by judged pairs, or by clicks, which are judgments of grade 1.

        Args:
            ids: [Q] of the queries.
            results: [Q, k] ids of the results of either search.
            grades: Query and item -> grade; what is not listed is irrelevant.
        """
        depth = results[0].shape[1]
        names = ids.tolist()
        best: dict[str, list[float]] = {name: [] for name in names}
        for (query, _), grade in grades.items():
            if query in best and grade > 0:
                best[query].append(grade)
        ideal = np.zeros((len(names), depth))
        for row, name in enumerate(names):
            top = sorted(best[name], reverse=True)[:depth]
            ideal[row, : len(top)] = top

        def graded(side: Ids) -> Floats:
            rows = zip(names, side.tolist(), strict=True)
            return np.array([[grades.get((name, item), 0.0) for item in items] for name, items in rows])

        first, second = (graded(side).reshape(len(names), depth) for side in results)
        return cls(first=first, second=second, ideal=ideal)


def overlap(first: Ids, second: Ids) -> Floats:
    """Return [Q] the share of the first k results that both searches return, of the larger number returned."""
    shared = ((first[:, :, None] == second[:, None, :]) & (first != "")[:, :, None]).any(axis=2).sum(axis=1)
    returned = np.maximum((first != "").sum(axis=1), (second != "").sum(axis=1))
    return np.asarray(np.where(returned > 0, shared / np.maximum(returned, 1), 1.0), dtype=np.float64)


def rank_biased_overlap(first: Ids, second: Ids, *, persistence: float = PERSISTENCE) -> Floats:
    """Return [Q] the rank-biased overlap, extrapolated from the first k results: 1 for the same order, 0 for others.

    Args:
        first: [Q, k] ids; an empty one agrees with no other.
        second: [Q, k]
        persistence: p in (0, 1): depth d counts with p^(d-1).

    Source: Webber, Moffat and Zobel 2010, equation 30 for two lists of one depth.
    """
    if first.shape != second.shape:
        raise DataError(f"rank-biased overlap: needs lists of one depth, got {first.shape} and {second.shape}")
    same = (first[:, :, None] == second[:, None, :]) & (first != "")[:, :, None]
    ranks = np.arange(first.shape[1])
    met = np.maximum(ranks[:, None], ranks[None, :])  # the depth at which a shared item is in both lists
    shared = np.stack([(same & (met <= depth)).sum(axis=(1, 2)) for depth in ranks], axis=1)
    agreement = shared / (ranks + 1.0)
    weights = (1.0 - persistence) * persistence**ranks
    return np.asarray(agreement @ weights + agreement[:, -1] * persistence ** len(ranks))


def gain(grades: Floats, ideal: Floats) -> Floats:
    """Return [Q] the normalised discounted cumulative gain of the first k results; NaN where nothing answers."""
    discounts = 1.0 / np.log2(np.arange(grades.shape[1]) + 2.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray((grades @ discounts) / (ideal @ discounts))


def measured(
    first: Ids,
    second: Ids,
    relevance: Relevance | None,
    groups: NDArray[Any] | None,
    *,
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, Measurement]:
    """Measure two searches of the same queries.

    Args:
        first: [Q, k] ids that search A returns.
        second: [Q, k] those of search B.
        relevance: What answers the queries; None: it is not known.
        groups: [Q] what belongs together; None: independent queries.
        draws: Bootstrap draws.
        seed: The seed of the draws.

    Returns:
        `overlap`, `rank_biased_overlap`, `first_result_changed`; with relevance also `a_*`, `b_*` and `gain_*` (B minus
        A, paired by query) for recall at 1, recall at k and NDCG at k, `retrieval_nfr` and `retrieval_pfr`.
    """
    evidence = Evidence.of(groups, draws=draws, seed=seed)
    depth = first.shape[1]
    found = {
        f"overlap_at_{depth}": _mean(overlap(first, second), evidence),
        "rank_biased_overlap": _mean(rank_biased_overlap(first, second), evidence),
        "first_result_changed": proportion(first[:, 0] != second[:, 0], evidence, empty="no queries"),
    }
    if relevance is None:
        return found
    judged = relevance.judged
    known, evidence = relevance.take(judged), evidence.at(judged)
    left_out = int((~judged).sum())
    reason = f"{left_out} of {len(judged)} queries have no known answer and are left out" if left_out else None
    empty = "no query has a known answer"
    right = np.asarray(known.first[:, 0] > 0), np.asarray(known.second[:, 0] > 0)
    found["retrieval_nfr"] = proportion(right[0] & ~right[1], evidence, empty=empty, reason=reason)
    found["retrieval_pfr"] = proportion(~right[0] & right[1], evidence, empty=empty, reason=reason)
    hits = np.asarray((known.first > 0).any(axis=1)), np.asarray((known.second > 0).any(axis=1))
    gains = gain(known.first, known.ideal), gain(known.second, known.ideal)
    recalls = {"recall_at_1": right, f"recall_at_{depth}": hits} if depth > 1 else {"recall_at_1": right}
    for name, sides in recalls.items():
        for letter, side in zip("ab", sides, strict=True):
            found[f"{letter}_{name}"] = proportion(side, evidence, empty=empty, reason=reason)
        found[f"gain_{name}"] = paired_difference(sides[1], sides[0], evidence, reason=reason)
    for letter, values in zip("ab", gains, strict=True):
        found[f"{letter}_ndcg_at_{depth}"] = _mean(values, evidence, reason=reason)
    found[f"gain_ndcg_at_{depth}"] = paired_difference(gains[1], gains[0], evidence, reason=reason)
    return found


def worst(first: Ids, second: Ids, relevance: Relevance | None) -> NDArray[np.int64]:
    """Return the queries, those that got worst first: by lost NDCG where it is known, then by rank-biased overlap."""
    similarity = rank_biased_overlap(first, second)
    if relevance is None:
        return np.lexsort((np.arange(len(first)), similarity)).astype(np.int64)
    change = np.nan_to_num(gain(relevance.second, relevance.ideal) - gain(relevance.first, relevance.ideal))
    return np.lexsort((np.arange(len(first)), similarity, change)).astype(np.int64)


def _mean(values: Floats, evidence: Evidence, *, reason: str | None = None) -> Measurement:
    columns = np.stack([values, np.ones_like(values)], axis=1)
    return statistic(columns, lambda sums: np.asarray(sums[..., 0] / sums[..., 1]), evidence, reason=reason)
