"""A difference of two versions: tables for the terminal, one HTML page with pictures. Runs in the driver."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from graceful import catalogue
from graceful.report import Measurement
from graceful.views.rendering import percent, render

if TYPE_CHECKING:
    from graceful.programs.versions.diff import Difference, Flip

SHOWN = 20
"""Flips that the terminal lists."""
PICTURED = 96
"""Flips of either kind that the page shows."""


def screen(difference: Difference) -> Group:
    """Return the tables for the terminal."""
    old, new = titles(difference)
    parts: list[Any] = [
        Text(f"{old}  ->  {new}", style="bold"),
        _table(("flips", "percent [95 %]"), flip_rows(difference)),
    ]
    parts.append(_table(("measurement", old, new, "change"), metric_rows(difference)))
    if difference.spec:
        parts.append(_table(("spec key", old, new), spec_rows(difference)))
    for title, flips in (("broken", difference.broken), ("fixed", difference.fixed)):
        if flips:
            shown = f", the most confident {SHOWN}" if len(flips) > SHOWN else ""
            head = (f"{title}: {len(flips)}{shown}", "label", old, new, "confidence")
            parts.append(_table(head, [_cells(flip) for flip in flips[:SHOWN]]))
    parts += [Text(f"note: {note}") for note in difference.notes]
    return Group(*parts)


def titles(difference: Difference) -> tuple[str, str]:
    """Return what the two columns are called."""
    old, new = difference.old, difference.new
    if old.model == new.model:
        return old.name, new.name
    return f"{old.model} {old.name}", f"{new.model} {new.name}"


def flip_rows(difference: Difference) -> list[tuple[str, str]]:
    """Return every rate with its interval and how many samples it stands for."""
    rows = []
    for name, measured in difference.flips.items():
        counted = "" if measured.count is None else f"  ({measured.count} of {measured.n})"
        rows.append((name, f"{_ratio(measured) if name == 'relative_nfr' else percent(measured)}{counted}"))
    return rows or [("unknown", "-")]


def metric_rows(difference: Difference) -> list[tuple[str, str, str, str]]:
    """Return every measurement of the two versions alone."""
    rows = []
    for name, (old, new) in difference.metrics.items():
        unit = catalogue.unit_of(name)
        change = "-" if old is None or new is None else _change(new - old, unit)
        rows.append((name, _number(old, unit), _number(new, unit), change))
    return rows


def spec_rows(difference: Difference) -> list[tuple[str, str, str]]:
    """Return the keys of the spec that differ."""
    return [(key, _value(old), _value(new)) for key, (old, new) in difference.spec.items()]


def page(difference: Difference, drawn: Mapping[str, bytes], texts: Mapping[str, str] = MappingProxyType({})) -> str:
    """Return one self-contained HTML page: no scripts, no network."""
    old_title, new_title = titles(difference)
    return render(
        "difference.html.j2",
        old=difference.old,
        new=difference.new,
        old_title=old_title,
        new_title=new_title,
        rates=flip_rows(difference),
        broken=difference.broken,
        fixed=difference.fixed,
        pictured=PICTURED,
        pictures={id: f"data:image/png;base64,{base64.b64encode(png).decode()}" for id, png in drawn.items()},
        texts=texts,
        metrics=metric_rows(difference),
        spec=spec_rows(difference),
        notes=difference.notes,
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(head):
        table.add_column(column, justify="left" if index == 0 or len(head) != 4 else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _cells(flip: Flip) -> tuple[str, ...]:
    return flip.id, flip.label, flip.old, flip.new, f"{100 * flip.confidence:.0f} %"


def _ratio(measured: Measurement) -> str:
    if measured.value is None:
        return f"- ({measured.reason})" if measured.reason else "-"
    interval = "" if measured.lower is None else f" [{measured.lower:.2f}, {measured.upper:.2f}]"
    return f"{measured.value:.2f}{interval}, a ratio"


def _number(value: float | None, unit: str) -> str:
    return "-" if value is None else catalogue.shown(value, unit)


def _change(value: float, unit: str) -> str:
    text = catalogue.shown(value, "points" if unit == "fraction" else unit)
    return text if text.startswith("-") else f"+{text}"


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
