"""The result of a program for its entry point: JSON values, an exit code, a function that prints them. Driver."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console

Show = Callable[[Console], None]
Outcome = tuple[Any, int, Show]
"""JSON values, the exit code, what prints them for people."""


def lines_of(result: Mapping[str, Any]) -> Show:
    """Return what prints each value behind its name."""

    def show(console: Console) -> None:
        for key, value in result.items():
            console.print(f"{key}: {value}", markup=False, highlight=False, soft_wrap=True)

    return show
