"""The report as one self-contained HTML page with pictures: no scripts, no network. Runs in the driver."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from graceful import catalogue
from graceful.gate import Verdict
from graceful.programs import constraint_page, heat
from graceful.programs.flipped import Flip
from graceful.programs.present import percent
from graceful.report import Comparison, Measurement, Report

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:960px;margin:2em auto;padding:0 1em;color:#1c2430}
h1{margin-bottom:.1em}table{border-collapse:collapse;margin:1em 0;width:100%}
th,td{padding:.35em .7em;border-bottom:1px solid #d9dee6;text-align:right}th:first-child,td:first-child{text-align:left}
.flips{display:flex;flex-wrap:wrap;gap:8px}figure{margin:0;width:72px;text-align:center}
figure img{border:1px solid #d9dee6}small{color:#5b6675}.all td:last-child{text-align:left}
.passed{color:#1a7f4b}.held{color:#b35c00}.note{color:#5b6675}svg{width:100%;height:auto}
.cards figure{width:88px;font-size:13px;line-height:1.25}.cards img{image-rendering:pixelated}
"""
PAGE = STYLE + heat.STYLE + constraint_page.STYLE
BAR_LEFT, BAR_WIDTH, ROW_HEIGHT = 150, 560, 34
HEADLINE = ("negative_flip_rate", "positive_flip_rate", "relative_nfr", "cross_test_recall_at_1", "cross_test_map")


def render_html(
    report: Report,
    verdict: Verdict,
    *,
    flips: Sequence[Flip] = (),
    pictures: Mapping[str, str] | None = None,
    constraints: Mapping[str, Any] | None = None,
) -> str:
    """Draw a report and its verdict.

    Args:
        report: The evidence.
        verdict: What the gate made of it.
        flips: Negative flips to show, worst first.
        pictures: Sample id -> image as a data URI.
        constraints: The constraint report, where there is one.
    """
    title = f"{report.model} {report.version}"
    parts = [
        f"<h1>{escape(title)} <span class='{verdict.outcome}'>{escape(verdict.outcome)}</span></h1>",
        _findings(verdict),
        "<h2>Negative flips by ancestor</h2>" + _flip_bars(report, verdict) if report.comparisons else "",
        _constraints(constraints) if constraints and report.comparisons else "",
        _flips(flips, pictures or {}) if flips else "",
        "<h2>Against each ancestor</h2>" + _comparisons(report.comparisons) if report.comparisons else "",
        "<h2>All measurements</h2>" + _measurements(report),
        "".join(f"<p class='note'>{escape(note)}</p>" for note in report.notes),
        "<p class='note'>Data: " + escape(", ".join(f"{k} {v[:12]}" for k, v in sorted(report.data.items()))) + "</p>",
    ]
    head = (
        f"<meta charset='utf-8'><meta name='viewport' content='width=device-width'><title>{escape(title)}</title>"
        f"<style>{PAGE}</style>"
    )
    return f"<!doctype html><html lang='en'><head>{head}</head><body>{''.join(parts)}</body></html>\n"


def _findings(verdict: Verdict) -> str:
    items = "".join(
        f"<li class='{'passed' if finding.met else 'held'}'>{escape(finding.reason)}</li>"
        for finding in verdict.findings
    )
    return f"<ul>{items}</ul>"


def _flip_bars(report: Report, verdict: Verdict) -> str:
    """One bar per ancestor: NFR, its interval as a whisker, the gate's bound as a line."""
    bounds = {
        finding.against: finding.constraint.bound
        for finding in verdict.findings
        if finding.constraint.metric == "negative_flip_rate"
    }
    measured = [(item.against, item.measurements["negative_flip_rate"]) for item in report.comparisons]
    top = max([m.upper or 0.0 for _, m in measured] + list(bounds.values()) + [0.001]) * 1.15
    rows = [
        _bar(name, found, bounds.get(name), y=index * ROW_HEIGHT + 6, top=top)
        for index, (name, found) in enumerate(measured)
    ]
    height = len(rows) * ROW_HEIGHT + 12
    return f"<svg viewBox='0 0 900 {height}' role='img' aria-label='negative flip rates'>{''.join(rows)}</svg>"


def _bar(name: str, found: Measurement, bound: float | None, *, y: int, top: float) -> str:
    def x(rate: float) -> float:
        return BAR_LEFT + BAR_WIDTH * rate / top

    value, lower, upper = found.value or 0.0, found.lower or 0.0, found.upper or 0.0
    fill = "#e0a458" if bound is not None and upper > bound else "#6aa9a0"
    middle, width = y + 11, x(value) - BAR_LEFT
    marks = [
        f"<text x='{BAR_LEFT - 10}' y='{y + 16}' text-anchor='end' font-size='14'>{escape(name)}</text>",
        f"<rect x='{BAR_LEFT}' y='{y}' width='{width:.1f}' height='22' fill='{fill}'/>",
        f"<line x1='{x(lower):.1f}' x2='{x(upper):.1f}' y1='{middle}' y2='{middle}' stroke='#1c2430'/>",
        f"<text x='{BAR_LEFT + BAR_WIDTH + 10}' y='{y + 16}' font-size='13'>{escape(percent(found))} %</text>",
    ]
    if bound is not None:
        marks.append(
            f"<line x1='{x(bound):.1f}' x2='{x(bound):.1f}' y1='{y - 4}' y2='{y + 26}' stroke='#b3261e'"
            f" stroke-dasharray='4 3'><title>bound {100 * bound:.2f} %</title></line>"
        )
    return "".join(marks)


def _flips(flips: Sequence[Flip], pictures: Mapping[str, str]) -> str:
    """A card for each flip: the picture, what it is, what the new version says, and how far it fell."""
    cards = []
    for flip in flips:
        shown = f"a picture of {flip.label}, {flip.group}"
        picture = f"<img src='{pictures[flip.id]}' alt='{escape(shown, quote=True)}'>" if flip.id in pictures else ""
        says = f"<b>{escape(flip.label)}</b> &rarr; {escape(flip.predicted)}"
        cards.append(
            f"<figure title='{escape(flip.id, quote=True)}'>{picture}"
            f"<figcaption>{says}<br><small>{-round(100 * flip.severity):+d} points</small></figcaption></figure>"
        )
    title = f"Right in {escape(flips[0].against)}, wrong now: the worst {len(flips)}"
    note = (
        "<p class='note'>Most severe first, by how much probability the true class lost (points). Each card: the true"
        " class, an arrow, what the new version says.</p>"
    )
    return f"<h2>{title}</h2>{note}<div class='flips cards'>{''.join(cards)}</div>"


def _constraints(document: Mapping[str, Any]) -> str:
    """The parts of the constraint report, as far as they were measured."""
    parts = (constraint_page.budgets, constraint_page.unconstrained, constraint_page.matrix, constraint_page.slices)
    return "".join(part(document) for part in parts)


def _comparisons(comparisons: tuple[Comparison, ...]) -> str:
    head = "<tr><th>ancestor</th>" + "".join(f"<th>{escape(name)}, %</th>" for name in HEADLINE) + "</tr>"
    rows = "".join(
        f"<tr><td>{escape(item.against)}</td>"
        + "".join(f"<td>{escape(percent(item.measurements.get(name), interval=False))}</td>" for name in HEADLINE)
        + "</tr>"
        for item in comparisons
    )
    return f"<table>{head}{rows}</table>"


def _measurements(report: Report) -> str:
    sections = [("alone", report.measurements)]
    sections += [(f"against {item.against}", item.measurements) for item in report.comparisons]
    with catalogue.recorded(report.metrics):
        rows = "".join(
            _measurement(where, name, found, catalogue.unit_of(name))
            for where, table in sections
            for name, found in table.items()
        )
    head = "<tr><th>measurement</th><th>of</th><th>value</th><th>95 %</th><th>n</th><th>remark</th></tr>"
    return f"<table class='all'>{head}{rows}</table>"


def _measurement(where: str, name: str, found: Measurement, unit: str) -> str:
    value = "-" if found.value is None else catalogue.shown(found.value, unit)
    ends = (found.lower, found.upper)
    interval = "-" if None in ends else " .. ".join(catalogue.shown(end, unit) for end in ends if end is not None)
    cells = (name, where, value, interval, str(found.n), found.reason or "")
    return "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"
