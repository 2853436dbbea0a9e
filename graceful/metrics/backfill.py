"""How retrieval changes while a gallery is re-embedded item by item. Runs in driver and workers, NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from graceful.errors import DataError
from graceful.metrics.compatibility import same_samples
from graceful.metrics.retrieval import Embeddings, Index, mean_average_precision, normalised, rank_parts, recall_at_k

Order = Literal["random", "distance", "variance", "centre"]
Metric = Literal["recall_at_1", "map"]


@dataclass(frozen=True, kw_only=True)
class BackfillCurve:
    """A retrieval metric while the gallery moves from old to new vectors.

    Attributes:
        fractions: Even grid from 0 to 1, both included: share of the gallery that has new vectors.
        values: The metric at each.
        area: Area under the curve (trapezoids), its mean height.
        minimum: Lowest value.
        dips: Some value lies below `old_old`: for a while users see worse results than before.
        old_old: The metric before the update.
    """

    fractions: tuple[float, ...]
    values: tuple[float, ...]
    area: float
    minimum: float
    dips: bool
    old_old: float


def backfill_order(new_gallery: Embeddings, old_gallery: Embeddings, *, order: Order, seed: int = 0) -> NDArray[Any]:
    """Gallery ids in the order in which they should be re-embedded.

    Args:
        new_gallery: By the new version; only `distance` looks at its vectors.
        old_gallery: By the old version, same ids.
        order: `random`; `distance`: where old and new vector differ most; `centre`: farthest from the mean of their
            class in the old gallery; `variance`: classes that are most spread out in the old gallery. Ties by id.
        seed: Seed of the random order.
    """
    new_gallery, old_gallery = same_samples(new_gallery, old_gallery, "gallery")
    if order == "random":
        return old_gallery.ids[np.random.default_rng(seed).permutation(len(old_gallery))]
    old = normalised(old_gallery.vectors)
    if order == "distance":
        urgency = -np.einsum("nd,nd->n", normalised(new_gallery.aligned(old_gallery.size).vectors), old)
    else:
        _, codes, counts = np.unique(old_gallery.labels, return_inverse=True, return_counts=True)
        centres = np.stack([np.bincount(codes, weights=column) for column in old.T], axis=1) / counts[:, None]
        urgency = ((old - centres[codes]) ** 2).sum(axis=1)
        if order == "variance":
            urgency = (np.bincount(codes, weights=urgency) / counts)[codes]
    return old_gallery.ids[np.argsort(-urgency.round(12), kind="stable")]


def backfill_curve(
    new_queries: Embeddings,
    new_gallery: Embeddings,
    old_gallery: Embeddings,
    *,
    order: Sequence[Any] | NDArray[Any],
    old_old: float,
    steps: int = 10,
    metric: Metric = "recall_at_1",
) -> BackfillCurve:
    """Search a gallery that is partly old, partly new, with new queries.

    Against old items a query is cut or padded to their length, against new items it is whole.

    Args:
        new_queries: By the new version.
        new_gallery: By the new version.
        old_gallery: By the old version, same ids.
        order: All gallery ids, first to be re-embedded first.
        old_old: The same metric of old queries on the old gallery.
        steps: Number of equal steps from 0 to 1.
        metric: `recall_at_1` or `map`.

    Raises:
        DataError: Ids do not join, `order` is not a permutation of them, or no query has a positive.
    """
    new_gallery, old_gallery = same_samples(new_gallery, old_gallery, "gallery")
    queries = new_queries.unique(where="new queries")
    position = {name: index for index, name in enumerate(old_gallery.ids.tolist())}
    names = np.asarray(order).tolist()
    if len(names) != len(position) or set(names) != set(position):
        raise DataError(f"order: must hold each of the {len(position)} gallery ids once, got {len(set(names))} of them")
    rows = np.array([position[name] for name in names], dtype=np.int64)
    fractions = tuple(step / steps for step in range(steps + 1))
    values = []
    for fraction in fractions:
        done = round(fraction * len(rows))
        values.append(_partly(queries, new_gallery, old_gallery, fresh=rows[:done], stale=rows[done:], metric=metric))
    heights = np.asarray(values)
    return BackfillCurve(
        fractions=fractions,
        values=tuple(values),
        area=float(((heights[1:] + heights[:-1]) / 2.0).mean()),
        minimum=float(heights.min()),
        dips=bool(heights.min() < old_old),
        old_old=old_old,
    )


def _partly(
    queries: Embeddings,
    new: Embeddings,
    old: Embeddings,
    *,
    fresh: NDArray[np.int64],
    stale: NDArray[np.int64],
    metric: Metric,
) -> float:
    rows = np.concatenate([fresh, stale])
    mixed = Embeddings(ids=new.ids[rows], labels=new.labels[rows], vectors=old.vectors[rows])
    parts = [
        Index(queries=queries.vectors, gallery=new.vectors[fresh]),
        Index(queries=queries.aligned(old.size).vectors, gallery=old.vectors[stale]),
    ]
    ranking = rank_parts(queries, mixed, parts)
    found = recall_at_k(ranking) if metric == "recall_at_1" else mean_average_precision(ranking, draws=2)
    if found.value is None:
        raise DataError(f"backfill_curve: {found.reason}")
    return found.value
