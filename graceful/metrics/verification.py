"""Pair similarities and the threshold of a fixed false accept rate. Runs in driver and workers, NumPy.

A threshold is a score that occurred: the smallest one whose false rate is within the bound, without interpolation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from graceful.errors import DataError
from graceful.metrics.retrieval import Embeddings, normalised

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
    """Return the smallest score t such that at most `rate` of `total` scores lie above t.

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


def pair_scores(queries: Embeddings, gallery: Embeddings, *, largest: int = 1_000_000) -> Scores:
    """Return the similarities of all query-gallery pairs; an id is not paired with itself.

    Args:
        queries: [Q, d]
        gallery: [G, d]
        largest: How many impostor scores to keep, the largest ones: bounds the memory.
    """
    queries, gallery = queries.unique(where="queries"), gallery.unique(where="gallery")
    query_vectors, gallery_vectors = normalised(queries.vectors), normalised(gallery.vectors)
    genuine_chunks, impostors, impostor_count = [], np.zeros(0, dtype=np.float32), 0
    step = max(1, _CELLS // max(len(gallery), 1))
    for start in range(0, len(queries), step):
        rows = slice(start, start + step)
        scores = np.nan_to_num((query_vectors[rows] @ gallery_vectors.T).astype(np.float32), nan=-np.inf)
        same_label = queries.labels[rows, None] == gallery.labels[None, :]
        same_id = queries.ids[rows, None] == gallery.ids[None, :]
        genuine_chunks.append(scores[same_label & ~same_id])
        chunk_impostors = scores[~same_label & ~same_id]
        impostor_count += len(chunk_impostors)
        impostors = _largest(np.concatenate([impostors, chunk_impostors]), largest)
    genuine_scores = np.concatenate(genuine_chunks) if genuine_chunks else np.zeros(0, dtype=np.float32)
    return Scores(genuine=genuine_scores, impostor=impostors, impostors=impostor_count)


def _largest(scores: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    return scores if len(scores) <= count else np.partition(scores, len(scores) - count)[len(scores) - count :]
