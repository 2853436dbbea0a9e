"""Judgments of relevance: which items of a gallery answer which query, and how well. Driver and workers, NumPy.

Without them, an item answers a query if both have the same label.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from graceful.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Judgments:
    """Judged pairs of a query and an item; pairs that are not listed are irrelevant.

    Attributes:
        queries: [J] ids of queries.
        items: [J] ids of items of the gallery.
        grades: [J] whole numbers of 0 (irrelevant) or more.

    Raises:
        DataError: Different lengths, or a negative grade.
    """

    queries: NDArray[np.str_]
    items: NDArray[np.str_]
    grades: NDArray[np.int64]

    def __post_init__(self) -> None:
        if not len(self.queries) == len(self.items) == len(self.grades):
            lengths = f"{len(self.queries)} queries, {len(self.items)} items, {len(self.grades)} grades"
            raise DataError(f"judgments: {lengths}; give one of each for each judgment")
        if len(self.grades) and self.grades.min() < 0:
            first = int(np.argmin(self.grades))
            pair = f"query {str(self.queries[first])!r} and item {str(self.items[first])!r}"
            raise DataError(f"judgments: the grade of {pair} must be 0 or more, got {self.grades[first]}; correct it")

    def digest(self) -> str:
        """Return the SHA-256 of all judgments in their order."""
        lines = zip(self.queries.tolist(), self.items.tolist(), self.grades.tolist(), strict=True)
        return hashlib.sha256("\n".join(map(repr, lines)).encode("utf-8", "surrogatepass")).hexdigest()

    def grid(self, query_ids: NDArray[np.str_], item_ids: NDArray[np.str_]) -> Grid:
        """Return the judgments of some queries on a gallery, both sorted by id; pairs with other ids are left out."""
        rows, known_queries = _positions(query_ids, self.queries)
        columns, known_items = _positions(item_ids, self.items)
        chosen = known_queries & known_items & (self.grades > 0)
        order = np.argsort(rows[chosen], kind="stable")
        return Grid(rows[chosen][order], columns[chosen][order], self.grades[chosen][order], width=len(item_ids))


class Grid:
    """Grades by position.

    Args:
        rows: [J] position of the query, ascending.
        columns: [J] position of the item.
        grades: [J]
        width: Items of the gallery.
    """

    def __init__(
        self, rows: NDArray[np.int64], columns: NDArray[np.int64], grades: NDArray[np.int64], *, width: int
    ) -> None:
        self._rows, self._columns, self._grades, self._width = rows, columns, grades, width

    def block(self, start: int, stop: int) -> NDArray[np.int64]:
        """Return the grades of the queries from `start` to `stop`, [stop - start, width]."""
        first, last = np.searchsorted(self._rows, (start, stop))
        dense = np.zeros((stop - start, self._width), dtype=np.int64)
        part = slice(first, last)
        dense[self._rows[part] - start, self._columns[part]] = self._grades[part]
        return dense


def _positions(sorted_ids: NDArray[np.str_], names: NDArray[np.str_]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return where names are in sorted ids, [J], and whether they are there, [J]."""
    if len(sorted_ids) == 0:
        return np.zeros(len(names), dtype=np.int64), np.zeros(len(names), dtype=np.bool_)
    positions = np.minimum(np.searchsorted(sorted_ids, names), len(sorted_ids) - 1)
    return positions, np.asarray(sorted_ids[positions] == names)
