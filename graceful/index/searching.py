"""Search in a snapshot that holds vectors of one or several models. Driver."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graceful.errors import DataError, SpecError
from graceful.index.base import NOTHING, Hits, View
from graceful.index.calibration import applied
from graceful.index.manifest import Manifest
from graceful.index.space import Space
from graceful.index.vectors import require_matrix, unit_length


def search(view: View, head: Manifest, queries: Mapping[str, NDArray[np.floating[Any]]], *, k: int, where: str) -> Hits:
    """Search an open snapshot, as `Index.search` describes; a serving process can keep its view between queries."""
    prepared = {}
    for name, matrix in queries.items():
        space = require_space(head, name, where=where)
        require_matrix(matrix, rows=len(matrix), dimension=space.dimension, where=f"queries of {name}")
        prepared[name] = unit_length(matrix, where=f"queries of {name}")
    found = []
    for gallery, count in head.counts.items():
        if not count:
            continue
        query = asking(head, gallery, prepared, where=where)
        hits = view.search(prepared[query], space=gallery, k=k)
        scores = applied(head.calibration(query, gallery), hits.scores)
        found.append(Hits(ids=hits.ids, scores=scores))
    if not found:
        raise DataError(f"{where}: has no vectors; add some with `graceful index add`")
    return merged(found, k=k)


def asking(head: Manifest, gallery: str, queries: Mapping[str, Any], *, where: object) -> str:
    """Return the space whose queries search the vectors of a space.

    Raises:
        SpecError: None of the queries may search the space.
    """
    if gallery in queries:
        return gallery
    for name in queries:
        if (name, gallery) in head.accepts:
            return name
    raise SpecError(
        f"{where}: holds {head.counts[gallery]} vectors of {gallery}, and the queries are of"
        f" {', '.join(queries) or 'none'}; embed the queries with {gallery} as well, or declare them comparable with"
        " `graceful index accept`"
    )


def merged(found: list[Hits], *, k: int) -> Hits:
    """Return the k best of several results for the same queries, by score and then by id."""
    ids = np.concatenate([hits.ids for hits in found], axis=1)
    scores = np.concatenate([hits.scores for hits in found], axis=1)
    order = np.lexsort((ids, -scores), axis=1)[:, :k]
    ids, scores = np.take_along_axis(ids, order, axis=1), np.take_along_axis(scores, order, axis=1)
    return Hits(ids=np.where(np.isfinite(scores), ids, NOTHING), scores=scores)


def require_space(head: Manifest, name: str, *, where: object) -> Space:
    """Return a space by name.

    Raises:
        SpecError: The index has no space of that name.
    """
    if name not in head.spaces:
        raise SpecError(f"{where}: has no space {name!r}; it has {', '.join(sorted(head.spaces))}")
    return head.spaces[name]
