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
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from graceful import homes, storage
from graceful.errors import DataError
from graceful.spec.data_files import Split
from graceful.spec.table import TableTask
from graceful.tasks.hashing import hash_points
from graceful.tasks.image_layout import split_of
from graceful.tasks.table import content, pictures, repeats, rows
from graceful.tasks.table.source import Table
from graceful.tasks.table.stored import Stored, Writer, opened

FORMAT = 1
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


@dataclass(frozen=True, kw_only=True)
class Index:
    """A table with what is known of each row.

    Attributes:
        table: The rows.
        section: Of the spec.
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
        """Whether a column names the rows."""
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
            points = _points(rows.spelled(self.table, column, values))
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
        section: Of the spec.
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
    meta = opened(folder, lambda part: _Build(section, table, part, split_rows).run())
    return Index(
        table=table,
        section=section,
        folder=folder,
        labels=tuple(meta["labels"]),
        splits=tuple(meta["splits"]),
        bad=meta["bad"],
        first_bad=meta["first_bad"],
    )


class _Build:
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
                    arrays[_IDS] = hash_points(_points(texts))
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
                raise DataError(f"{where}: {name!r} is no split; write train, validation or test")
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
        key: Of the column, for messages.
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


def _points(texts: Any) -> NDArray[Any]:
    """Return code points of texts; none for those that are null."""
    return content.points(texts.fill_null(""))


def _hexadecimal(keys: NDArray[np.uint64], more: NDArray[np.uint32]) -> NDArray[np.str_]:
    digits = content.named_points(keys, more)
    return digits.view("S24").reshape(len(digits)).astype(np.str_) if len(digits) else np.zeros(0, dtype="U24")
