"""Scores of two models in one list: how a cosine of one becomes comparable with a cosine of the other. Driver, NumPy.

Cosines of two models have different spreads: 0.8 may be a near neighbour for one and any pair for the other. For ids
that have a vector in both spaces, the scores of near pairs are brought to the same mean. Within a space a vector's
cosine with itself is 1, and stays 1; between two spaces there is no such point, and the spread is matched as well.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from graceful.index.manifest import Calibration

NEAR = 10
"""Neighbours of each vector whose scores are compared."""
FEWEST, MOST = 32, 1024
"""Pairs of vectors below which scores are not calibrated, and above which only some are used."""
WIDEST = 20.0
"""Largest scale, and one over the smallest: beyond that the scores say nothing."""


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
    own = _without_itself(queries[rows] @ vectors[rows].T)
    target = _without_itself(new[rows] @ new[rows].T)
    near = _nearest(own) | _nearest(target)
    first, second = own[near].astype(np.float64), target[near].astype(np.float64)
    within = query == gallery
    spread = float(1.0 - first.mean() if within else first.std())
    if spread <= 0.0:
        return None
    scale = float(np.clip((1.0 - second.mean() if within else second.std()) / spread, 1.0 / WIDEST, WIDEST))
    shift = 1.0 - scale if within else float(second.mean() - scale * first.mean())
    return Calibration(query=query, gallery=gallery, scale=scale, shift=shift, pairs=int(near.sum()))


def _without_itself(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    np.fill_diagonal(scores, -np.inf)
    return scores


def _nearest(scores: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return [N, N] whether a column is among the nearest of a row."""
    count = min(NEAR, len(scores) - 1)
    columns = np.argpartition(-scores, count - 1, axis=1)[:, :count]
    near = np.zeros(scores.shape, dtype=np.bool_)
    np.put_along_axis(near, columns, values=True, axis=1)
    return near & np.isfinite(scores)
