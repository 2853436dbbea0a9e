"""Judgments of relevance of a table's queries, read from files of their own. Driver and workers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from graceful.errors import DataError
from graceful.metrics.judgments import Judgments
from graceful.spec.table import JudgmentFiles
from graceful.tasks.table import rows
from graceful.tasks.table.source import Table, joined, read_files

KEY = "judgments"


def read(section: JudgmentFiles, *, queries: NDArray[np.str_], items: NDArray[np.str_]) -> Judgments:
    """Return the judgments that a spec names.

    Args:
        section: Files and columns.
        queries: Ids of the query split.
        items: Ids of the gallery split.

    Raises:
        DataError: A file or column is missing or damaged, a row lacks a value, a grade is not a whole number from 0 on,
        a
            pair is judged twice, or no judgment is about these queries and items.
    """
    table = joined([part for _, part in _parts(section)])
    judged = {name: _texts(table, getattr(section, name), key=f"{KEY}.{name}") for name in ("query", "item")}
    _require_pairs(table, judged["query"], judged["item"])
    judgments = Judgments(queries=judged["query"], items=judged["item"], grades=_grades(table, section.grade))
    about = np.isin(judged["query"], queries) & np.isin(judged["item"], items) & (judgments.grades > 0)
    if not about.any():
        raise DataError(
            f"task.{KEY}: none of {len(judgments.grades)} rows of {table.file_of(0)} names a row of the query split"
            f" and one of the gallery split with a grade above 0; {section.query} and {section.item} must hold values"
            " of columns.id"
        )
    return judgments


def _parts(section: JudgmentFiles) -> list[tuple[str, Any]]:
    return [(name, part) for name in section.files for part in read_files([name], texts=[section.query, section.item])]


def _texts(table: Table, name: str, *, key: str) -> NDArray[np.str_]:
    rows.require_texts(table, name, key=key)
    texts = rows.as_texts(table, name, _column(table, name))
    present = np.asarray(texts.is_valid())
    if not present.all():
        raise DataError(f"{table.place(int(np.argmin(present)))}: no value in {name}; correct the row")
    return np.asarray(texts.to_pylist(), dtype=np.str_)


def _grades(table: Table, name: str | None) -> NDArray[np.int64]:
    if name is None:
        return np.ones(len(table.rows), dtype=np.int64)
    rows.require_type(table, name, numbers=True, key=f"{KEY}.grade")
    numbers = np.asarray(_column(table, name).to_numpy(zero_copy_only=False), dtype=np.float64)
    with np.errstate(invalid="ignore"):
        whole = np.isfinite(numbers) & (numbers >= 0) & (numbers == np.floor(numbers))
    if not whole.all():
        row = int(np.argmin(whole))
        raise DataError(
            f"{table.place(row)}: {name} must be a whole number from 0 on, got {numbers[row]:g}; correct it"
        )
    return numbers.astype(np.int64)


def _require_pairs(table: Table, queries: NDArray[np.str_], items: NDArray[np.str_]) -> None:
    order = np.lexsort((items, queries))
    same = (queries[order][1:] == queries[order][:-1]) & (items[order][1:] == items[order][:-1])
    if same.any():
        row, before = sorted(int(order[int(np.argmax(same)) + step]) for step in (0, 1))[::-1]
        raise DataError(
            f"{table.place(row)}: query {str(queries[row])!r} and item {str(items[row])!r} are judged in"
            f" {table.place(before)}, too; keep one of the rows"
        )


def _column(table: Table, name: str) -> Any:
    """Return a whole column as one Arrow array."""
    column = table.block([name], 0, len(table.rows)).column(name)
    return column.combine_chunks() if hasattr(column, "combine_chunks") else column
