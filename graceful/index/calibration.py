"""Make the scores of two models comparable, so that one list of results can hold both. Driver, NumPy.

Cosines of two models have different distributions: 0.8 may mean a near neighbour for one model and any pair for the
other. For ids that have a vector in both spaces, both scores of every pair are known. Calibration replaces a score of
the old model by the average score that the new model gives to such pairs. It keeps the order of results within a space.
Within a space, the cosine of a vector with itself is 1 and stays 1; between two spaces there is no such fixed point.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from graceful.index.manifest import Calibration

FEWEST, MOST = 32, 1024
"""The least number of pairs of vectors for a calibration, and the most that it uses."""
SHARES = (0.25, 0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995)
"""Quantiles that divide the scores into parts, each of which is averaged; the parts are small at the highest scores."""
LEAST = 20
"""The least number of pairs of scores in a part."""
SLOPE = 1e-4
"""The least slope of the calibration, so that different scores stay different."""


def calibrated(
    queries: NDArray[np.float32], vectors: NDArray[np.float32], new: NDArray[np.float32], *, query: str, gallery: str
) -> Calibration | None:
    """Return the map from scores of queries on vectors to scores within the new space; None if there are too few pairs.

    Args:
        queries: [N, d] vectors of some ids in the space of the queries.
        vectors: [N, d] vectors of the same ids in the space that the queries search.
        new: [N, e] vectors of the same ids in the new space.
        query: The name of the space of the queries.
        gallery: The name of the space that the queries search.
    """
    if len(new) < FEWEST:
        return None
    rows = np.unique(np.linspace(0, len(new) - 1, MOST).astype(np.int64))
    others = ~np.eye(len(rows), dtype=np.bool_)
    first = (queries[rows] @ vectors[rows].T)[others].astype(np.float64)
    second = (new[rows] @ new[rows].T)[others].astype(np.float64)
    order = np.argsort(first)
    first, second = first[order], second[order]
    ends = np.unique(
        [0, *(round(share * len(first)) for share in SHARES if (1 - share) * len(first) >= LEAST), len(first)]
    )
    parts = [slice(start, end) for start, end in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)]
    scores = [float(first[part].mean()) for part in parts]
    expected = np.maximum.accumulate([float(second[part].mean()) for part in parts]).tolist()
    if query == gallery:
        scores, expected = [*scores, 1.0], [*expected, 1.0]
    kept = [number for number in range(len(scores)) if not number or scores[number] > scores[number - 1]]
    if len(kept) < 2:
        return None
    return Calibration(
        query=query,
        gallery=gallery,
        scores=tuple(scores[number] for number in kept),
        expected=tuple(expected[number] for number in kept),
        pairs=len(first),
    )


def applied(calibration: Calibration | None, scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return calibrated scores; infinite scores, which mark empty places, are kept."""
    if calibration is None:
        return scores
    known, expected = np.asarray(calibration.scores), np.asarray(calibration.expected)
    made = np.interp(scores, known, expected) + SLOPE * (scores - 1.0)
    steepest = (expected[1] - expected[0]) / (known[1] - known[0])
    below = scores < known[0]
    made[below] += (scores[below] - known[0]) * steepest
    return np.where(np.isfinite(scores), made, scores)
