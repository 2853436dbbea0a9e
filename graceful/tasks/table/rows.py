"""Rows of a table as raw items, and its columns as arrays. Driver and workers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from graceful.errors import DataError
from graceful.tasks.photos import Frame, Photo
from graceful.tasks.table import pictures
from graceful.tasks.table.source import Table

NUMBERS = ("int", "uint", "float", "double", "bool", "null")
TEXTS = ("string", "large_string", "null")
"""Beginnings of the names of the types that columns to embed may have."""
_BLANK = "".join(f"\\x{{{ord(sign):x}}}" for sign in map(chr, range(0x3001)) if sign.isspace())
"""Characters that `str.strip` removes, as a regular expression of Arrow writes it."""


class Rows(Sequence[dict[str, Any]]):
    """Some rows of a table, read column by column when a learner asks.

    A predecessor may have learned from other columns than the new version; each asks for its own.

    Args:
        table: The table.
        positions: [B] which of its rows.
        inputs: Columns that the new version embeds, for `texts`.
        image: Column of images that it embeds.
        named: `texts` says of which column a value is.
    """

    def __init__(
        self,
        table: Table,
        positions: NDArray[np.int64],
        *,
        inputs: Sequence[str] = (),
        image: str | None = None,
        named: bool = False,
    ) -> None:
        self._table, self._positions, self._inputs, self.image = table, positions, inputs, image
        self._named = named

    def __len__(self) -> int:
        return len(self._positions)

    def column(self, name: str) -> list[Any]:
        """Return one column of these rows, in their order.

        Raises:
            DataError: The table has no such column.
        """
        require_column(self._table, name, key="columns")
        if not _is_plain(self._table, name):
            return list(self._table.rows.select_columns([name])[self._positions.tolist()][name])
        values: list[Any] = self._table.taken(name, self._positions).to_pylist()
        return values

    def numbers(self, name: str) -> NDArray[np.float64]:
        """Return one column of these rows as numbers, [B]; NaN where there is none.

        Raises:
            DataError: The table has no such column.
        """
        require_column(self._table, name, key="columns")
        kind = str(getattr(self._table.rows.features[name], "dtype", ""))
        if not kind.startswith(NUMBERS):
            return np.asarray(self.column(name), dtype=np.float64)
        return self._table.numbers(name, self._positions)

    def categories(self, name: str) -> list[str | None]:
        """Return one column of these rows as texts, [B]; None where there is none, or a blank one.

        Raises:
            DataError: The table has no such column, or it holds neither texts nor whole numbers.
        """
        require_texts(self._table, name, key="columns.categories")
        texts: list[str | None] = as_texts(self._table, name, self._table.taken(name, self._positions)).to_pylist()
        return texts

    def photos(self, name: str, frame: Frame) -> list[Photo]:
        """Return one column of these rows as images.

        Raises:
            DataError: The table has no such column, or an image that cannot be decoded.
        """
        require_column(self._table, name, key="columns")
        return pictures.read_photos(self._table, name, self._positions, frame)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> Rows: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | Rows:
        """Return one row with all its columns, or some of these rows."""
        if isinstance(index, slice):
            return Rows(self._table, self._positions[index], inputs=self._inputs, image=self.image, named=self._named)
        return dict(self._table.rows[int(self._positions[index])])

    def texts(self) -> list[str]:
        """Return what is embedded of each row, for people to read."""
        columns = [
            [
                value if isinstance(value, str) and not self._named else f"{name} = {value}"
                for value in self.column(name)
            ]
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


def require_type(table: Table, name: str, *, numbers: bool, key: str = "features") -> None:
    """Refuse a column that holds neither the texts nor the numbers that are wanted.

    Raises:
        DataError: No such column, or its type; of a column of texts, the first row that is not a number.
    """
    require_column(table, name, key="columns")
    kind = str(getattr(table.rows.features[name], "dtype", "a list or mapping"))
    if kind.startswith(NUMBERS if numbers else TEXTS):
        return
    if not numbers or not kind.startswith(TEXTS):
        wanted, key = ("numbers", key) if numbers else ("text", "text")
        raise DataError(f"task.columns.{key}: column {name!r} of {table.files[0]} holds {kind}; must be {wanted}")
    for row, text in enumerate(table.rows[name]):
        if not _is_number(text):
            raise DataError(f"{table.place(row)}: {name} must be a number, got {text!r:.40}; correct it")
    raise DataError(f"task.columns.{key}: column {name!r} of {table.files[0]} holds numbers as text; store numbers")


def _is_number(text: str | None) -> bool:
    try:
        float(text or "nan")
    except ValueError:
        return False
    return True


def require_texts(table: Table, name: str, *, key: str) -> None:
    """Refuse a column that holds neither texts nor whole numbers.

    Raises:
        DataError: No such column, or values of another type.
    """
    require_column(table, name, key=key)
    feature = table.rows.features[name]
    kind = str(getattr(feature, "dtype", type(feature).__name__))
    if not kind.startswith(("int", "uint", "string", "large_string", "bool", "null")):
        raise DataError(f"task.{key}: column {name!r} of {table.files[0]} holds {kind}; must be text or whole numbers")


def as_texts(table: Table, name: str, values: Any) -> Any:
    """Return some values of a column as `spelled`; null also for text of white space alone."""
    from pyarrow import compute

    texts = spelled(table, name, values)
    return texts if str(values.type).startswith(("int", "uint")) else compute.if_else(_has_text(texts), texts, None)


def spelled(table: Table, name: str, values: Any) -> Any:
    """Return some values of a column of texts or whole numbers as Arrow strings; null where there is none.

    Args:
        table: Which says whether numbers have names (`datasets.ClassLabel`).
        name: The name of the column.
        values: A `pyarrow.Array` or chunks of one.
    """
    import pyarrow as pa
    from pyarrow import compute

    names = getattr(table.rows.features[name], "names", None)
    if names is not None:
        known = compute.if_else(compute.greater_equal(values, 0), values, None)
        values = compute.take(pa.array(names, pa.string()), known)
    return values.cast("string")


def has_value(values: Any) -> NDArray[np.bool_]:
    """Return for each value whether there is one, [B]; text of white space and numbers that are not finite are none."""
    import pyarrow as pa
    from pyarrow import compute

    if pa.types.is_floating(values.type):
        present = compute.is_finite(values)
    elif pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        present = _has_text(values)
    else:
        present = values.is_valid()
    return np.asarray(compute.fill_null(present, False).to_numpy(zero_copy_only=False), dtype=np.bool_)


def as_weights(table: Table, name: str, values: Any, *, start: int) -> NDArray[np.float32]:
    """Return some values of a column of weights, [B]; NaN where a row has none.

    Args:
        table: For messages.
        name: The name of the column.
        values: A `pyarrow.Array`.
        start: Row of the first.

    Raises:
        DataError: A weight is negative or infinite, with its row.
    """
    weights = np.asarray(values.cast("float64").to_numpy(zero_copy_only=False), dtype=np.float64)
    bad = np.flatnonzero((weights < 0.0) | np.isinf(weights))
    if len(bad):
        row = start + int(bad[0])
        raise DataError(f"{table.place(row)}: {name} must be a number from 0 on, got {weights[bad[0]]:g}; correct it")
    return weights.astype(np.float32)


def _has_text(values: Any) -> Any:
    from pyarrow import compute

    return compute.match_substring_regex(values, pattern=f"[^{_BLANK}]")


def _is_plain(table: Table, name: str) -> bool:
    """Return whether a column holds what Arrow gives, and not what datasets decodes: pictures, sounds."""
    return type(table.rows.features[name]).__name__ in ("Value", "ClassLabel")
