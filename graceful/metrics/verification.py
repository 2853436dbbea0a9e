"""Verification and open-set identification at a fixed false rate. Runs in driver and workers, NumPy.

Thresholds are scores that occurred: the smallest one whose false rate is within the bound, without interpolation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from graceful.errors import DataError
from graceful.metrics.intervals import proportion
from graceful.metrics.retrieval import Embeddings, Ranking, normalised
from graceful.report import Measurement

ENOUGH = 10
"""Accepted impostors that a false rate must allow before it means anything."""
_CELLS = 4_000_000


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Similarities of pairs: higher is more alike.

    Attributes:
        genuine: [P] pairs that share the label.
        impostor: Scores of the other pairs; all of them, or only the largest.
        impostors: How many other pairs there are.
    """

    genuine: NDArray[np.float32]
    impostor: NDArray[np.float32]
    impostors: int


def threshold_at(scores: NDArray[np.floating], *, total: int, rate: float) -> float | None:
    """Smallest score t such that at most `rate` of `total` scores lie above t.

    Args:
        scores: The largest of the `total` scores, at least rate x total + 1 of them.
        total: How many scores there are.
        rate: In (0, 1).

    Returns:
        None where rate x total allows fewer than 10.
    """
    if not 0.0 < rate < 1.0:
        raise DataError(f"false rate: must be in (0, 1), got {rate:g}; write 0.001 for one in a thousand")
    allowed = int(np.floor(rate * total * (1 + 1e-12)))
    if allowed < ENOUGH:
        return None
    if allowed >= len(scores):
        raise DataError(f"scores: need the {allowed + 1} largest of {total}, got {len(scores)}")
    return float(np.partition(scores, len(scores) - allowed - 1)[len(scores) - allowed - 1])


def tar_at_far(scores: Scores, far: float) -> Measurement:
    """Share of genuine pairs above the smallest threshold whose impostor rate is at most `far`.

    Returns:
        None with fewer than 10 / far impostor pairs. Pairs are not independent: there is no interval.
    """
    threshold = threshold_at(scores.impostor, total=scores.impostors, rate=far)
    if threshold is None:
        reason = f"{scores.impostors} impostor pairs; {far:g} needs {ENOUGH / far:.0f}"
        return Measurement(value=None, n=len(scores.genuine), reason=reason)
    return tar_at_threshold(scores, threshold)


def tar_at_threshold(scores: Scores, threshold: float) -> Measurement:
    """Share of genuine pairs above a given threshold, e.g. the one the old version was deployed with."""
    n = len(scores.genuine)
    if n == 0:
        return Measurement(value=None, reason="no genuine pairs")
    count = int((scores.genuine > threshold).sum())
    return Measurement(value=count / n, count=count, n=n, reason=f"threshold {threshold:.6g}")


def far_at_threshold(scores: Scores, threshold: float) -> Measurement:
    """Share of impostor pairs above a given threshold; the lowest kept score must lie below it, or all be kept."""
    if scores.impostors == 0:
        return Measurement(value=None, reason="no impostor pairs")
    if len(scores.impostor) < scores.impostors and float(scores.impostor.min()) > threshold:
        return Measurement(value=None, n=scores.impostors, reason="not enough of the largest scores were kept")
    count = int((scores.impostor > threshold).sum())
    return Measurement(value=count / scores.impostors, count=count, n=scores.impostors)


def pair_scores(queries: Embeddings, gallery: Embeddings, *, largest: int = 1_000_000) -> Scores:
    """Similarities of all query-gallery pairs; an id is not paired with itself.

    Args:
        queries: [Q, d]
        gallery: [G, d]
        largest: How many impostor scores to keep, the largest ones: bounds the memory.
    """
    queries, gallery = queries.unique(where="queries"), gallery.unique(where="gallery")
    left, right = normalised(queries.vectors), normalised(gallery.vectors)
    genuine, kept, impostors = [], np.zeros(0, dtype=np.float32), 0
    step = max(1, _CELLS // max(len(gallery), 1))
    for start in range(0, len(queries), step):
        rows = slice(start, start + step)
        scores = np.nan_to_num((left[rows] @ right.T).astype(np.float32), nan=-np.inf)
        same = queries.labels[rows, None] == gallery.labels[None, :]
        itself = queries.ids[rows, None] == gallery.ids[None, :]
        genuine.append(scores[same & ~itself])
        others = scores[~same & ~itself]
        impostors += len(others)
        kept = _largest(np.concatenate([kept, others]), largest)
    matched = np.concatenate(genuine) if genuine else np.zeros(0, dtype=np.float32)
    return Scores(genuine=matched, impostor=kept, impostors=impostors)


def _largest(scores: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    return scores if len(scores) <= count else np.partition(scores, len(scores) - count)[len(scores) - count :]


def tpir_at_fpir(ranking: Ranking, fpir: float, *, draws: int = 1000, seed: int = 0) -> Measurement:
    """Open-set identification: share of searches with a mate that rank it first, above the threshold.

    Args:
        ranking: Queries with and without positives in the gallery.
        fpir: Highest share of searches **without** a mate whose best score may exceed the threshold.
        draws: Bootstrap draws.
        seed: Seed of the draws.

    Returns:
        None with fewer than 10 / fpir searches without a mate.
    """
    mated = ranking.judged
    strangers = ranking.top_score[~mated]
    threshold = threshold_at(strangers, total=len(strangers), rate=fpir)
    if threshold is None:
        reason = f"{len(strangers)} searches without a mate; {fpir:g} needs {ENOUGH / fpir:.0f}"
        return Measurement(value=None, n=int(mated.sum()), reason=reason)
    hit = (ranking.first_hit[mated] == 1) & (ranking.top_score[mated] > threshold)
    evidence = ranking.evidence(draws=draws, seed=seed)
    return proportion(hit, evidence, empty="no search has a mate", reason=f"threshold {threshold:.6g}")


tnir_at_fpir = tpir_at_fpir
