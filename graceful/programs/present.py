"""Results for people: the table of versions against ancestors, progress while a program runs. In the driver."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from graceful.report import Measurement, Report
from graceful.views.rendering import percent

LINE_EVERY = 5.0
"""Seconds between progress lines where stderr is no terminal."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One version's numbers with what the gate said of it.

    Attributes:
        name: Name of the version.
        outcome: passed or held.
        alone: Its own measurements.
        against: Ancestor -> measurements, nearest first; empty for a first link.
    """

    name: str
    outcome: str
    alone: Mapping[str, Measurement]
    against: Mapping[str, Mapping[str, Measurement]]

    @classmethod
    def of(cls, report: Report, outcome: str) -> Self:
        """From a report."""
        against = {comparison.against: comparison.measurements for comparison in report.comparisons}
        return cls(name=report.version, outcome=outcome, alone=report.measurements, against=against)


ALONE = {"error": "error_rate", "self-test R@1": "self_test_recall_at_1"}
AGAINST = {
    "NFR [95 %]": "negative_flip_rate",
    "relative NFR": "relative_nfr",
    "positive flips": "positive_flip_rate",
    "cross-test R@1": "cross_test_recall_at_1",
    "old/old R@1": "old_old_recall_at_1",
}
COLUMNS = ("version", "against", *ALONE, *AGAINST, "verdict")
COLOURS = {"passed": "green", "held": "yellow"}


def chain_rows(versions: Sequence[Judged]) -> list[dict[str, str]]:
    """One row for each version and each of its ancestors, in words and percent; a first link has one row."""
    rows: list[dict[str, str]] = []
    for version in versions:
        alone = {column: percent(version.alone.get(key), interval=False) for column, key in ALONE.items()}
        for ancestor, found in (version.against or {"(first link)": {}}).items():
            measured = {column: percent(found.get(key), interval="[" in column) for column, key in AGAINST.items()}
            rows.append({"version": version.name, "against": ancestor, **alone, **measured, "verdict": version.outcome})
    return rows


def chain_table(versions: Sequence[Judged], *, title: str) -> Table:
    """The rows as a table for the terminal."""
    table = Table(title=title, title_justify="left", caption="rates in percent", caption_justify="left")
    for column in COLUMNS:
        table.add_column(column, justify="left" if column in ("version", "against", "verdict") else "right")
    for row in chain_rows(versions):
        colour = COLOURS.get(row["verdict"], "red")
        cells = [row[column] for column in COLUMNS]
        table.add_row(*cells[:-1], f"[{colour}]{cells[-1]}[/{colour}]")
    return table


def history_table(events: Sequence[Mapping[str, Any]], *, title: str) -> Table:
    """One row for each event, oldest first."""
    table = Table(title=title, title_justify="left")
    for column in ("time", "what", "version", "champion before", "by", "reason"):
        table.add_column(column, overflow="fold")
    for event in events:
        marks = [mark for mark in ("waived", "forced") if event[mark]]
        marks += [] if event["status"] == "FINISHED" else ["unfinished" if event["status"] == "RUNNING" else "failed"]
        what = f"{event['kind']} ({', '.join(marks)})" if marks else event["kind"]
        version = f"{event['version'] or '?'} {event['name']}".strip()
        before = "" if event["before"] is None else str(event["before"])
        reason = "; ".join([event["reason"], *(f"altered: {words}" for words in event["altered"])])
        cells = (event["time"].partition(".")[0], what, version, before, event["actor"], reason)
        table.add_row(*(Text(cell) for cell in cells))
    return table


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
        """In place of the bar, something that is shown anew whenever it changes; None where stderr is no terminal."""
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
