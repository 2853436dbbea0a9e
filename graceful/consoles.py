"""The console on which commands and programs print their results. Client and driver."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

PIPED_WIDTH = 160
"""Columns of a table that is not shown on a terminal."""


def of_results() -> Console:
    """Return rich's console on stdout; where the reader of stdout goes away, it raises BrokenPipeError."""
    from rich.console import Console  # the command line starts without it

    class ResultConsole(Console):
        """rich would end the program with the exit code of a bug when the reader of stdout goes away."""

        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    return ResultConsole(width=None if sys.stdout.isatty() else PIPED_WIDTH)
