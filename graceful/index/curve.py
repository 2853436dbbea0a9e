"""Recall at each fraction of a backfill, computed from vectors of both models. Driver, NumPy.

At fraction f, the first items of an order have their new vectors and the others their old ones. Either each query is
embedded by both models, and searches the vectors of each space with calibrated scores; or it is embedded by the new
model alone, which compatible training has made comparable with old vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from graceful.index.calibration import applied, calibrated
from graceful.index.manifest import Calibration

FRACTIONS = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
Reading = Literal["both", "new"]
"""Whether queries are embedded by both models or by the new one alone."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Side:
    """Vectors of one model, of unit length.

    Attributes:
        queries: [Q, d] vectors of the queries.
        gallery: [G, d] vectors of the items.
    """

    queries: NDArray[np.float32]
    gallery: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class Judged:
    """The relevance of the items for the queries.

    Attributes:
        right: [Q, G] whether the item answers the query.
        itself: [Q] the column of the query itself in the gallery, which is never a result; -1 if it is not there.
    """

    right: NDArray[np.bool_]
    itself: NDArray[np.int64]

    @property
    def asked(self) -> NDArray[np.bool_]:
        """[Q] Whether any other item answers the query."""
        found = self.right.copy()
        rows = np.flatnonzero(self.itself >= 0)
        found[rows, self.itself[rows]] = False
        return np.asarray(found.any(axis=1))


@dataclass(frozen=True, kw_only=True)
class Point:
    """One point of the curve.

    Attributes:
        fraction: The share of the gallery that has its new vector.
        recall_at_1: The share of the queries whose first result is right.
        recall_at_10: The share of the queries with a right result among the first ten.
        flips: The share of the queries whose first result was right in the old space and is wrong now.
    """

    fraction: float
    recall_at_1: float
    recall_at_10: float
    flips: float


def curve(
    old: Side,
    new: Side,
    judged: Judged,
    priority: NDArray[np.float64],
    *,
    reading: Reading = "both",
    fractions: Sequence[float] = FRACTIONS,
    calibrate: bool = True,
) -> list[Point]:
    """Return recall and flips at fractions of a backfill.

    Args:
        old: The vectors of the old model.
        new: The vectors of the new model for the same queries and items.
        judged: The relevance of the items.
        priority: [G] the priority of each item; the item with the largest is replaced first.
        reading: Whether queries are embedded by both models or by the new one alone.
        fractions: The fractions at which recall is computed.
        calibrate: Whether scores are calibrated, with all items that are replaced at the fraction.
    """
    asked = np.flatnonzero(judged.asked)
    rows, order = np.arange(len(asked)), np.argsort(-priority, kind="stable")
    base = _without(old.queries[asked] @ old.gallery.T, judged.itself[asked])
    fresh = _without(new.queries[asked] @ new.gallery.T, judged.itself[asked])
    crossed = base if reading == "both" else _without(new.queries[asked] @ old.gallery.T, judged.itself[asked])
    right = judged.right[asked]
    before = right[rows, base.argmax(axis=1)]
    points = []
    for fraction in fractions:
        moved = order[: round(fraction * len(order))]
        calibration = _calibration(old, new, moved, reading) if calibrate else None
        scores = applied(calibration, crossed.astype(np.float64)).astype(np.float32)
        scores[:, moved] = fresh[:, moved]
        count = min(10, scores.shape[1])
        best = np.argpartition(-scores, count - 1, axis=1)[:, :count]
        first = right[rows, scores.argmax(axis=1)]
        points.append(
            Point(
                fraction=fraction,
                recall_at_1=float(first.mean()),
                recall_at_10=float(np.take_along_axis(right, best, axis=1).any(axis=1).mean()),
                flips=float((before & ~first).mean()),
            )
        )
    return points


def _without(scores: NDArray[np.float32], itself: NDArray[np.int64]) -> NDArray[np.float32]:
    rows = np.flatnonzero(itself >= 0)
    scores[rows, itself[rows]] = -np.inf
    return scores


def _calibration(old: Side, new: Side, moved: NDArray[np.int64], reading: Reading) -> Calibration | None:
    queries = old.gallery if reading == "both" else new.gallery
    query = "old" if reading == "both" else "new"
    return calibrated(queries[moved], old.gallery[moved], new.gallery[moved], query=query, gallery="old")
