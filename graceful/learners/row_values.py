"""Numbers and categories of rows in any form: rows of a table, mappings, or lists. Driver and workers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graceful.errors import DataError


def numbers_of(items: Any, names: Sequence[str], *, categories: Sequence[str] = ()) -> NDArray[np.float64]:
    """Return columns of numbers, [B, F]; NaN where there is none.

    Args:
        items: Rows of a task, a mapping of column names to values, a list of mappings, or rows [B, F + K] in the order
            of the columns, numbers before categories.
        names: Columns of numbers.
        categories: Columns of categories.

    Raises:
        DataError: A column is missing, or holds no numbers.
    """
    if hasattr(items, "numbers"):
        columns = [items.numbers(name) for name in names]
        return np.stack(columns, axis=1) if columns else np.zeros((len(items), 0))
    if not categories and not _is_named(items):
        return _matrix(items, names)
    columns = [_as_numbers(values, name) for name, values in _columns(items, names, categories)[: len(names)]]
    return np.stack(columns, axis=1) if columns else np.zeros((_count(items), 0))


def texts_of(items: Any, names: Sequence[str], *, numbers: Sequence[str] = ()) -> list[list[str | None]]:
    """Return columns of categories as texts, K lists of B; None where there is no value.

    Args:
        items: As of `numbers_of`.
        names: Columns of categories.
        numbers: Columns of numbers.

    Raises:
        DataError: A column is missing.
    """
    if hasattr(items, "categories"):
        return [items.categories(name) for name in names]
    return [[_text(value) for value in values] for _, values in _columns(items, numbers, names)[len(numbers) :]]


def _matrix(items: Any, names: Sequence[str]) -> NDArray[np.float64]:
    numbers = np.asarray(items, dtype=np.float64)
    if numbers.ndim != 2 or numbers.shape[1] != len(names):
        raise DataError(f"rows must be numbers [B, {len(names)}] ({', '.join(names)}), got {list(numbers.shape)}")
    return numbers


def _is_named(items: Any) -> bool:
    return isinstance(items, Mapping) or (isinstance(items, list) and bool(items) and isinstance(items[0], Mapping))


def _columns(items: Any, numbers: Sequence[str], categories: Sequence[str]) -> list[tuple[str, list[Any]]]:
    """Return the columns in order, numbers before categories, by name or by position."""
    names = [*numbers, *categories]
    try:
        if isinstance(items, Mapping):
            return [(name, list(items[name])) for name in names]
        if _is_named(items):
            return [(name, [row[name] for row in items]) for name in names]
    except KeyError as e:
        raise DataError(f"rows have no column {e.args[0]!r}; give {', '.join(names)}") from e
    rows = [list(row) for row in items]
    if any(len(row) != len(names) for row in rows):
        raise DataError(f"rows must have {len(names)} values each ({', '.join(names)}); give them in this order")
    return [(name, [row[index] for row in rows]) for index, name in enumerate(names)]


def _count(items: Any) -> int:
    return len(next(iter(items.values()))) if isinstance(items, Mapping) else len(items)


def _as_numbers(values: list[Any], name: str) -> NDArray[np.float64]:
    try:
        return np.asarray([math.nan if value is None else value for value in values], dtype=np.float64)
    except (TypeError, ValueError) as e:
        raise DataError(f"rows: {name} must be a number ({' '.join(str(e).split())[:100]})") from e


def _text(value: Any) -> str | None:
    """Return a value as a table of Arrow spells it as text; None for one that is blank or missing."""
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, float | np.floating):
        if not math.isfinite(value):
            return None
        value = int(value) if float(value).is_integer() else value
    text = "" if value is None else str(value)
    return text if text.strip() else None
