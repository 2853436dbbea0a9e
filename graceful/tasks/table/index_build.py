"""Build the index of a table: read the table in blocks and write what is kept of each row. Driver and workers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from graceful.errors import DataError
from graceful.spec.data_files import Split
from graceful.spec.table import TableTask
from graceful.tasks.hashing import hash_points
from graceful.tasks.image_layout import split_of
from graceful.tasks.table import content, pictures, repeats, rows
from graceful.tasks.table.source import Table
from graceful.tasks.table.stored import Stored, Writer

SPLITS: tuple[str, ...] = get_args(Split)
ALL = ""
"""Name of the split of files that name none."""
KEYS, MORE, FOLDED, WEIGHTS = "keys", "more", "folded", "weights"
_NAMING = ("label", "split", "id", "group")
"""Keys of columns of texts or whole numbers."""
MOST_LABELS = 2_000_000
"""Different labels of a table; they are kept in memory."""
_IDS = "ids"
"""Hashes of ids, needed until it is known that all differ."""


class Build:
    """One build of an index.

    Args:
        section, table, split_rows: As of `open_index`.
        folder: Where the arrays go.
    """

    def __init__(self, section: TableTask, table: Table, folder: Path, split_rows: Sequence[tuple[str, int]]) -> None:
        self._columns, self._table, self._folder = section.columns, table, folder
        self._inputs, self._decodes = inputs_of(section), decodes(section)
        self._labels, self._written_splits = _Vocabulary("columns.label"), _Vocabulary("columns.split")
        self._named_splits = {name for name, _ in split_rows} - {ALL}
        self._split_ends = np.cumsum([count for _, count in split_rows])
        self._part_splits = np.asarray([SPLITS.index(name) if name else -1 for name, _ in split_rows], dtype=np.int8)
        self._bad = 0
        self._first_bad: int | None = None

    def run(self) -> dict[str, Any]:
        """Write the arrays and return what to record."""
        count, columns = len(self._table.rows), self._columns
        for key in _NAMING:
            if (name := getattr(columns, key)) is not None:
                rows.require_texts(self._table, name, key=f"columns.{key}")
        kinds = {"labels": "<i4", "usable": "?", "splits": "i1", KEYS: "<u8"}
        kinds |= {FOLDED: "<u8"} if columns.text is not None else {}
        kinds |= {WEIGHTS: "<f4"} if columns.weight is not None else {}
        kinds |= {MORE: "<u4"} if columns.id is None else {_IDS: "<u8"}
        with ExitStack() as stack:
            writers = {
                name: stack.enter_context(Writer(self._folder / f"{name}.npy", kind, count))
                for name, kind in kinds.items()
            }
            step = self._table.step
            for start in range(0, count, step):
                for name, values in self._block(start, min(start + step, count)).items():
                    writers[name].append(values)
        if columns.id is None:
            self._count_copies(count)
        else:
            self._require_distinct(columns.id, count)
        return {
            "labels": self._labels.texts,
            "splits": sorted(self._named_splits),
            "bad": self._bad,
            "first_bad": self._first_bad,
        }

    def _block(self, start: int, stop: int) -> dict[str, NDArray[Any]]:
        """Return what is kept of some rows, by array."""
        columns, table = self._columns, self._table
        naming = [name for name in (getattr(columns, key) for key in _NAMING) if name is not None]
        names = list(dict.fromkeys([*self._inputs, *naming, *filter(None, [columns.weight])]))
        block = table.block(names, start, stop)
        inputs, usable = self._read_inputs(block)
        if self._decodes:
            usable &= pictures.readable(table, self._inputs[0], start, stop)
        labels = self._labels.codes(rows.as_texts(table, columns.label, combined(block, columns.label)), start)
        usable &= labels >= 0
        arrays: dict[str, NDArray[Any]] = {"labels": labels, "splits": self._splits(block, start, stop)}
        if columns.id is None:
            arrays[KEYS], arrays[MORE] = content.named_keys(inputs)
        else:
            arrays[KEYS] = content.keys(inputs)
        if columns.text is not None:
            arrays[FOLDED] = content.folded_keys(inputs)
        if columns.weight is not None:
            weights = rows.as_weights(table, columns.weight, combined(block, columns.weight), start=start)
            arrays[WEIGHTS] = weights
            usable &= np.isfinite(weights)
        for column in (columns.id, columns.group):
            if column is not None:
                texts = rows.as_texts(table, column, combined(block, column))
                usable &= np.asarray(texts.is_valid())
                if column == columns.id:
                    arrays[_IDS] = hash_points(points_of(texts))
        if not usable.all():
            self._first_bad = start + int(np.argmin(usable)) if self._first_bad is None else self._first_bad
            self._bad += int((~usable).sum())
        return {**arrays, "usable": usable}

    def _read_inputs(self, block: Any) -> tuple[list[Any], NDArray[np.bool_]]:
        """Return the columns that are embedded, and which rows have a value in all that need one."""
        columns, inputs = self._columns, []
        usable = np.ones(block.num_rows, dtype=np.bool_)
        for name in self._inputs:
            values = combined(block, name)
            if name == columns.image:
                values = pictures.values_of(values)
            elif name in columns.categories:
                values = rows.as_texts(self._table, name, values)
            inputs.append(values)
            if columns.missing == "refuse" or name not in (*columns.features, *columns.categories):
                usable &= rows.has_value(values)
        return inputs, usable

    def _splits(self, block: Any, start: int, stop: int) -> NDArray[np.int8]:
        """Return the split of each row, as a position in the names of splits."""
        column = self._columns.split
        if column is None:
            return self._part_splits[np.searchsorted(self._split_ends, np.arange(start, stop), side="right")]
        written = self._written_splits
        codes = written.codes(rows.as_texts(self._table, column, combined(block, column)), start)
        meanings = []
        for name in written.texts:
            split = split_of(name)
            if split is None:
                where = self._table.place(written.first[name])
                raise DataError(f"{where}: {name!r} is not a split; write train, validation or test")
            meanings.append(SPLITS.index(split))
        self._named_splits |= {SPLITS[meaning] for meaning in meanings}
        return np.asarray([*meanings, -1], dtype=np.int8)[codes]

    def _count_copies(self, count: int) -> None:
        path = self._folder / "copies.npy"
        if not count:
            return
        copies = npy.open_memmap(path, mode="w+", dtype="<u4", shape=(count,))
        repeats.copies([Stored(self._folder / f"{name}.npy") for name in (KEYS, MORE)], count, into=copies)
        copies.flush()

    def _require_distinct(self, column: str, count: int) -> None:
        """Refuse ids that repeat among the rows that are used.

        Raises:
            DataError: With both rows.
        """
        hashes, usable = (Stored(self._folder / f"{name}.npy") for name in (_IDS, "usable"))

        def ids(*positions: int) -> list[str]:
            taken = self._table.taken(column, np.asarray(positions, dtype=np.int64))
            names: list[str] = rows.as_texts(self._table, column, taken).to_pylist()
            return names

        pair = repeats.repeated(hashes, usable, count, same=lambda row, before: len(set(ids(row, before))) == 1)
        if pair is not None:
            row, before = pair
            raise DataError(
                f"{self._table.place(row)}: {column} {ids(row)[0]!r} is that of {self._table.place(before)}, too; give"
                " each row a name of its own, or leave columns.id out"
            )
        (self._folder / f"{_IDS}.npy").unlink()


class _Vocabulary:
    """Numbers for texts in the order in which they first occur.

    Attributes:
        texts: By their number.
        first: The first row of each.

    Args:
        key: The key of the column, for messages.
    """

    def __init__(self, key: str) -> None:
        self.texts: list[str] = []
        self.first: dict[str, int] = {}
        self._key = key
        self._codes: dict[str, int] = {}

    def codes(self, texts: Any, start: int) -> NDArray[np.int32]:
        """Return the numbers of Arrow strings, -1 for null; `start` is the row of the first.

        Raises:
            DataError: There are too many different texts for memory.
        """
        encoded = texts.dictionary_encode()
        indices = np.asarray(encoded.indices.fill_null(-1))
        firsts = dict(zip(*(values.tolist() for values in np.unique(indices, return_index=True)), strict=True))
        spelled = encoded.dictionary.to_pylist()
        for number, text in enumerate(spelled):
            if text not in self._codes:
                self._codes[text] = len(self.texts)
                self.texts.append(text)
                self.first[text] = start + firsts[number]
        if len(self.texts) > MOST_LABELS:
            raise DataError(f"task.{self._key}: more than {MOST_LABELS:,} different values; name a column of classes")
        known = np.asarray([*(self._codes[text] for text in spelled), -1], dtype=np.int32)
        codes: NDArray[np.int32] = known[indices]
        return codes


def decodes(section: TableTask) -> bool:
    """Return whether images are decoded to find those that are to be left out."""
    return section.columns.image is not None and section.on_bad_row == "skip"


def inputs_of(section: TableTask) -> list[str]:
    """Return the columns that are embedded."""
    columns = section.columns
    named = (columns.text, columns.pair, columns.image, *columns.features, *columns.categories)
    return [name for name in named if name is not None]


def combined(block: Any, name: str) -> Any:
    """Return a column of a `pyarrow.Table` as one array."""
    column = block.column(name).combine_chunks()
    return column.combine_chunks() if hasattr(column, "combine_chunks") else column


def points_of(texts: Any) -> NDArray[Any]:
    """Return code points of texts; none for those that are null."""
    return content.points(texts.fill_null(""))
