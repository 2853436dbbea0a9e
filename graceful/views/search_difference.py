"""Two searches of the same queries: tables for the terminal, one HTML page. Driver."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from graceful import catalogue
from graceful.report import Measurement
from graceful.views.rendering import render

if TYPE_CHECKING:
    from graceful.programs.searches.comparing import Comparison

FEW = 100
"""Queries of a slice under which its row is flagged."""
LISTED = 5
"""Results of a query that the terminal and the page show."""
SLICED = ("overlap_at_", "gain_recall_at_", "gain_ndcg_at_", "retrieval_nfr")
"""Beginnings of the names of metrics that are shown for each slice."""


def screen(found: Comparison) -> Group:
    """Return the tables for the terminal."""
    parts: list[Any] = [
        Text(title(found), style="bold"),
        _table(("measurement", "value [95 %]", "queries"), rows(found.metrics)),
    ]
    if found.slices:
        parts.append(_table(slice_head(found), slice_rows(found)))
    if found.worst:
        parts.append(_table(("queries that got worst", "NDCG", "overlap", "A", "B"), worst_rows(found)))
    parts += [Text(f"note: {note}") for note in found.notes]
    return Group(*parts)


def title(found: Comparison) -> str:
    """Return what is compared with what."""
    sides = (f"{side['index']} (snapshot {side['snapshot']}, {side['vectors']} vectors)" for side in (found.a, found.b))
    return f"A: {'  ->  B: '.join(sides)}; {found.queries} queries, the first {found.k} results"


def rows(metrics: Mapping[str, Measurement]) -> list[tuple[str, str, str]]:
    """Return every measurement with its interval."""
    return [(name, shown(name, measured), str(measured.n)) for name, measured in metrics.items()]


def shown(name: str, measured: Measurement) -> str:
    """Return a value with its interval; gains in points, the others in percent."""
    unit = "points" if name.startswith("gain_") else "fraction"
    if measured.value is None:
        return f"- ({measured.reason})" if measured.reason else "-"
    text = catalogue.shown(measured.value, unit)
    if measured.lower is None or measured.upper is None:
        return text
    return f"{text} [{100 * measured.lower:.2f}, {100 * measured.upper:.2f}]"


def slice_head(found: Comparison) -> tuple[str, ...]:
    """Return the head of the table of slices."""
    return ("slice", "queries", *_sliced(found))


def slice_rows(found: Comparison) -> list[tuple[str, ...]]:
    """Return a row for each slice; few queries are flagged."""
    names, lines = _sliced(found), []
    for column, value, metrics in found.slices:
        count = next(iter(metrics.values())).n
        flag = " (few)" if count < FEW else ""
        lines.append((f"{column} {value}", f"{count}{flag}", *(shown(name, metrics[name]) for name in names)))
    return lines


def _sliced(found: Comparison) -> list[str]:
    return [name for name in found.metrics if name.startswith(SLICED)]


def worst_rows(found: Comparison) -> list[tuple[str, ...]]:
    """Return the queries that got worst with the first results of both."""
    lines = []
    for row in found.worst:
        gains = [row.get(f"{letter}_ndcg") for letter in "ab"]
        change = "-" if None in gains else " -> ".join(f"{value:.2f}" for value in gains if value is not None)
        name = f"{row['query']} {row['text'][:80]}" if "text" in row else row["query"]
        results = (", ".join(row[letter][:LISTED]) for letter in "ab")
        lines.append((name, change, f"{row['rank_biased_overlap']:.2f}", *results))
    return lines


def page(found: Comparison) -> str:
    """Return one self-contained HTML page: no scripts, no network."""
    return render(
        "search_difference.html.j2",
        title=title(found),
        metrics=rows(found.metrics),
        slice_head=slice_head(found),
        slices=slice_rows(found),
        worst=worst_rows(found),
        notes=found.notes,
    )


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in head:
        table.add_column(column, overflow="fold")
    for line in lines:
        table.add_row(*(Text(cell) for cell in line))
    return table
