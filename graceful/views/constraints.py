"""The constraint report for the terminal and the page: budgets, measurements, costs, failures. Runs in the driver."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from graceful.views.curves import curves
from graceful.views.heat import matrices

Row = tuple[str, ...]


def sections(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the template `constraints.html.j2` shows, as far as it was measured."""
    predecessors, reference = document["predecessors"], document.get("unconstrained")
    budgeted = any(predecessor["budget"] is not None for predecessor in predecessors)
    matrix = document.get("matrix")
    return {
        "budgets": [row[:-1] for row in constraint_rows(document)] if budgeted else [],
        "curves": curves(document),
        "reasons": [f"{item['name']}: {item['status']}, {item['reason']}" for item in predecessors],
        "costs": cost_sentences(document),
        "retirement": _retirement_rows(document),
        "advice": document["advice"],
        "reference": reference_sentence(reference) if reference else "",
        "reference_runs": reference["runs"] if reference else 0,
        "matrices": matrices(matrix) if matrix and len(matrix["versions"]) > 1 else None,
        "slices": _slices(document),
    }


def constraint_rows(document: Mapping[str, Any]) -> list[Row]:
    """Return a header and one row for each predecessor, as texts; rates in percent."""
    head = (
        "predecessor",
        "NFR [95 %]",
        "relative NFR",
        "budget",
        "status",
        "met on test",
        "untreated NFR",
        "predicted cost",
        "multiplier by epoch",
    )
    return [head, *(_constraint_row(predecessor) for predecessor in document["predecessors"])]


def _constraint_row(predecessor: Mapping[str, Any]) -> Row:
    lower, upper = predecessor["lower"], predecessor["upper"]
    interval = "" if lower is None else f" [{100 * lower:.2f}, {100 * upper:.2f}]"
    multipliers = predecessor["multipliers"] if predecessor["status"] == "active" else ()
    trace = " ".join("-" if multiplier is None else f"{multiplier:.2f}" for multiplier in multipliers)
    return (
        predecessor["name"],
        rate_text(predecessor["nfr"]) + interval,
        rate_text(predecessor["relative_nfr"]),
        rate_text(predecessor["budget"]),
        predecessor["status"],
        "-" if predecessor["met"] is None else "yes" if predecessor["met"] else "no",
        rate_text(predecessor["untreated_nfr"]),
        rate_text(predecessor["cost"]),
        trace or "-",
    )


def rate_text(rate: float | None) -> str:
    """Return a rate in percent; a dash where it is not known."""
    return "-" if rate is None else f"{100 * rate:.2f}"


def cost_sentences(document: Mapping[str, Any]) -> list[str]:
    """Return what was paid, beside what two runs without constraints differ by."""
    sentences = []
    if document["cost"] is not None:
        sentences.append(
            f"Cost of all constraints: {100 * document['cost']:+.2f} points of error on the constraint split, against"
            f" {100 * document['reference_error']:.2f} % without them."
        )
    for loss, conflict in document["conflict"].items():
        sentences.append(
            f"Conflict index of {loss}: {conflict:.3g}, how far the predecessors are from their common target, in units"
            " of that loss; 0 where they agree."
        )
    if document["feasible"] is False:
        sentences.append("No epoch kept all budgets: the least violating one was taken.")
    return sentences


def reference_sentence(reference: Mapping[str, Any]) -> str:
    """Return what this recipe does without predecessors, and how much of it is the seed."""
    if not reference["runs"]:
        return f"Unconstrained run of this version: {reference['reason']}."
    floor = reference["seed_floor"]
    return (
        f"Without constraints the same recipe has an error of {100 * reference['error']:.2f} %"
        f" (mean of {reference['runs']}). Seed floor: "
        + (
            f"{100 * floor:.2f} % flips between two such runs."
            if floor is not None
            else f"unknown, {reference['reason']}."
        )
    )


def _retirement_rows(document: Mapping[str, Any]) -> list[Row]:
    return [
        (
            row["name"],
            f"{100 * row['share']:.0f} %",
            "-" if row["error_gain"] is None else f"{100 * row['error_gain']:.2f}",
        )
        for row in document.get("retirement", ())
    ]


def _slices(document: Mapping[str, Any]) -> list[tuple[str, list[Row]]]:
    """Return the most flipped classes and groups against each predecessor, the latest one first."""
    slices = document.get("slices") or []
    by_name = {
        predecessor["name"]: [_slice_row(item) for item in slices if item["against"] == predecessor["name"]]
        for predecessor in document["predecessors"]
    }
    return [(name, rows) for name, rows in by_name.items() if rows]


def _slice_row(item: Mapping[str, Any]) -> Row:
    return (
        f"{item['kind']} {item['name']}",
        f"{100 * item['nfr']:.1f}",
        f"{100 * item['lower']:.1f} .. {100 * item['upper']:.1f}",
        str(item["count"]),
        str(item["n"]),
        "fewer than 100 ids" if item["small"] else "",
    )


def constraint_table(document: Mapping[str, Any]) -> Table:
    """Return the rows as a table for the terminal, with what the constraints cost."""
    acted = any(row["multiplier"] for row in document["predecessors"])
    cost = document["cost"] if acted else None
    caption = "rates in percent, costs in points of error" + (
        "" if cost is None else f"; cost of all constraints {100 * cost:+.2f} points of error"
    )
    table = Table(title="constraints", title_justify="left", caption=caption, caption_justify="left")
    head, *rows = constraint_rows(document)
    for column in head:
        table.add_column(column)
    for row in rows:
        table.add_row(*row)
    return table


def remarks(document: Mapping[str, Any]) -> list[str]:
    """Return the rest of the report in a few lines for the terminal; what was not measured has none."""
    lines = list(document["advice"])
    reference = document.get("unconstrained", {})
    if reference.get("runs"):
        floor = reference["seed_floor"]
        noise = "" if floor is None else f", {rate_text(floor)} % flips between two seeds"
        lines.append(f"without constraints: error {rate_text(reference['error'])} %{noise}")
    nearest = next((predecessor["name"] for predecessor in document["predecessors"]), None)
    worst = [item for item in document.get("slices", ()) if item["against"] == nearest][:3]
    if worst:
        named = [f"{item['kind']} {item['name']} {rate_text(item['nfr'])} % of {item['n']}" for item in worst]
        lines.append(f"most flipped against {nearest}: {', '.join(named)}")
    summary = document.get("matrix", {}).get("summary_recall_at_1")
    if summary and document["predecessors"]:
        own, other = summary["average_compatibility"], summary["average_compatibility_independent"]
        bars = [
            f"{average['value']:.2f}" if average["value"] is not None else f"- ({average['reason']})"
            for average in (own, other)
        ]
        lines.append(
            f"average compatibility, R@1: {bars[0]} against old versions, {bars[1]} against unconstrained ones"
        )
    return lines
