"""What a task needs of each row of a table, as arrays below graceful's folder: written once on a node. Driver, workers.

10^8 rows are too many for Python: they are read in blocks with Arrow, and what is kept of each has a fixed size.

    labels.npy   [N] int32   position of the row's label among all labels, -1: none
    usable.npy   [N] bool    whether every column that is used has a value
    splits.npy   [N] int8    position in SPLITS of the split that the row's file or column names, -1: none
    keys.npy     [N] uint64  the same for rows that embed the same; of two others among 10^8, once in 4000 tables
    folded.npy   [N] uint64  likewise of texts in small letters without white space and punctuation
    more.npy     [N] uint32  where rows have no id: what makes the name of a row together with its key
    weights.npy  [N] float32, what the rows count in training, where a column says it
    copies.npy   [N] uint32  where rows have no id: the how many-th row with its key this is, from 1
    meta.json    labels, splits, the first row that is not usable, and size and digest of each file
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graceful import homes, storage
from graceful.spec.table import TableTask
from graceful.tasks.hashing import hash_points
from graceful.tasks.table import content, rows
from graceful.tasks.table.index_build import (
    KEYS,
    MORE,
    Build,
    combined,
    decodes,
    points_of,
)
from graceful.tasks.table.source import Table
from graceful.tasks.table.stored import Stored, opened

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Index:
    """A table with what is known of each row.

    Attributes:
        table: The rows.
        section: The section of the spec.
        folder: Where the arrays lie.
        labels: Every label that occurs.
        splits: The splits that files or a column name; empty: none is named.
        bad: How many rows lack a value that is needed.
        first_bad: The first of them; None: there is none.
    """

    table: Table
    section: TableTask
    folder: Path
    labels: tuple[str, ...]
    splits: tuple[str, ...]
    bad: int
    first_bad: int | None

    def __len__(self) -> int:
        return len(self.table.rows)

    @property
    def named(self) -> bool:
        """Return whether a column names the rows."""
        return self.section.columns.id is not None

    def stored(self, name: str) -> Stored:
        """Return one of the arrays."""
        return Stored(self.folder / f"{name}.npy")

    def ids(self, positions: NDArray[np.int64]) -> NDArray[np.str_]:
        """Return the ids of some rows: of the column, or what the key stands for and a number behind copies."""
        if self.section.columns.id is not None:
            return self._texts(self.section.columns.id, positions)
        names = _hexadecimal(*self._named_at(positions))
        copies = self._copies[positions]
        if not (copies > 1).any():
            return names
        numbered = [
            name if copy == 1 else f"{name}-{copy}" for name, copy in zip(names.tolist(), copies.tolist(), strict=True)
        ]
        return np.asarray(numbered, dtype=np.str_)

    def id_values(self, positions: NDArray[np.int64]) -> Any:
        """Return the ids of some usable rows as Arrow strings."""
        import pyarrow as pa

        column = self.section.columns.id
        if column is None:
            return pa.array(self.ids(positions).tolist(), pa.string())
        return rows.spelled(self.table, column, self.table.taken(column, positions))

    def groups(self, positions: NDArray[np.int64]) -> NDArray[np.str_]:
        """Return what some rows belong to; without a column, rows that embed the same belong together."""
        column = self.section.columns.group or self.section.columns.id
        return _hexadecimal(*self._named_at(positions)) if column is None else self._texts(column, positions)

    def group_hashes(self, start: int, stop: int, *, salts: Sequence[int]) -> list[NDArray[np.uint64]]:
        """Return `hash_ids` of the groups of neighbouring rows for each salt."""
        column = self.section.columns.group or self.section.columns.id
        if column is None:
            points: NDArray[Any] = content.named_points(*self._named_at(slice(start, stop)))
        else:
            values = combined(self.table.block([column], start, stop), column)
            points = points_of(rows.spelled(self.table, column, values))
        return [hash_points(points, salt=salt) for salt in salts]

    def _texts(self, column: str, positions: NDArray[np.int64]) -> NDArray[np.str_]:
        texts = rows.spelled(self.table, column, self.table.taken(column, positions))
        return np.asarray(texts.fill_null("").to_pylist(), dtype=np.str_)

    def _named_at(self, rows_wanted: NDArray[np.int64] | slice) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
        keys, more = self._named
        return keys[rows_wanted], more[rows_wanted]

    @cached_property
    def _named(self) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
        return self.stored(KEYS).mapped(), self.stored(MORE).mapped()

    @cached_property
    def _copies(self) -> NDArray[np.uint32]:
        return self.stored("copies").mapped()


def open_index(section: TableTask, table: Table, *, split_rows: Sequence[tuple[str, int]]) -> Index:
    """Return the index of a table, which is built on the first call on a node.

    Args:
        section: The section of the spec.
        table: Its files.
        split_rows: For each part of the files, the split that it is named for and its number of rows.

    Raises:
        DataError: A column is missing or has another type, two rows have the same id, or a split has no meaning.
        StorageError: The disk is full or refuses.
    """
    columns = section.columns
    identity = {
        "format": FORMAT,
        "files": table.identity,
        "columns": columns.model_dump(mode="json"),
        "splits": list(split_rows),
        "rows": len(table.rows),
        **({"decoded": True} if decodes(section) else {}),
    }
    folder = homes.folder() / "cache" / "tables" / storage.sha256_json(identity)
    meta = opened(folder, lambda part: Build(section, table, part, split_rows).run())
    return Index(
        table=table,
        section=section,
        folder=folder,
        labels=tuple(meta["labels"]),
        splits=tuple(meta["splits"]),
        bad=meta["bad"],
        first_bad=meta["first_bad"],
    )


def _hexadecimal(keys: NDArray[np.uint64], more: NDArray[np.uint32]) -> NDArray[np.str_]:
    digits = content.named_points(keys, more)
    return digits.view("S24").reshape(len(digits)).astype(np.str_) if len(digits) else np.zeros(0, dtype="U24")
