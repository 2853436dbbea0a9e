"""A record as people read it: table rows, the Markdown of MLflow's pages, an SVG of the ancestors. Pure; any process.

Everything that comes from outside is escaped for where it goes. MLflow strips inline SVG, and absolute links break
behind a prefix: so the picture is an artifact shown through a relative link.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from types import MappingProxyType

from graceful.lineage.schema import Edge, LineageRecord
from graceful.views.rendering import render

DESCRIPTION_LIMIT = 4500
"""Characters; Postgres refuses descriptions above 5000."""
EMPTY: Mapping[str, tuple[str, int]] = MappingProxyType({})
GAP = "&ensp;"
"""Keeps the cells of a table apart: MLflow's page leaves no room between them."""
WIDTH = 700
_ROW, _TOP, _BOX = 64, 84, 140
_COLOURS = {"passed": "#1a7f37", "held": "#b35900", "unjudged": "#57606a"}
_MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+!|~$])")


def lineage_table(records: Sequence[LineageRecord]) -> list[dict[str, object]]:
    """Return one row for each version and each ancestor it was measured against; a first link has one row.

    Rates are fractions; what was not measured is None.
    """
    rows: list[dict[str, object]] = []
    for record in records:
        version_columns: dict[str, object] = {
            "model": record.model,
            "name": record.name,
            "version": record.version,
            "model_id": record.model_id,
            "parents": [parent.name for parent in record.parents],
            "verdict": record.verdict,
            "error_rate": record.metrics.get("error_rate"),
        }
        for edge in record.edges:
            interval = None if edge.lower is None or edge.upper is None else [edge.lower, edge.upper]
            edge_columns = {"nfr": edge.value, "interval": interval, "bound": edge.bound, "met": edge.verdict}
            rows.append({**version_columns, "against": edge.name, **edge_columns})
        if not record.edges:
            rows.append({**version_columns, "against": None, "nfr": None, "interval": None, "bound": None, "met": None})
    return rows


def summary(record: LineageRecord) -> str:
    """Return one plain line: verdict, worst NFR, accuracy."""
    count = len(record.ancestors)
    against = f"vs {count} predecessor{'s' if count > 1 else ''}"
    if not count:
        worst = "first version"
    elif record.worst is None:
        worst = f"NFR not measured {against}"
    else:
        worst = f"worst NFR {percent(record.worst)} {against}"
    error = record.metrics.get("error_rate")
    accuracy = "" if error is None else f", accuracy {1.0 - error:.3f}"
    gallery = next((edge for edge in record.edges if edge.relation == "gallery"), None)
    searches = "" if gallery is None else f", searches {gallery.name} with {_pair_evidence(gallery)}"
    return f"{record.verdict.upper()}: {worst}{accuracy}{searches}{_certified(record)}"


def _certified(record: LineageRecord) -> str:
    """Return a certificate in words, as the end of a line; nothing for a version that was trained by steps."""
    if record.certificate is None:
        return ""
    independent = (
        "independent of the order of its data" if record.certificate.get("order_independent") else "NOT converged"
    )
    return f", LQF {independent} (relative gradient {record.certificate.get('relative_gradient', 1.0):.1e})"


def description(record: LineageRecord, listings: Mapping[str, tuple[str, int]] = EMPTY) -> str:
    """Return Markdown of a version: the summary, the picture, a table of ancestors, reasons where it is held, links.

    At most `DESCRIPTION_LIMIT` characters; rows that do not fit are counted.

    Args:
        record: The version.
        listings: Identity -> model and number of the ancestors that are listed; they become links.
    """
    artifact = f"get-artifact?run_uuid={record.run_id}&path=lineage/"
    evidence_files = (name for name in ("report.html", "negative_flips.json") if name in record.evidence)
    files = (*evidence_files, "README.md", "report.json", "verdict.json", "lineage.json")
    links = ", ".join(f"[{name}]({artifact}{name})" for name in files)
    head = [summary(record), "", f"![ancestors of {escape_markdown(record.name)}]({artifact}lineage.svg)", ""]
    foot = ["", f"Evidence: {links}. Digest `{record.manifest[:12]}`."]
    edge_table = edge_rows(record, listings)
    table, rows = edge_table[:2], edge_table[2:]
    reasons = [f"- {escape_markdown(reason)}" for reason in record.reasons] if record.verdict == "held" else []
    room = DESCRIPTION_LIMIT - len("\n".join([*head, *table, *foot])) - 120
    body = _lines_that_fit([*rows, *(["", *reasons] if reasons else [])], room)
    return "\n".join([*head, *(table if rows else []), *body, *foot])


def edge_rows(record: LineageRecord, listings: Mapping[str, tuple[str, int]] = EMPTY) -> list[str]:
    """Return the ancestors as a Markdown table: two lines of head, then one for each."""
    lines = ["| predecessor | NFR [95 %] | budget | verdict |", "|---|---|---|---|"]
    for edge in record.edges:
        name = escape_markdown(edge.name)
        if edge.model_id in listings:
            name = f"[{name}]({version_link(*listings[edge.model_id])})"
        evidence = _evidence(edge)
        if edge.relation != "ancestor":
            name += ", its gallery" if edge.relation == "gallery" else ", its query model"
            evidence = _pair_evidence(edge)
        lines.append(f"| {name}{GAP} | {evidence}{GAP} | {percent(edge.bound)}{GAP} | {edge.verdict} |")
    return lines


def _pair_evidence(edge: Edge) -> str:
    """Return what a query model finds on an index: its mAP, and how much that is of the gallery model's own."""
    found, share = edge.metrics.get("pair_map"), edge.metrics.get("pair_share_map")
    if found is None:
        return "mAP not measured"
    return f"mAP {percent(found)}" + ("" if share is None else f", {100 * share:.0f}% of the gallery model's own")


def version_link(model: str, number: int) -> str:
    """Return where MLflow shows a version, relative to any of its pages."""
    return f"#/models/{model}/versions/{number}?workflowType=machine_learning"


def picture(record: LineageRecord) -> str:
    """Return an SVG: ancestors left, nearest on top, the version right; each edge with NFR, budget and verdict.

    Fixed width of `WIDTH` pixels, no links, no fonts of its own.
    """
    rows = max(len(record.edges), 1)
    parents = {parent.model_id for parent in record.parents}
    return render(
        "ancestors.svg.j2",
        record=record,
        name=_cut(record.name, 16),
        heading=_cut(f"{record.model} {record.name}", 60),
        summary=summary(record),
        colours=_COLOURS,
        width=WIDTH,
        height=_TOP + rows * _ROW + 16,
        middle=_TOP + rows * _ROW // 2,
        right=WIDTH - _BOX - 20,
        box=_BOX,
        edges=[_edge(edge, index, direct=edge.model_id in parents) for index, edge in enumerate(record.edges)],
    )


def escape_markdown(text: str) -> str:
    """Make a text harmless inside a Markdown line or table cell: no markup, no HTML, no line breaks."""
    return _MARKDOWN.sub(r"\\\1", escape(" ".join(text.split()), quote=False))


def _edge(edge: Edge, index: int, *, direct: bool) -> dict[str, object]:
    text, role = f"NFR {_evidence(edge)}, budget {percent(edge.bound)}", "parent" if direct else f"{edge.distance} back"
    if edge.relation != "ancestor":
        text, role = _pair_evidence(edge), {"gallery": "gallery", "query": "query model"}[edge.relation]
    return {
        "y": _TOP + index * _ROW + _ROW // 2,
        "name": _cut(edge.name, 16),
        "role": role,
        "text": f"{text}: {edge.verdict}",
        "colour": _COLOURS[edge.verdict],
        "direct": direct,
    }


def _lines_that_fit(lines: Sequence[str], room: int) -> list[str]:
    fitting: list[str] = []
    for index, line in enumerate(lines):
        room -= len(line) + 1
        if room < 0:
            return [*fitting, "", f"and {len(lines) - index} more lines in lineage.json"]
        fitting.append(line)
    return fitting


def _evidence(edge: Edge) -> str:
    if edge.value is None:
        return "not measured"
    if edge.lower is None or edge.upper is None:
        return percent(edge.value)
    return f"{percent(edge.value)} [{100 * edge.lower:.2f}, {100 * edge.upper:.2f}]"


def percent(value: float | None) -> str:
    """Return a fraction in percent."""
    return "none" if value is None else f"{100 * value:.2f}%"


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
