"""Results on stdout as table, JSON or YAML; talk on stderr. Runs on the client."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from graceful import consoles, startup
from graceful.errors import GracefulError


def document(value: Any, output: str) -> None:
    """Print a JSON value as json or yaml.

    Args:
        value: Mappings, lists, texts, numbers.
        output: `json` or `yaml`.
    """
    if output == "json":
        sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")
    else:
        from graceful import documents

        sys.stdout.write(documents.dump(value, allow_unicode=(sys.stdout.encoding or "").lower().startswith("utf")))


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, title: str | None = None) -> None:
    """Print rows as a table without markup: square brackets in a cell are shown as they are.

    Args:
        columns: Headings.
        rows: Cells; a cell that is a known state (ok, passed, held ...) gets its colour on a terminal.
        title: A line above the table.
    """
    from rich.table import Table
    from rich.text import Text

    rendered = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in columns:
        rendered.add_column(column, overflow="fold")
    for row in rows:
        rendered.add_row(*(Text(cell, style=COLOURS.get(cell, "")) for cell in row))
    consoles.of_results().print(rendered)


COLOURS = {"ok": "green", "met": "green", "passed": "green", "warn": "yellow", "held": "yellow", "fail": "bold red"}


def talk(line: str) -> None:
    """Say one line on stderr."""
    sys.stderr.write(line + "\n")


def line(text: str) -> None:
    """Print one line of result on stdout, at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def surviving() -> AbstractContextManager[None]:
    """Print a result of which the exit code is the better half: it stays what it is where stdout cannot be written."""
    return startup.result_on_stdout(lambda message: talk(f"graceful: {message}"))


def warn(error: GracefulError) -> None:
    """Say that something failed and is tried again."""
    talk(f"{time.strftime('%H:%M:%S')} trying again: {error.message}")
