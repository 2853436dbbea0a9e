"""Matrices of versions as heat maps in HTML: every cell has its number, a missing one says so. Runs in the driver.

One hue from light to dark, so that the order survives any colour vision and a grey printer. Text is black or white,
whichever contrasts more. Whether a pair is compatible is a sign in the cell, not a colour.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

Cells = Sequence[Sequence[float | None]]
RAMP = ((247, 251, 255), (198, 219, 239), (107, 174, 214), (33, 113, 181), (8, 48, 107))
STYLE = """
table.heat{width:auto;border-collapse:separate;border-spacing:2px}table.heat th{border:0;text-align:right}
table.heat thead th{text-align:center}table.heat caption{text-align:left;font-weight:600;padding:.2em 0}
table.heat td{min-width:4.6em;text-align:center;border:0;padding:.45em .5em;font-variant-numeric:tabular-nums}
td.gap{background:repeating-linear-gradient(45deg,#fff 0 4px,#d9dee6 4px 6px);color:#1c2430}
.beside{display:flex;flex-wrap:wrap;gap:6px 36px;overflow-x:auto}
"""
TITLES = {"recall_at_1": "R@1", "map": "mAP", "negative_flip_rate": "NFR"}
SUMMARIES = {
    "average_compatibility": "average compatibility, bar: the gallery's own version",
    "average_compatibility_independent": "average compatibility, bar: its unconstrained run",
    "average_multimodel_accuracy": "mean over galleries not newer than the queries",
    "backward_compatibility": "newest queries on older galleries, mean gain",
    "forward_compatibility": "change from not backfilling, mean over releases",
}


def heat(
    title: str,
    names: Sequence[str],
    cells: Cells,
    *,
    signs: Mapping[tuple[int, int], str] | None = None,
    triangle: bool = False,
) -> str:
    """One matrix as a table.

    Args:
        title: Its caption.
        names: Of rows and columns.
        cells: Fractions; shown in percent.
        signs: (row, column) -> a sign behind the number.
        triangle: Only what lies below the diagonal means something, and the ramp begins at 0.
    """
    known = [cell for row in cells for cell in row if cell is not None]
    low, high = 0.0 if triangle else min(known, default=0.0), max(known, default=1.0)
    head = "<td></td>" + "".join(f"<th scope='col'>{escape(name)}</th>" for name in names)
    body = "".join(
        f"<tr><th scope='row'>{escape(name)}</th>"
        + "".join(
            "<td></td>"
            if triangle and column >= row
            else _cell(cell, low=low, high=high, sign=(signs or {}).get((row, column), ""), digits=2 if triangle else 1)
            for column, cell in enumerate(cells[row])
        )
        + "</tr>"
        for row, name in enumerate(names)
    )
    return f"<table class='heat'><caption>{escape(title)}, %</caption><thead><tr>{head}</tr></thead>{body}</table>"


def _cell(value: float | None, *, low: float, high: float, sign: str, digits: int = 1) -> str:
    if value is None:
        return "<td class='gap' title='not measured'>-</td>"
    red, green, blue = colour(0.0 if high <= low else (value - low) / (high - low))
    ink = "#000" if _luminance((red, green, blue)) > 0.179 else "#fff"
    shown = f"{100 * value:.{digits}f}{' ' + sign if sign else ''}"
    return f"<td style='background:#{red:02x}{green:02x}{blue:02x};color:{ink}'>{shown}</td>"


def colour(share: float) -> tuple[int, int, int]:
    """The ramp's colour at a share from 0, light, to 1, dark."""
    place = min(max(share, 0.0), 1.0) * (len(RAMP) - 1)
    index = min(int(place), len(RAMP) - 2)
    mix = place - index
    first, second = RAMP[index], RAMP[index + 1]
    red, green, blue = (round(a + (b - a) * mix) for a, b in zip(first, second, strict=True))
    return red, green, blue


def _luminance(rgb: tuple[int, int, int]) -> float:
    """Relative luminance; above 0.179 black text contrasts more than white."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (channel / 255 for channel in rgb)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def matrices(document: Mapping[str, Any]) -> str:
    """Every matrix of `pairs.pairs` with its summary, as HTML."""
    names = document["versions"]
    measured = [metric for metric in ("recall_at_1", "map") if metric in document]
    parts = []
    if measured:
        maps = [heat(TITLES[one], names, document[one], signs=_signs(document[one])) for one in measured]
        parts.append(f"<h3>Retrieval: queries by the row's version, gallery by the column's</h3>{_beside(maps)}")
        parts.append(
            "<p class='note'>Below the diagonal a new client meets an old gallery: &#10003; better than the gallery's"
            " own version, = a tie, &#10007; worse; ties are not compatible. Above it an old client meets a new"
            " gallery. The newer side is cut to the older one's length, or padded with zeros, before both are"
            f" normalised; lengths: {escape(_lengths(document))}.</p>"
        )
        parts.append(_summary(document, measured))
    triangle = heat(TITLES["negative_flip_rate"], names, document["negative_flip_rate"], triangle=True)
    parts.append(f"<h3>Negative flips: what the row's version breaks of the column's</h3>{_beside([triangle])}")
    for name, reason in document.get("lost", {}).items():
        parts.append(f"<p class='note'>{escape(name)} cannot be run, {escape(reason)}.</p>")
    if document.get("left_out"):
        parts.append(
            f"<p class='note'>{document['left_out']} older versions are not shown;"
            " <code>graceful evaluate SPEC --matrix</code> measures all.</p>"
        )
    return "".join(parts)


def _beside(tables: Sequence[str]) -> str:
    return f"<div class='beside'>{''.join(tables)}</div>"


def _lengths(document: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} {size or '-'}" for name, size in zip(document["versions"], document["embedding_sizes"], strict=True)
    )


def _signs(cells: Cells) -> dict[tuple[int, int], str]:
    found = {}
    for row in range(len(cells)):
        for column in range(row):
            cross, own = cells[row][column], cells[column][column]
            if cross is not None and own is not None:
                found[row, column] = "&#10003;" if cross > own else "=" if cross == own else "&#10007;"
    return found


def summary_rows(document: Mapping[str, Any], metric: str) -> list[tuple[str, str]]:
    """The summary of one retrieval metric as label and text."""
    found = document[f"summary_{metric}"]
    rows = [(label, _summed(key, found[key])) for key, label in SUMMARIES.items()]
    if found["update_gain"]:
        names = document["versions"]
        gains = [
            f"{name} {'-' if one['value'] is None else format(one['value'], '+.2f')}"
            for name, one in zip(names[:-1], found["update_gain"], strict=True)
        ]
        rows.append((f"update gain of {names[-1]} on older galleries, 1: as good as free of them", ", ".join(gains)))
        rows.append((f"what {names[-1]} gave up on its own gallery", f"{100 * found['self_discount']:+.1f} points"))
    return rows


def _summed(key: str, found: Mapping[str, Any]) -> str:
    if found["value"] is None:
        return f"- ({found['reason']})"
    if key.startswith("average_compatibility"):
        return f"{found['value']:.2f} ({found['count']} of {found['n']} pairs, {found['ties']} ties)"
    return f"{100 * found['value']:+.1f} points" if "ward" in key else f"{100 * found['value']:.1f} %"


def _summary(document: Mapping[str, Any], metrics: Sequence[str]) -> str:
    columns = [summary_rows(document, metric) for metric in metrics]
    rows = [(row[0][0], *(text for _, text in row)) for row in zip(*columns, strict=True)]
    reasons = document.get("unconstrained", {})
    for index, name in enumerate(document["versions"]):
        bars = [document["independent"][metric][index] for metric in metrics]
        shown = ["-" if bar is None else f"{100 * bar:.1f} %" for bar in bars]
        rows.append((f"unconstrained run of {name}: {reasons.get(name, '')}", *shown))
    head = "<tr><td></td>" + "".join(f"<th scope='col'>{TITLES[metric]}</th>" for metric in metrics) + "</tr>"
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table class='facts'>{head}{body}</table>"


def matrix_page(document: Mapping[str, Any], *, title: str, style: str) -> str:
    """The matrices as a page of their own, without scripts."""
    head = (
        f"<meta charset='utf-8'><meta name='viewport' content='width=device-width'><title>{escape(title)}</title>"
        f"<style>{style}</style>"
    )
    errors = ", ".join(
        f"{name} {'-' if error is None else f'{100 * error:.2f} %'}"
        for name, error in zip(document["versions"], document["error"], strict=True)
    )
    data = ", ".join(f"{split} {digest[:12]}" for split, digest in sorted(document.get("data", {}).items()))
    body = (
        f"<h1>{escape(title)}</h1><p>Error: {escape(errors)}.</p>{matrices(document)}"
        f"<p class='note'>Data: {escape(data)}</p>"
    )
    return f"<!doctype html><html lang='en'><head>{head}</head><body>{body}</body></html>\n"
