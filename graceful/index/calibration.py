"""Scores of two models in one list: what a cosine of one says about the cosine of the other. Driver, NumPy.

Cosines of two models have different spreads, and the old model is the less reliable one: 0.8 may be a near neighbour
for one and any pair for the other. For ids that have a vector in both spaces, both scores of every pair are known, and
a score is replaced by what the new model's score of such a pair is on average. Order within a space is kept. Within a
space a vector's cosine with itself is 1 and stays 1; between two spaces there is no such point.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from graceful.index.manifest import Calibration

FEWEST, MOST = 32, 1024
"""Pairs of vectors below which scores are not calibrated, and above which only some are used."""
SHARES = (0.25, 0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995)
"""Quantiles of the scores between which they are averaged: close where the best results are."""
LEAST = 20
"""Pairs of scores that an average is made of."""
SLOPE = 1e-4
"""Least slope, so that equal scores come from equal ones only."""


def calibrated(
    queries: NDArray[np.float32], vectors: NDArray[np.float32], new: NDArray[np.float32], *, query: str, gallery: str
) -> Calibration | None:
    """Return how scores of queries on vectors compare with scores within the new space; None: too little is known.

    Args:
        queries: [N, d] of some ids in the space of the queries.
        vectors: [N, d] of the same ids in the space of the vectors.
        new: [N, e] of the same ids in the new space.
        query: Name of the space of the queries.
        gallery: Name of the space of the vectors.
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
    """Return scores as they compare with those of the new space; what is not finite stays."""
    if calibration is None:
        return scores
    known, expected = np.asarray(calibration.scores), np.asarray(calibration.expected)
    made = np.interp(scores, known, expected) + SLOPE * (scores - 1.0)
    steepest = (expected[1] - expected[0]) / (known[1] - known[0])
    below = scores < known[0]
    made[below] += (scores[below] - known[0]) * steepest
    return np.where(np.isfinite(scores), made, scores)
