"""Rows of a table as raw items, and its columns as arrays. Driver and workers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from graceful.errors import DataError
from graceful.tasks.table.source import Table

DIGEST_BYTES = 12
"""Of a row's digest: two of 10^8 rows have the same with a probability of 10^-13."""
NUMBERS = ("int", "uint", "float", "double", "bool", "null")
TEXTS = ("string", "large_string", "null")
"""How the names of the types begin that columns to embed may have."""
AT_ONCE = 65_536
"""Rows that are converted together."""


class Rows(Sequence[dict[str, Any]]):
    """Some rows of a table, read column by column when a learner asks.

    A predecessor may have learned from other columns than the new version; each asks for its own.

    Args:
        table: The table.
        positions: [B] which of its rows.
        inputs: Columns that the new version embeds, for `texts`.
    """

    def __init__(self, table: Table, positions: NDArray[np.int64], *, inputs: Sequence[str] = ()) -> None:
        self._table, self._positions, self._inputs = table, positions, inputs

    def __len__(self) -> int:
        return len(self._positions)

    def column(self, name: str) -> list[Any]:
        """Return one column of these rows, in their order.

        Raises:
            DataError: The table has no such column.
        """
        require_column(self._table, name, key="columns")
        return list(self._table.rows.select_columns([name])[self._positions.tolist()][name])

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> Rows: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | Rows:
        """Return one row with all its columns, or some of these rows."""
        if isinstance(index, slice):
            return Rows(self._table, self._positions[index], inputs=self._inputs)
        return dict(self._table.rows[int(self._positions[index])])

    def texts(self) -> list[str]:
        """Return what is embedded of each row, for people to read."""
        columns = [
            [value if isinstance(value, str) else f"{name} = {value}" for value in self.column(name)]
            for name in self._inputs
        ]
        return [" | ".join(row) for row in zip(*columns, strict=True)]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))


def require_column(table: Table, name: str, *, key: str) -> None:
    """Refuse a column that the table lacks.

    Raises:
        DataError: With the columns that it has.
    """
    if name not in table.rows.column_names:
        has = ", ".join(table.rows.column_names[:12])
        raise DataError(f"task.{key}: {table.files[0]} has no column {name!r}; it has {has}")


def require_type(table: Table, name: str, *, numbers: bool) -> None:
    """Refuse a column to embed that holds neither the texts nor the numbers that are wanted.

    Raises:
        DataError: No such column, or its type; of a column of texts, the first row that is no number.
    """
    require_column(table, name, key="columns")
    kind = str(getattr(table.rows.features[name], "dtype", "a list or mapping"))
    if kind.startswith(NUMBERS if numbers else TEXTS):
        return
    if not numbers or not kind.startswith(TEXTS):
        wanted, key = ("numbers", "features") if numbers else ("text", "text")
        raise DataError(f"task.columns.{key}: column {name!r} of {table.files[0]} holds {kind}; must be {wanted}")
    for row, text in enumerate(table.rows[name]):
        if not _is_number(text):
            raise DataError(f"{table.place(row)}: {name} must be a number, got {text!r:.40}; correct it")
    raise DataError(f"task.columns.features: column {name!r} of {table.files[0]} holds numbers as text; store numbers")


def _is_number(text: str | None) -> bool:
    try:
        float(text or "nan")
    except ValueError:
        return False
    return True


def as_texts(table: Table, name: str, *, key: str) -> NDArray[np.object_]:
    """Return a column of texts or whole numbers as texts, [N]; None where the row has none or a blank one.

    Raises:
        DataError: No such column, or values of another type.
    """
    require_column(table, name, key=key)
    feature = table.rows.features[name]
    spelled = getattr(feature, "names", None)
    if spelled is not None:  # datasets.ClassLabel: numbers that have names
        numbers = table.rows.with_format("arrow", columns=[name])[:][name].to_pylist()
        return np.asarray([None if number in (None, -1) else spelled[number] for number in numbers], dtype=object)
    kind = str(getattr(feature, "dtype", type(feature).__name__))
    if not kind.startswith(("int", "uint", "string", "large_string", "bool", "null")):
        raise DataError(f"task.{key}: column {name!r} of {table.files[0]} holds {kind}; must be text or whole numbers")
    column = table.rows.with_format("arrow", columns=[name])[:][name].cast("string")
    return np.asarray([text if text and text.strip() else None for text in column.to_pylist()], dtype=object)


def row_digests(table: Table, columns: Sequence[str]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return a digest of some columns of each row, [N, DIGEST_BYTES], and which rows have a value in all of them, [N].

    Texts of white space alone and numbers that are not finite count as missing.
    """
    total = len(table.rows)
    digests, present = np.zeros((total, DIGEST_BYTES), dtype=np.uint8), np.ones(total, dtype=np.bool_)
    chosen = table.rows.select_columns(list(columns))
    for start in range(0, total, AT_ONCE):
        part = chosen[start : start + AT_ONCE]
        for offset, values in enumerate(zip(*(part[name] for name in columns), strict=True)):
            row = start + offset
            present[row] = all(map(_is_value, values))
            encoded = "\0".join(map(repr, values)).encode("utf-8", "surrogatepass")
            digests[row] = np.frombuffer(blake2b(encoded, digest_size=DIGEST_BYTES).digest(), dtype=np.uint8)
    return digests, present


def _is_value(value: object) -> bool:
    if isinstance(value, str):
        return bool(value.strip())
    return isinstance(value, int | float) and bool(np.isfinite(value))
