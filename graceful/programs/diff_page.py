"""A difference of two versions for people: tables for the terminal, one HTML page with pictures. Runs in the driver."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from graceful import catalogue, tasks
from graceful.errors import GracefulError
from graceful.programs.diff import SHOWN, Difference, Flip
from graceful.programs.flipped import excerpts, thumbnails
from graceful.report import Measurement
from graceful.spec import parse
from graceful.storage import write_text
from graceful.views.rendering import percent, render

PICTURED = 96
"""Flips of either kind that the page shows."""


def screen(found: Difference) -> Group:
    """For the terminal."""
    old, new = titles(found)
    parts: list[Any] = [Text(f"{old}  ->  {new}", style="bold"), _table(("flips", "percent [95 %]"), flip_rows(found))]
    parts.append(_table(("measurement", old, new, "change"), metric_rows(found)))
    if found.spec:
        parts.append(_table(("spec key", old, new), spec_rows(found)))
    for title, flips in (("broken", found.broken), ("mended", found.mended)):
        if flips:
            shown = f", the most confident {SHOWN}" if len(flips) > SHOWN else ""
            head = (f"{title}: {len(flips)}{shown}", "label", old, new, "confidence")
            parts.append(_table(head, [_cells(flip) for flip in flips[:SHOWN]]))
    parts += [Text(f"note: {note}") for note in found.notes]
    return Group(*parts)


def titles(found: Difference) -> tuple[str, str]:
    """What the two columns are called."""
    one, two = found.old, found.new
    if one.model == two.model:
        return one.name, two.name
    return f"{one.model} {one.name}", f"{two.model} {two.name}"


def flip_rows(found: Difference) -> list[tuple[str, str]]:
    """Every rate with its interval and how many samples it stands for."""
    rows = []
    for name, measured in found.flips.items():
        counted = "" if measured.count is None else f"  ({measured.count} of {measured.n})"
        rows.append((name, f"{_ratio(measured) if name == 'relative_nfr' else percent(measured)}{counted}"))
    return rows or [("unknown", "-")]


def metric_rows(found: Difference) -> list[tuple[str, str, str, str]]:
    """Every measurement of the two versions alone."""
    rows = []
    for name, (old, new) in found.metrics.items():
        unit = catalogue.unit_of(name)
        change = "-" if old is None or new is None else _change(new - old, unit)
        rows.append((name, _number(old, unit), _number(new, unit), change))
    return rows


def spec_rows(found: Difference) -> list[tuple[str, str, str]]:
    """Keys of the spec that differ."""
    return [(key, _value(old), _value(new)) for key, (old, new) in found.spec.items()]


def write(found: Difference, path: Path, spec: Mapping[str, Any] | None = None) -> Difference:
    """Write the page, with pictures of what flipped where the task's data is at hand.

    Args:
        found: What to show.
        path: Of the HTML file.
        spec: Whose task has the samples; None: the recorded one of the new version, unless that names a file of code,
            which a registry is not trusted with.

    Returns:
        The difference, with a note where there are no pictures.
    """
    drawn, texts, why = _shown(found, spec or found.task)
    if why:
        found = replace(found, notes=(*found.notes, f"no pictures: {why}"))
    write_text(path, page(found, drawn, texts))
    return found


def _shown(
    found: Difference, document: Mapping[str, Any] | None
) -> tuple[dict[str, bytes], dict[str, str], str | None]:
    """Return pictures and texts of samples by id, and why there are none of either."""
    ids = [flip.id for flip in (*found.broken[:PICTURED], *found.mended[:PICTURED])]
    if not ids:
        return {}, {}, None
    if document is None:
        return {}, {}, "the task is code of your own; give --spec with the spec of the new version"
    try:
        task = parse({**document, "gate": {}}).task  # a gate of before may be one that is refused now
        samples = tasks.build(task).samples("test")
        drawn, texts = thumbnails(ids, samples), excerpts(ids, samples)
    except GracefulError as e:
        return {}, {}, e.message
    none = "the samples that flipped are neither images nor texts, or not in the test data of that spec"
    return drawn, texts, None if drawn or texts else none


def page(found: Difference, drawn: Mapping[str, bytes], texts: Mapping[str, str] = MappingProxyType({})) -> str:
    """Return one self-contained HTML page: no scripts, no network."""
    old_title, new_title = titles(found)
    return render(
        "difference.html.j2",
        old=found.old,
        new=found.new,
        old_title=old_title,
        new_title=new_title,
        rates=flip_rows(found),
        broken=found.broken,
        mended=found.mended,
        pictured=PICTURED,
        pictures={id: f"data:image/png;base64,{base64.b64encode(png).decode()}" for id, png in drawn.items()},
        texts=texts,
        metrics=metric_rows(found),
        spec=spec_rows(found),
        notes=found.notes,
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


def _change(difference: float, unit: str) -> str:
    text = catalogue.shown(difference, "points" if unit == "fraction" else unit)
    return text if text.startswith("-") else f"+{text}"


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
