"""The console on which commands and programs print their results. Client and driver."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

PIPED_WIDTH = 160
"""Columns of a table that is not shown on a terminal."""


def of_results() -> Console:
    """Return rich's console on stdout, which prints a table that is too wide in parts.

    Where the reader of stdout goes away, printing raises BrokenPipeError.
    """
    from rich.console import Console  # the command line starts without it
    from rich.table import Table

    class ResultConsole(Console):
        def on_broken_pipe(self) -> None:
            """Raise; rich would end the program with the exit code of a bug."""
            raise BrokenPipeError

        def print(self, *objects: Any, **options: Any) -> None:
            """Print as rich does, except that a table is printed in parts that fit."""
            for item in objects:
                if isinstance(item, Table):
                    for part in parts(item, self):
                        super().print(part, **options)
            others = [item for item in objects if not isinstance(item, Table)]
            if others or not objects:
                super().print(*others, **options)

    return ResultConsole(width=None if sys.stdout.isatty() else PIPED_WIDTH)


def parts(table: Table, console: Console) -> Iterator[Table]:
    """Yield a table, or tables of some of its columns that fit the console, so that no cell is cut.

    Each part begins with the first columns that are aligned to the left, which name the rows. A table with columns that
    fold within words fits by itself.
    """
    if any(column.overflow == "fold" for column in table.columns) or _least_width(table, console) <= console.width:
        yield table
        return
    names = len(list(takewhile(lambda column: column.justify == "left", table.columns)))
    keys = range(max(1, names) if names < len(table.columns) else 1)
    groups: list[list[int]] = [[*keys]]
    for index in range(len(keys), len(table.columns)):
        wider = [*groups[-1], index]
        if len(groups[-1]) > len(keys) and _least_width(_part(table, wider), console) > console.width:
            groups.append([*keys, index])
        else:
            groups[-1] = wider
    for number, group in enumerate(groups):
        part = _part(table, group)
        part.title = table.title if number == 0 else None
        part.caption = table.caption if number == len(groups) - 1 else None
        yield part


def _part(table: Table, indices: Sequence[int]) -> Table:
    """Return the table with these of its columns; a word that is wider than the console folds."""
    part = copy.copy(table)
    part.columns = [replace(table.columns[index], _index=place, overflow="fold") for place, index in enumerate(indices)]
    return part


def _least_width(table: Table, console: Console) -> int:
    """Return the width below which words of the table would be cut."""
    from rich.measure import Measurement

    return Measurement.get(console, console.options.update_width(10_000), table).minimum
