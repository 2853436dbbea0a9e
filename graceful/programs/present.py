"""Progress for people while a program runs: a bar on a terminal, lines elsewhere. In the driver."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from graceful.programs import ray_gauges

LINE_EVERY = 5.0
"""Seconds between progress lines where stderr is not a terminal."""


@dataclass(kw_only=True)
class Talk:
    """Tells on stderr how far a program is: a bar on a terminal, `key=value` lines elsewhere. Use as a context."""

    console: Console
    quiet: bool = False
    clock: Any = time.monotonic
    _bar: Progress | None = None
    _tasks: dict[str, TaskID] = field(default_factory=dict)
    _spoken: float = float("-inf")
    _stage: str = "train"

    def __enter__(self) -> Self:
        if self.console.is_terminal and not self.quiet:
            self._bar = Progress(
                TextColumn("{task.description:<28}"),
                BarColumn(),
                TextColumn("{task.completed:.0f}/{task.total:.0f}"),
                TextColumn("{task.fields[facts]}"),
                TimeRemainingColumn(),
                console=self.console,
            )
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    @contextmanager
    def live(self) -> Iterator[Callable[[RenderableType], None] | None]:
        """Return what replaces the bar and is shown again whenever it changes; None where stderr is not a terminal."""
        if self._bar is None:
            yield None
            return
        bar, shown = self._bar, list[RenderableType]()
        bar.stop()
        with Live(console=self.console, get_renderable=lambda: Group(*shown, bar.get_renderable())) as live:

            def show(content: RenderableType) -> None:
                shown[:] = [content]
                live.refresh()

            yield show

    def __call__(self, row: Mapping[str, object]) -> None:
        """Take one row of progress: a stage that begins, or a step of one."""
        ray_gauges.progress(row)
        if self.quiet:
            return
        if "step" not in row:
            self.console.print(_line(row), highlight=False, markup=False, soft_wrap=True)
        elif self._bar is not None:
            self._advance(row)
        elif self._due(row):
            self.console.print(_line(row), highlight=False, markup=False, soft_wrap=True)

    def _due(self, row: Mapping[str, object]) -> bool:
        now = self.clock()
        if now - self._spoken < LINE_EVERY and row.get("step") != row.get("steps"):
            return False
        self._spoken = now
        return True

    def _advance(self, row: Mapping[str, object]) -> None:
        assert self._bar is not None
        stage = str(row.get("stage", "train"))
        total = float(str(row.get("steps") or row["step"]))
        if stage not in self._tasks:
            self._tasks[stage] = self._bar.add_task(stage, total=total, facts="")
        facts = {name: row[name] for name in ("loss", "validation_error", "samples_per_second") if name in row}
        self._bar.update(self._tasks[stage], completed=float(str(row["step"])), total=total, facts=_line(facts))


def _line(row: Mapping[str, object]) -> str:
    return " ".join(f"{key}={_value(value)}" for key, value in row.items() if not isinstance(value, dict))


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ",".join(map(str, value)) or "none"
    return str(value).replace(" ", "_")
