"""What a program hands to its entry point: a result, an exit code, and how a terminal shows it. Runs in the driver."""

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
