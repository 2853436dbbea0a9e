"""The constraint report as parts of the HTML report: promised, kept, paid, and where it broke. Runs in the driver."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from graceful.programs.constraint_report import constraint_rows
from graceful.programs.curves import curves
from graceful.programs.heat import matrices

STYLE = """
.curves{display:flex;flex-wrap:wrap;gap:14px}figure.curve{width:450px;max-width:100%;text-align:left;font-size:13px}
table.facts{width:auto}table.facts th{text-align:left}
table.facts td{text-align:left;padding:.15em 1em .15em 0;font-size:14px}
"""


def budgets(document: Mapping[str, Any]) -> str:
    """Budgets, multipliers, what they cost and what dropping one would buy; nothing where no predecessor has one."""
    if all(one["budget"] is None for one in document["predecessors"]):
        return ""
    head, *rows = (row[:-1] for row in constraint_rows(document))
    reasons = [f"{one['name']}: {one['status']}, {one['reason']}" for one in document["predecessors"]]
    return (
        "<h2>Budgets</h2>"
        + _table(head, rows)
        + curves(document)
        + f"<ul class='note'>{_items(reasons)}</ul>"
        + _price(document)
        + _retirement(document)
    )


def _price(document: Mapping[str, Any]) -> str:
    """What was paid, beside what two runs without constraints differ by."""
    facts = []
    if document["cost"] is not None:
        facts.append(
            f"Cost of all constraints: {100 * document['cost']:+.2f} points of error on the constraint split, against"
            f" {100 * document['reference_error']:.2f} % without them."
        )
    for loss, conflict in document["conflict"].items():
        facts.append(
            f"Conflict index of {loss}: {conflict:.3g}, how far the predecessors are from their common target, in units"
            " of that loss; 0 where they agree."
        )
    if document["feasible"] is False:
        facts.append("No epoch kept all budgets: the least violating one was taken.")
    return "".join(f"<p>{escape(fact)}</p>" for fact in facts)


def _retirement(document: Mapping[str, Any]) -> str:
    rows = [
        (
            row["name"],
            f"{100 * row['share']:.0f} %",
            "-" if row["error_gain"] is None else f"{100 * row['error_gain']:.2f}",
        )
        for row in document.get("retirement", ())
    ]
    advice = f"<ul class='note'>{_items(document['advice'])}</ul>" if document["advice"] else ""
    if not rows:
        return advice
    head = ("dropping", "share of the pull", "predicted gain, points of error")
    note = "<p class='note'>A first-order prediction from the multipliers; advice only, the gate does not read it.</p>"
    return "<h3>What dropping a predecessor would buy</h3>" + _table(head, rows) + note + advice


def unconstrained(document: Mapping[str, Any]) -> str:
    """What this recipe does without predecessors, and how much of it is the seed."""
    found = document.get("unconstrained")
    if not found:
        return ""
    if not found["runs"]:
        return f"<p class='note'>Unconstrained run of this version: {escape(found['reason'])}.</p>"
    floor = found["seed_floor"]
    said = (
        f"Without constraints the same recipe has an error of {100 * found['error']:.2f} %"
        f" (mean of {found['runs']}). Seed floor: "
        + (f"{100 * floor:.2f} % flips between two such runs." if floor is not None else f"unknown, {found['reason']}.")
    )
    return f"<p>{escape(said)}</p>"


def matrix(document: Mapping[str, Any]) -> str:
    """Compatibility of all pairs; nothing for a first link."""
    found = document.get("matrix")
    if not found or len(found["versions"]) < 2:
        return ""
    return f"<h2>Every version against every other</h2>{matrices(found)}"


def slices(document: Mapping[str, Any]) -> str:
    """The most flipped classes and groups against each predecessor, the latest one's open."""
    found = document.get("slices") or []
    parts: list[str] = []
    for one in document["predecessors"]:
        rows = [_slice(item) for item in found if item["against"] == one["name"]]
        if not rows:
            continue
        table = _table(("slice", "NFR, %", "95 %", "flipped", "of", "remark"), rows)
        opened = "" if parts else " open"
        parts.append(f"<details{opened}><summary>against {escape(one['name'])}</summary>{table}</details>")
    if not parts:
        return ""
    note = (
        "<p class='note'>The classes and groups with the highest lower end of the interval. The worst of many look"
        " worse than they are: expect less on fresh data.</p>"
    )
    return "<h2>Most flipped classes and groups</h2>" + note + "".join(parts)


def _slice(item: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        f"{item['kind']} {item['name']}",
        f"{100 * item['nfr']:.1f}",
        f"{100 * item['lower']:.1f} .. {100 * item['upper']:.1f}",
        str(item["count"]),
        str(item["n"]),
        "fewer than 100 ids" if item["small"] else "",
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    titles = "".join(f"<th scope='col'>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{titles}</tr>{body}</table>"


def _items(lines: Sequence[str]) -> str:
    return "".join(f"<li>{escape(line)}</li>" for line in lines)
