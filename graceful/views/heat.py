"""Matrices of versions as heat maps: every cell has its number, a missing one says so. Runs in the driver.

One hue from light to dark, so that the order survives any colour vision and a grey printer. Text is black or white,
whichever contrasts more. Whether a pair is compatible is a sign in the cell, not a colour.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.table import Table

from graceful.views.rendering import render

Cells = Sequence[Sequence[float | None]]
RAMP = ((247, 251, 255), (198, 219, 239), (107, 174, 214), (33, 113, 181), (8, 48, 107))
TITLES = {"recall_at_1": "R@1", "map": "mAP", "negative_flip_rate": "NFR"}
TABLES = {
    "recall_at_1": "R@1, query (row) on gallery (column)",
    "negative_flip_rate": "NFR, row against column",
}
SUMMARIES = {
    "average_compatibility": "average compatibility, bar: the gallery's own version",
    "average_compatibility_independent": "average compatibility, bar: its unconstrained run",
    "average_multimodel_accuracy": "mean over galleries not newer than the queries",
    "backward_compatibility": "newest queries on older galleries, mean gain",
    "forward_compatibility": "change from not backfilling, mean over releases",
}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One number of a heat map with its background and ink; nothing was measured where `missing`."""

    text: str = ""
    ground: str = ""
    ink: str = ""
    missing: bool = False


@dataclass(frozen=True, kw_only=True)
class Heat:
    """A matrix as a table.

    Attributes:
        title: Its caption.
        names: Of rows and columns.
        rows: Cells; None: a pair that means nothing.
        columns: Names of the columns, where they are not those of the rows.
    """

    title: str
    names: Sequence[str]
    rows: list[list[Cell | None]]
    columns: Sequence[str] = ()


def heat(
    title: str,
    names: Sequence[str],
    cells: Cells,
    *,
    signs: Mapping[tuple[int, int], str] | None = None,
    triangle: bool = False,
) -> Heat:
    """Return one matrix as a heat map.

    Args:
        title: Its caption.
        names: Of rows and columns.
        cells: Fractions; shown in percent.
        signs: (row, column) -> a sign behind the number.
        triangle: Only what lies below the diagonal means something, and the ramp begins at 0.
    """
    measured = [cell for row in cells for cell in row if cell is not None]
    low, high = 0.0 if triangle else min(measured, default=0.0), max(measured, default=1.0)

    def drawn(row: int, column: int) -> Cell | None:
        if triangle and column >= row:
            return None
        sign = (signs or {}).get((row, column), "")
        return _cell(cells[row][column], low=low, high=high, sign=sign, digits=2 if triangle else 1)

    rows = [[drawn(row, column) for column in range(len(cells[row]))] for row in range(len(names))]
    return Heat(title=title, names=names, rows=rows)


def _cell(value: float | None, *, low: float, high: float, sign: str, digits: int = 1) -> Cell:
    if value is None:
        return Cell(missing=True)
    red, green, blue = colour(0.0 if high <= low else (value - low) / (high - low))
    ink = "#000" if _luminance((red, green, blue)) > 0.179 else "#fff"
    text = f"{100 * value:.{digits}f} {sign}".rstrip()
    return Cell(text=text, ground=f"#{red:02x}{green:02x}{blue:02x}", ink=ink)


def colour(share: float) -> tuple[int, int, int]:
    """Return the ramp's colour at a share from 0, light, to 1, dark."""
    place = min(max(share, 0.0), 1.0) * (len(RAMP) - 1)
    index = min(int(place), len(RAMP) - 2)
    mix = place - index
    first, second = RAMP[index], RAMP[index + 1]
    red, green, blue = (round(a + (b - a) * mix) for a, b in zip(first, second, strict=True))
    return red, green, blue


def _luminance(rgb: tuple[int, int, int]) -> float:
    """Return the relative luminance; above 0.179 black text contrasts more than white."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (channel / 255 for channel in rgb)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def matrices(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return every matrix of `pairs.pairs` with its summary, for the template `matrices.html.j2`."""
    names = document["versions"]
    measured = [metric for metric in ("recall_at_1", "map") if metric in document]
    return {
        "retrieval": [
            heat(TITLES[metric], names, document[metric], signs=_signs(document[metric])) for metric in measured
        ],
        "lengths": _lengths(document) if measured else "",
        "summary": _summary(document, measured) if measured else [],
        "flips": heat(TITLES["negative_flip_rate"], names, document["negative_flip_rate"], triangle=True),
        "lost": document.get("lost", {}),
        "left_out": document.get("left_out"),
        "fleet": _fleet(document["live_pairs"]) if "live_pairs" in document else [],
    }


def _fleet(pairs: Mapping[str, Any]) -> list[Heat]:
    """Return the heat maps of query models (rows) on gallery models (columns); pairs that are not live are empty."""
    signs = {
        (row, column): "" if live else "not live"
        for row, lives in enumerate(pairs["live"])
        for column, live in enumerate(lives)
    }
    columns = tuple(pairs["galleries"])
    return [
        replace(heat(TITLES[metric], pairs["queries"], pairs[metric], signs=signs), columns=columns)
        for metric in ("recall_at_1", "map")
    ]


def _lengths(document: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} {size or '-'}" for name, size in zip(document["versions"], document["embedding_sizes"], strict=True)
    )


def _signs(cells: Cells) -> dict[tuple[int, int], str]:
    signs = {}
    for row in range(len(cells)):
        for column in range(row):
            cross, own = cells[row][column], cells[column][column]
            if cross is not None and own is not None:
                signs[row, column] = "\u2713" if cross > own else "=" if cross == own else "\u2717"
    return signs


def summary_rows(document: Mapping[str, Any], metric: str) -> list[tuple[str, str]]:
    """Return the summary of one retrieval metric as label and text."""
    summary = document[f"summary_{metric}"]
    rows = [(label, _summed(key, summary[key])) for key, label in SUMMARIES.items()]
    if summary["update_gain"]:
        names = document["versions"]
        gains = [
            f"{name} {'-' if gain['value'] is None else format(gain['value'], '+.2f')}"
            for name, gain in zip(names[:-1], summary["update_gain"], strict=True)
        ]
        rows.append((f"update gain of {names[-1]} on older galleries, 1: as good as free of them", ", ".join(gains)))
        rows.append((f"what {names[-1]} gave up on its own gallery", f"{100 * summary['self_discount']:+.1f} points"))
    return rows


def _summed(key: str, row: Mapping[str, Any]) -> str:
    if row["value"] is None:
        return f"- ({row['reason']})"
    if key.startswith("average_compatibility"):
        return f"{row['value']:.2f} ({row['count']} of {row['n']} pairs, {row['ties']} ties)"
    return f"{100 * row['value']:+.1f} points" if "ward" in key else f"{100 * row['value']:.1f} %"


def _summary(document: Mapping[str, Any], metrics: Sequence[str]) -> list[tuple[str, ...]]:
    columns = [summary_rows(document, metric) for metric in metrics]
    rows = [(row[0][0], *(text for _, text in row)) for row in zip(*columns, strict=True)]
    reasons = document.get("unconstrained", {})
    for index, name in enumerate(document["versions"]):
        bars = [document["independent"][metric][index] for metric in metrics]
        shown = ["-" if bar is None else f"{100 * bar:.1f} %" for bar in bars]
        rows.append((f"unconstrained run of {name}: {reasons.get(name, '')}", *shown))
    return rows


def matrix_page(document: Mapping[str, Any], *, title: str) -> str:
    """Return the matrices as a page of their own, without scripts."""
    errors = ", ".join(
        f"{name} {'-' if error is None else f'{100 * error:.2f} %'}"
        for name, error in zip(document["versions"], document["error"], strict=True)
    )
    data = ", ".join(f"{split} {digest[:12]}" for split, digest in sorted(document.get("data", {}).items()))
    return render("matrix_page.html.j2", title=title, errors=errors, matrices=matrices(document), data=data)


def matrix_tables(document: Mapping[str, Any]) -> list[Table]:
    """Return the matrices as tables for the terminal, in percent."""
    tables = []
    for metric, title in TABLES.items():
        if metric not in document:
            continue
        table = Table(title=title, title_justify="left", caption="percent", caption_justify="left")
        for column in ("", *document["versions"]):
            table.add_column(column, justify="right" if column else "left")
        for name, row in zip(document["versions"], document[metric], strict=True):
            table.add_row(name, *("-" if cell is None else f"{100 * cell:.2f}" for cell in row))
        tables.append(table)
    if "live_pairs" in document:
        tables.append(_fleet_table(document["live_pairs"]))
    if "summary_recall_at_1" in document:
        summary = Table(title="R@1 in a few numbers", title_justify="left", show_header=False)
        for row in summary_rows(document, "recall_at_1"):
            summary.add_row(*row)
        tables.append(summary)
    return tables


def _fleet_table(pairs: Mapping[str, Any]) -> Table:
    table = Table(
        title="mAP, query model (row) on gallery model (column)",
        title_justify="left",
        caption="percent; -: not measured; (): the pair is not live",
        caption_justify="left",
    )
    for column in ("", *pairs["galleries"]):
        table.add_column(column, justify="right" if column else "left")
    for name, row, lives in zip(pairs["queries"], pairs["map"], pairs["live"], strict=True):
        cells = ["-" if cell is None else f"{100 * cell:.2f}" for cell in row]
        table.add_row(name, *(cell if live else f"({cell})" for cell, live in zip(cells, lives, strict=True)))
    return table
