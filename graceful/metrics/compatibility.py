"""May new embeddings query an old gallery? Cross-test, compatibility matrix, gains. Runs in driver and workers, NumPy.

C[i][j] is a retrieval metric with queries embedded by version i and the gallery by version j, oldest version first.
M(new, old) is the cross-test, M(new, new) the self-test; phi* is the run without any constraint (the paragon).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from graceful.errors import DataError
from graceful.metrics.intervals import Evidence, paired_difference, proportion
from graceful.metrics.join import require_same_ids
from graceful.metrics.retrieval import Embeddings, Ranking, measured, rank
from graceful.report import Measurement

Side = Literal["queries", "gallery"]
Matrix = tuple[tuple[float | None, ...], ...]
FIRST_LINK = "a chain of one version has no pairs"


def compatibility_matrix(cells: Mapping[tuple[str, str], float | None], versions: Sequence[str]) -> Matrix:
    """Arrange cells (query version, gallery version) -> value; oldest version first.

    Returns:
        T x T; None where a cell is missing (no index, not measured), never 0.

    Raises:
        DataError: A cell of a version that is not named.
    """
    unknown = sorted({name for pair in cells for name in pair} - set(versions))
    if unknown:
        raise DataError(f"compatibility_matrix: cells of {', '.join(unknown)}, which are not among the versions")
    return tuple(tuple(cells.get((query, gallery)) for gallery in versions) for query in versions)


def average_compatibility(matrix: Matrix, *, independent: Sequence[float | None] | None = None) -> Measurement:
    """Return the share of pairs of versions that meet the empirical criterion: C[i][j] > C[j][j], strictly, for j < i.

    Args:
        matrix: T x T.
        independent: Scores of each version trained without constraints, instead of the diagonal. The choice can change
            the verdict: report both.

    Returns:
        None for one version or where a cell is missing. The reason counts ties, which are not compatible.
    """
    pairs = len(matrix) * (len(matrix) - 1) // 2
    if not pairs:
        return Measurement(value=None, reason=FIRST_LINK)
    known = _below_diagonal(matrix, independent)
    if len(known) < pairs:
        return Measurement(value=None, n=pairs, reason=f"{pairs - len(known)} of {pairs} pairs are missing")
    compatible, ties = sum(cross > bar for cross, bar in known), sum(cross == bar for cross, bar in known)
    reason = f"{ties} ties, which are not compatible" if ties else None
    return Measurement(value=compatible / pairs, count=compatible, n=pairs, reason=reason)


def ties(matrix: Matrix, *, independent: Sequence[float | None] | None = None) -> int:
    """Return the number of measured pairs that equal the bar of `average_compatibility`."""
    return sum(cross == bar for cross, bar in _below_diagonal(matrix, independent))


def _below_diagonal(matrix: Matrix, independent: Sequence[float | None] | None) -> list[tuple[float, float]]:
    """Return C[i][j] and its bar for every j < i where both are known."""
    bars = [matrix[j][j] for j in range(len(matrix))] if independent is None else independent
    pairs = [(matrix[i][j], bars[j]) for i in range(len(matrix)) for j in range(i)]
    return [(cross, bar) for cross, bar in pairs if cross is not None and bar is not None]


def average_multimodel_accuracy(matrix: Matrix) -> Measurement:
    """Return the mean of the lower triangle with the diagonal, true zeros included; None where a cell is missing."""
    return _mean([matrix[i][j] for i in range(len(matrix)) for j in range(i + 1)], empty="no versions")


def backward_compatibility(matrix: Matrix) -> Measurement:
    """Return what the newest version gains on older galleries, on average: mean over k < T of C[T][k] - C[k][k]."""
    last = len(matrix) - 1
    return _mean([_minus(matrix[last][k], matrix[k][k]) for k in range(last)], empty=FIRST_LINK)


def forward_compatibility(matrix: Matrix) -> Measurement:
    """Return what is lost, on average, by not backfilling at each step: mean over t of C[t][t-1] - C[t][t]."""
    return _mean([_minus(matrix[t][t - 1], matrix[t][t]) for t in range(1, len(matrix))], empty=FIRST_LINK)


def _minus(minuend: float | None, subtrahend: float | None) -> float | None:
    return None if minuend is None or subtrahend is None else minuend - subtrahend


def _mean(values: Sequence[float | None], *, empty: str) -> Measurement:
    known = [value for value in values if value is not None]
    if not values:
        return Measurement(value=None, reason=empty)
    if len(known) < len(values):
        reason = f"{len(values) - len(known)} of {len(values)} cells are missing"
        return Measurement(value=None, n=len(values), reason=reason)
    return Measurement(value=math.fsum(known) / len(known), n=len(known))


def update_gain(*, cross: float, old: float, paragon: float) -> Measurement:
    """Return the gain reached without backfill: (M(new, old) - M(old, old)) / (M(phi*, phi*) - M(old, old)).

    Always print `self_discount` next to it: a new version that gave up its own accuracy can have a large gain.
    """
    return _share(cross - old, paragon - old, "the unconstrained new version is not better than the old one")


def self_discount(*, self_test: float, paragon: float) -> float:
    """Return what compatibility costs the new version on its own gallery: M(phi*, phi*) - M(new, new)."""
    return paragon - self_test


def _share(gained: float, possible: float, reason: str) -> Measurement:
    if possible <= 0.0:
        return Measurement(value=None, reason=reason)
    return Measurement(value=gained / possible)


def retrieval_nfr(old_old: Ranking, new: Ranking, *, state: str, draws: int = 1000, seed: int = 0) -> Measurement:
    """Return the share of queries that are right at rank 1 before and wrong now, among those with a positive in both
    galleries.

    Args:
        old_old: Old queries on the old gallery.
        new: New queries on the gallery as it is now.
        state: What that gallery holds, for the reason, e.g. `old gallery`, `backfilled gallery`.
        draws: Bootstrap draws.
        seed: Seed of the draws.
    """
    judged, evidence = _judged_in_both(old_old, new, draws=draws, seed=seed)
    flips = (old_old.first_hit[judged] == 1) & (new.first_hit[judged] != 1)
    return proportion(flips, evidence, empty="no query has a positive in the gallery", reason=f"on the {state}")


def _judged_in_both(first: Ranking, second: Ranking, *, draws: int, seed: int) -> tuple[NDArray[np.bool_], Evidence]:
    require_same_ids(first.ids, second.ids, names=("old queries", "new queries"))
    judged = first.judged & second.judged
    groups = first.groups if first.groups is not None else second.groups
    return judged, Evidence.of(None if groups is None else groups[judged], draws=draws, seed=seed)


def gains(old_old: Ranking, cross: Ranking, *, draws: int, seed: int) -> dict[str, Measurement]:
    """Return `cross_test_gain_*`: what a search has more than that of old queries in the old gallery, by query."""
    judged, evidence = _judged_in_both(old_old, cross, draws=draws, seed=seed)
    right, was_right = (ranking.first_hit[judged] == 1 for ranking in (cross, old_old))
    precision, was_precision = (ranking.average_precision[judged] for ranking in (cross, old_old))
    return {
        "cross_test_gain_recall_at_1": paired_difference(right, was_right, evidence, reason=cross.caveat),
        "cross_test_gain_map": paired_difference(precision, was_precision, evidence, reason=cross.caveat),
    }


def rank_between(queries: Embeddings, gallery: Embeddings, *, older: Side) -> Ranking:
    """Search a gallery of another version, in either direction of time.

    The newer side takes the length of the older one: its first components, or zeros appended. Both are normalised only
    then, so components of the newer version beyond that length do not count, in old queries on a new gallery either.

    Args:
        queries: [Q, d]
        gallery: [G, d']
        older: Which side the older version embedded.
    """
    if older == "queries":
        return rank(queries, gallery.aligned(queries.size))
    return rank(queries.aligned(gallery.size), gallery)


class Searches:
    """Searches of one report, each done once: several of its parts rank the same queries in the same gallery.

    Called as `rank_between`, with the very objects that it was called with before.
    """

    def __init__(self) -> None:
        self._done: dict[tuple[int, int], tuple[Embeddings, Embeddings, Ranking]] = {}

    def __call__(self, queries: Embeddings, gallery: Embeddings, *, older: Side) -> Ranking:
        """Return the ranking of `rank_between`; the side makes no difference where both are of one length."""
        key = id(queries), id(gallery)  # kept alive beside it; a pair of versions has one order in time
        if key not in self._done:
            self._done[key] = queries, gallery, rank_between(queries, gallery, older=older)
        return self._done[key][2]


def compare_retrieval(
    new_queries: Embeddings,
    new_gallery: Embeddings | None,
    old_queries: Embeddings,
    old_gallery: Embeddings,
    *,
    draws: int = 1000,
    seed: int = 0,
    searches: Searches | None = None,
) -> dict[str, Measurement]:
    """Measure new queries on the old gallery against old queries on the old gallery, query by query.

    New vectors are cut to the length of the old ones, or padded with zeros, then normalised.

    Args:
        new_queries: Same ids as `old_queries`.
        new_gallery: Same ids as `old_gallery`; None: not embedded yet, `retrieval_nfr_backfilled` is left out.
        old_queries: By the old version.
        old_gallery: By the old version.
        draws: Bootstrap draws.
        seed: Seed of the draws.
        searches: Those of the report that this is part of; None: of this comparison alone.

    Returns:
        `cross_test_*` and `old_old_*` with the names of `measured`; `cross_test_gain_*`, paired differences of two of
        them, on which the strict criterion (above 0) is put; `retrieval_nfr` on the old gallery, and
        `retrieval_nfr_backfilled`.

    Raises:
        DataError: Ids do not join, labels differ, or duplicates conflict.
    """
    same_samples(new_queries, old_queries, "queries")
    search = searches or Searches()
    old_old = search(old_queries, old_gallery, older="gallery")
    cross = search(new_queries, old_gallery, older="gallery")
    measurements = gains(old_old, cross, draws=draws, seed=seed)
    for name, ranking in (("cross_test", cross), ("old_old", old_old)):
        values = measured(ranking, draws=draws, seed=seed)
        measurements |= {f"{name}_{ending}": value for ending, value in values.items()}
    measurements["retrieval_nfr"] = retrieval_nfr(old_old, cross, state="old gallery", draws=draws, seed=seed)
    if new_gallery is not None:
        same_samples(new_gallery, old_gallery, "gallery")
        backfilled = search(new_queries, new_gallery, older="gallery")
        measurements["retrieval_nfr_backfilled"] = retrieval_nfr(
            old_old, backfilled, state="backfilled gallery", draws=draws, seed=seed
        )
    return measurements


def same_samples(new: Embeddings, old: Embeddings, kind: str) -> tuple[Embeddings, Embeddings]:
    """Return both versions' embeddings of the same ids, each id once, in the order of the ids.

    Raises:
        DataError: Ids do not join, labels differ, or duplicates conflict.
    """
    new, old = new.unique(where=f"new {kind}"), old.unique(where=f"old {kind}")
    require_same_ids(new.ids, old.ids, names=(f"new {kind}", f"old {kind}"))
    differs = new.labels != old.labels
    if np.any(differs):
        example = str(new.ids[np.argmax(differs)])
        raise DataError(f"{kind}: {int(np.sum(differs))} ids have different labels in new and old, e.g. {example!r}")
    return new, old
