"""Exact nearest neighbours by cosine, the reference for the recall of approximate search. Driver, torch and NumPy.

Candidates are found in single precision with a margin wider than its rounding errors. They are then scored in double
precision, rounded to 2^-24 and ordered by score and id, as `graceful.metrics.retrieval` ranks. The result does not
depend on the number of threads or on how the work is divided.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from graceful.index.base import NOTHING, Hits

MARGIN = 4e-6
"""A bound on the error of the difference of two cosines of unit vectors in float32."""
CELLS = 16_000_000
"""The most scores that are in memory at a time."""
GRID = 2.0**24


def search(
    queries: NDArray[np.float32],
    vectors: NDArray[np.float32],
    ids: NDArray[np.str_],
    k: int,
    *,
    alive: NDArray[np.bool_] | None = None,
) -> Hits:
    """Return the k nearest vectors of each query.

    Args:
        queries: [Q, d] vectors of unit length.
        vectors: [N, d] vectors of unit length.
        ids: [N] ids of the vectors; of two equally near vectors, the one with the smaller id comes first.
        k: The number of results for each query.
        alive: [N] whether a vector may be found; None allows all.
    """
    import torch  # seconds that commands which do not search need not wait

    found_ids = np.full((len(queries), k), NOTHING, dtype=ids.dtype if ids.dtype.itemsize else "U1")
    found_scores = np.full((len(queries), k), -np.inf)
    living = len(vectors) if alive is None else int(alive.sum())
    if not living:
        return Hits(ids=found_ids, scores=found_scores)
    gallery = torch.from_numpy(vectors)
    dead = None if alive is None or living == len(vectors) else torch.from_numpy(~alive)
    step = max(1, CELLS // len(vectors))
    for start in range(0, len(queries), step):
        part = queries[start : start + step]
        scores = torch.from_numpy(np.ascontiguousarray(part)) @ gallery.T
        if dead is not None:
            scores[:, dead] = -torch.inf
        worst = torch.topk(scores, min(k, living), dim=1).values[:, -1]
        rows, columns = torch.nonzero(scores >= (worst - MARGIN)[:, None], as_tuple=True)
        fill(
            found_ids=found_ids[start:],
            found_scores=found_scores[start:],
            rows=rows.numpy(),
            columns=columns.numpy(),
            queries=part,
            vectors=vectors,
            ids=ids,
        )
    return Hits(ids=found_ids, scores=found_scores)


def fill(
    *,
    found_ids: NDArray[np.str_],
    found_scores: NDArray[np.float64],
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
    queries: NDArray[np.float32],
    vectors: NDArray[np.float32],
    ids: NDArray[np.str_],
) -> None:
    """Score candidates in double precision and write the best of each query, in order.

    Args:
        found_ids: [Q, k] array into which the ids of the results are written.
        found_scores: [Q, k] array into which their scores are written.
        rows: [C] the query of each candidate, ascending.
        columns: [C] the vector of each candidate.
        queries: [Q, d] vectors of the queries.
        vectors: [N, d] vectors that may be candidates.
        ids: [N] ids of the vectors.
    """
    k = found_ids.shape[1]
    exact = np.empty(len(rows))
    for start in range(0, len(rows), 65536):
        part = slice(start, start + 65536)
        left, right = queries[rows[part]].astype(np.float64), vectors[columns[part]].astype(np.float64)
        lengths = np.sqrt(
            np.einsum("nd,nd->n", left, left) * np.einsum("nd,nd->n", right, right)
        )  # 1, but for rounding
        exact[part] = np.einsum("nd,nd->n", left, right) / lengths
    exact = np.rint(exact * GRID) / GRID
    names = ids[columns]
    order = np.lexsort((names, -exact, rows))
    ordered = rows[order]
    firsts = np.searchsorted(ordered, ordered, side="left")
    place = np.arange(len(order)) - firsts
    kept = place < k
    found_ids[ordered[kept], place[kept]] = names[order][kept]
    found_scores[ordered[kept], place[kept]] = exact[order][kept]
