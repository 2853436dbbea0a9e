"""Retrieval by nearest neighbour: recall (CMC), reciprocal rank, average precision, NDCG. Driver and workers, NumPy.

Ranking is by cosine similarity, computed in double precision and rounded to 2^-24 (the resolution of fp32), then by
gallery id: equal similarities are equal, and the order does not depend on how the work is split, on threads, or on the
order of the lists. A gallery item with the query's own id is never a result. Queries go through in chunks; memory does
not grow with queries x gallery.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from graceful.errors import DataError
from graceful.metrics.intervals import Evidence, proportion, statistic
from graceful.metrics.join import encode, sorted_unique
from graceful.metrics.judgments import Judgments
from graceful.report import Measurement

DEPTH = 10
"""Results that NDCG and recall beyond the first look at."""
_CELLS = 4_000_000
_LOW = np.uint64(0xFFFFFFFF)
_UNREACHABLE = 0xFFFFFFFE
_ITSELF = np.uint64(0xFFFFFFFF << 32)
_GRID = 2.0**24
NEVER = np.iinfo(np.int64).max
"""Rank of a hit that does not exist."""


@dataclass(frozen=True, kw_only=True)
class Embeddings:
    """One version's embeddings of one split.

    Attributes:
        ids: [N] sample ids; repeated ids must have equal content.
        labels: [N] class names, in one space for queries and gallery.
        vectors: [N, d]; need not be normalised. A row with NaN or infinity is never found and never right.
        groups: [N] what belongs together; None: independent ids.
        judgments: Of queries, which items answer them; None: those of the same label.
    """

    ids: NDArray[Any]
    labels: NDArray[Any]
    vectors: NDArray[np.floating[Any]]
    groups: NDArray[Any] | None = None
    judgments: Judgments | None = None

    def __post_init__(self) -> None:
        if self.vectors.ndim != 2 or self.vectors.shape[1] == 0:
            raise DataError(f"embeddings.vectors: must be [N, d] with d > 0, got shape {self.vectors.shape}")
        for name, column in (("labels", self.labels), ("vectors", self.vectors), ("groups", self.groups)):
            if column is not None and len(column) != len(self.ids):
                raise DataError(f"embeddings.{name}: must have {len(self.ids)} rows like the ids, got {len(column)}")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def size(self) -> int:
        """Return d, the length of a vector."""
        return int(self.vectors.shape[1])

    def unique(self, *, where: str = "embeddings") -> Self:
        """Return each id once, in the order of the ids.

        Raises:
            DataError: An id occurs twice with different label, group or vector.
        """
        columns = {"labels": self.labels, "vectors": self.vectors, "groups": self.groups}
        rows = sorted_unique(self.ids, columns, where=where)
        groups = None if self.groups is None else self.groups[rows]
        return replace(self, ids=self.ids[rows], labels=self.labels[rows], vectors=self.vectors[rows], groups=groups)

    def aligned(self, size: int) -> Self:
        """Return the vectors cut, or padded with zeros, to `size` components."""
        vectors = self.vectors[:, :size]
        if self.size < size:
            vectors = np.pad(vectors, ((0, 0), (0, size - self.size)))
        return replace(self, vectors=vectors)


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """The results of each query, in the order of the query ids.

    Attributes:
        ids: [Q]
        groups: [Q] or None.
        positives: [Q] gallery items that answer the query, itself left out; 0: excluded from the averages.
        first_hit: [Q] int64, rank of the first positive, from 1; `NEVER` where there is none.
        average_precision: [Q] precision at each hit, averaged over the positives; NaN where there are none.
        gain: [Q] normalised discounted cumulative gain of the first ten results; NaN where there are no positives.
        not_finite: [Q] the query vector is not finite; counts as wrong.
    """

    ids: NDArray[Any]
    groups: NDArray[Any] | None
    positives: NDArray[np.int64]
    first_hit: NDArray[np.int64]
    average_precision: NDArray[np.float64]
    gain: NDArray[np.float64]
    not_finite: NDArray[np.bool_]

    @property
    def judged(self) -> NDArray[np.bool_]:
        """Return [Q] whether a query has at least one positive."""
        return np.asarray(self.positives > 0)

    def evidence(self, *, draws: int, seed: int) -> Evidence:
        """Return the groups of the judged queries, with draws and seed."""
        groups = None if self.groups is None else self.groups[self.judged]
        return Evidence.of(groups, draws=draws, seed=seed)

    @property
    def caveat(self) -> str | None:
        """Say how many queries were left out or have no finite vector; None where none."""
        left_out, broken = int((~self.judged).sum()), int((self.not_finite & self.judged).sum())
        reasons = []
        if left_out:
            reasons.append(f"{left_out} of {len(self.ids)} queries have no positive in the gallery and are left out")
        if broken:
            reasons.append(f"{broken} query vectors are not finite and count as wrong")
        return "; ".join(reasons) or None


def rank(queries: Embeddings, gallery: Embeddings) -> Ranking:
    """Search the gallery with every query.

    Args:
        queries: [Q, d]
        gallery: [G, d]

    Raises:
        DataError: Vectors of different length, an empty gallery, or conflicting duplicates.
    """
    queries, gallery = queries.unique(where="queries"), gallery.unique(where="gallery")
    if queries.size != gallery.size:
        raise DataError(
            f"queries have {queries.size} components, the gallery {gallery.size}; align them with Embeddings.aligned"
        )
    if len(gallery) == 0:
        raise DataError("gallery: is empty; give at least one item")
    relevance = _relevance(queries, gallery)
    query_columns = _query_columns(queries.ids, gallery.ids)
    query_vectors, gallery_vectors = normalised(queries.vectors), normalised(gallery.vectors)
    step = max(1, _CELLS // len(gallery))
    chunks = [(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0), np.zeros(0))]
    for start in range(0, len(queries), step):
        stop = min(start + step, len(queries))
        scores = query_vectors[start:stop] @ gallery_vectors.T
        chunks.append(_rank_chunk(scores, query_columns[start:stop], partial(relevance, start, stop)))
    positives, first_hit, precision, gain = (np.concatenate(column) for column in zip(*chunks, strict=True))
    broken = ~np.isfinite(query_vectors.sum(axis=1))
    wrong = broken & (positives > 0)
    return Ranking(
        ids=queries.ids,
        groups=queries.groups,
        positives=positives,
        first_hit=np.where(wrong, NEVER, first_hit),
        average_precision=np.where(wrong, 0.0, precision),
        gain=np.where(wrong, 0.0, gain),
        not_finite=np.asarray(broken),
    )


Relevance = Callable[[int, int, NDArray[np.int64]], NDArray[Any]]
"""First query, last query (not included), order of the gallery for each [B, G] -> grades in that order [B, G]."""


def _relevance(queries: Embeddings, gallery: Embeddings) -> Relevance:
    """Return what grades the items of a gallery, both with sorted ids: judgments, or equal labels as 1."""
    if queries.judgments is not None:
        grid = queries.judgments.grid(queries.ids, gallery.ids)
        return lambda start, stop, order: np.take_along_axis(grid.block(start, stop), order, axis=1)
    table: dict[Any, int] = {}
    query_labels, gallery_labels = encode(table, queries.labels), encode(table, gallery.labels)
    return lambda start, stop, order: gallery_labels[order] == query_labels[start:stop, None]


def _query_columns(query_ids: NDArray[Any], gallery_ids: NDArray[Any]) -> NDArray[np.int64]:
    """Return [Q] the gallery column of each query itself; -1 where it is not in the gallery."""
    column = {name: index for index, name in enumerate(gallery_ids.tolist())}
    return np.array([column.get(name, -1) for name in query_ids.tolist()], dtype=np.int64)


def normalised(vectors: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return the rows of length 1; zero rows stay zero, rows that are not finite become NaN."""
    wide = np.asarray(vectors, dtype=np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        length = np.sqrt((wide**2).sum(axis=1, keepdims=True))
        scaled = wide / np.where(length == 0.0, 1.0, length)
    scaled[~np.isfinite(wide).all(axis=1)] = np.nan
    return scaled


def _rank_chunk(
    scores: NDArray[np.float64],
    query_columns: NDArray[np.int64],
    grades_in: Callable[[NDArray[np.int64]], NDArray[Any]],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Return positives, rank of the first hit, average precision and gain of each row of similarities.

    One key per (query, item) has the distance in its high bits and the item's position, which is the order of the
    gallery ids, in its low bits; after sorting the keys, hits are read off in rank order.
    """
    rows, in_gallery = np.arange(len(scores)), query_columns >= 0
    keys = _distances(scores)
    keys <<= np.uint64(32)
    keys |= np.arange(scores.shape[1], dtype=np.uint64)
    keys[rows[in_gallery], query_columns[in_gallery]] |= _ITSELF
    keys.sort(axis=1)
    grades = grades_in((keys & _LOW).astype(np.int64))
    grades[in_gallery, -1] = 0
    positives = (grades > 0).sum(axis=1)
    row, column = np.nonzero((grades > 0) & (keys < np.uint64(_UNREACHABLE << 32)))
    hit_counts = np.bincount(row, minlength=len(scores))
    start = np.cumsum(hit_counts) - hit_counts
    hit_numbers = np.arange(len(row)) - start[row] + 1
    precision = hit_numbers / (column + 1.0)
    first_hit = np.full(len(scores), NEVER, dtype=np.int64)
    first_hit[hit_counts > 0] = column[start[hit_counts > 0]] + 1
    gain = _gain(row, column, grades[row, column], ideal=_ideal_gain(grades, positives))
    return positives, first_hit, _averaged(row, precision, positives), gain


def _gain(
    row: NDArray[np.int64], column: NDArray[np.int64], grades: NDArray[Any], *, ideal: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the normalised discounted cumulative gain of each query: sum of grade / log2(rank + 1), over the ideal."""
    near = column < DEPTH
    total = np.bincount(row[near], weights=grades[near] / np.log2(column[near] + 2.0), minlength=len(ideal))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(ideal > 0, total / ideal, np.nan))


def _ideal_gain(grades: NDArray[Any], positives: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the gain of each query if its best items came first."""
    discounts = 1.0 / np.log2(np.arange(DEPTH) + 2.0)
    if grades.dtype == np.bool_:
        return np.concatenate(([0.0], np.cumsum(discounts)))[np.minimum(positives, DEPTH)]
    depth = min(DEPTH, grades.shape[1])
    best = -np.sort(np.partition(-grades, depth - 1, axis=1)[:, :depth], axis=1)
    return np.asarray((best * discounts[:depth]).sum(axis=1))


def _averaged(
    row: NDArray[np.int64], precision: NDArray[np.float64], divisor: NDArray[np.int64]
) -> NDArray[np.float64]:
    total = np.bincount(row, weights=precision, minlength=len(divisor))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(divisor > 0, total / divisor, np.nan))


def _distances(scores: NDArray[np.float64]) -> NDArray[np.uint64]:
    """Return 1 - cosine in steps of 2^-24, in place of the scores; what is not finite is farther than any other."""
    np.subtract(1.0, scores, out=scores)
    np.multiply(scores, _GRID, out=scores)
    np.rint(scores, out=scores)
    np.nan_to_num(scores, copy=False, nan=_UNREACHABLE)
    return scores.astype(np.uint64)


def recall_at_k(ranking: Ranking, k: int = 1, *, draws: int = 1000, seed: int = 0) -> Measurement:
    """Return the share of queries with a positive among the first k results; queries without positives are left out."""
    hit = ranking.first_hit[ranking.judged] <= k
    evidence = ranking.evidence(draws=draws, seed=seed)
    return proportion(hit, evidence, empty="no query has a positive in the gallery", reason=ranking.caveat)


def mean_average_precision(ranking: Ranking, *, draws: int = 1000, seed: int = 0) -> Measurement:
    """Return the mean over queries of their average precision over the whole gallery.

    Args:
        ranking: Queries without positives are left out.
        draws: Bootstrap draws.
        seed: Seed of the draws.
    """
    return _mean(ranking.average_precision, ranking, draws=draws, seed=seed)


def mean_reciprocal_rank(ranking: Ranking, *, draws: int = 1000, seed: int = 0) -> Measurement:
    """Return the mean over queries of 1 / rank of the first positive; arguments as of `mean_average_precision`."""
    found = ranking.first_hit < NEVER
    return _mean(np.where(found, 1.0 / ranking.first_hit, 0.0), ranking, draws=draws, seed=seed)


def ndcg(ranking: Ranking, *, draws: int = 1000, seed: int = 0) -> Measurement:
    """Return the mean over queries of the normalised discounted cumulative gain of the first ten results.

    A result's gain is its grade, 1 where labels decide; arguments as of `mean_average_precision`.
    """
    return _mean(ranking.gain, ranking, draws=draws, seed=seed)


def _mean(values: NDArray[np.float64], ranking: Ranking, *, draws: int, seed: int) -> Measurement:
    judged = values[ranking.judged]
    columns = np.stack([judged, np.ones_like(judged)], axis=1)
    return statistic(
        columns,
        lambda sums: np.asarray(sums[..., 0] / sums[..., 1]),
        ranking.evidence(draws=draws, seed=seed),
        undefined="no query has a positive in the gallery",
        reason=ranking.caveat,
    )


def measured(ranking: Ranking, *, draws: int = 1000, seed: int = 0) -> dict[str, Measurement]:
    """Return the measurements of one ranking, by the end of the metric's name."""
    return {
        "recall_at_1": recall_at_k(ranking, draws=draws, seed=seed),
        "recall_at_10": recall_at_k(ranking, DEPTH, draws=draws, seed=seed),
        "mrr": mean_reciprocal_rank(ranking, draws=draws, seed=seed),
        "ndcg_at_10": ndcg(ranking, draws=draws, seed=seed),
        "map": mean_average_precision(ranking, draws=draws, seed=seed),
    }


def self_test(queries: Embeddings, gallery: Embeddings, *, draws: int = 1000, seed: int = 0) -> dict[str, Measurement]:
    """Search a version's own gallery: `self_test_recall_at_1` and the other names of `measured`."""
    return self_tested(rank(queries, gallery), draws=draws, seed=seed)


def self_tested(ranking: Ranking, *, draws: int = 1000, seed: int = 0) -> dict[str, Measurement]:
    """Return what `self_test` does of a ranking of a version's own gallery."""
    return {f"self_test_{name}": value for name, value in measured(ranking, draws=draws, seed=seed).items()}
