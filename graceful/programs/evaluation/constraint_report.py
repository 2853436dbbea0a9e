"""The constraint report: each predecessor's budget, what was measured, and what keeping it cost. In the driver."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from graceful.programs.preparation.contract_record import PROMISED
from graceful.report import Comparison, Measurement, Report

FILE = "constraints.json"
CHAIN = ("chain_max_nfr", "chain_mean_nfr", "union_nfr", "unanimous_nfr")
NEAR_CHANCE = 2.0
"""A predecessor with so many times the latest one's error is worth retiring."""


def build(report: Report, run_dir: Path, background: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the constraint report of a run as JSON values.

    Args:
        report: The evidence.
        run_dir: Folder in which `contract_record.record` wrote its file.
        background: See `background.background`; None: the document ends without it.

    Returns:
        `predecessors`: each ancestor with what was measured on test data, its budget and status (`evaluated only` for
        those that training did not see), its multiplier and its NFR on the constraint split epoch by epoch, and its
        pull, multiplier x budget, which ranks what relaxing it would buy, and its cost, the error that dropping it is
        predicted to buy back, None where unknown. `cost`: error of the new version minus the
        unconstrained one's, on the constraint split; None, like `feasible`, where no budget was active. `conflict`: how
        much the predecessors disagree, per merged loss. `retirement`: see `_retirement`. `advice`: sentences for
        people; the gate never acts on them. Then the notes of the background.
    """
    path = run_dir / PROMISED
    recorded = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    epochs = recorded.get("epochs", [])
    chosen = next((row for row in epochs if row["epoch"] == recorded.get("chosen_epoch")), None)
    acting = chosen if any(budget["status"] == "active" for budget in recorded.get("budgets", [])) else None
    budgets = {budget["name"]: budget for budget in recorded.get("budgets", [])}
    context = dict(background or {})
    reference_nfr = context.get("unconstrained", {}).get("nfr", {})
    predecessors = [
        {
            **_predecessor(item, budgets.get(item.against), epochs, chosen),
            "untreated_nfr": reference_nfr.get(item.against),
            "compat_slice": context.get("compat_slice", {}).get(item.against),
        }
        for item in report.ancestors
    ]
    reference = recorded.get("reference_error")
    cost = None if acting is None else acting["constraint_error"] - reference
    retirement = _retirement(predecessors, cost)
    gains = {row["name"]: row["error_gain"] for row in retirement}
    predecessors = [{**predecessor, "cost": gains.get(predecessor["name"])} for predecessor in predecessors]
    return {
        "schema": 1,
        "model": report.model,
        "version": report.version,
        "error": _value(report.measurements.get("error_rate")),
        "reference_error": reference,
        "cost": cost,
        "chosen_epoch": recorded.get("chosen_epoch"),
        "feasible": None if acting is None else acting["feasible"],
        "conflict": {} if chosen is None else chosen["conflict"],
        "chain": {name: _value(report.measurements.get(name)) for name in CHAIN},
        "predecessors": predecessors,
        "retirement": retirement,
        "advice": _advice(predecessors, retirement),
        **context,
    }


def _predecessor(
    item: Comparison, budget: Mapping[str, Any] | None, epochs: Sequence[Mapping[str, Any]], chosen: Any
) -> dict[str, Any]:
    nfr, name = item.measurements.get("negative_flip_rate", Measurement(value=None)), item.against
    trace = [row["multipliers"].get(name) for row in epochs]
    multiplier = None if chosen is None else chosen["multipliers"].get(name)
    bound: float | None = budget["bound"] if budget else None
    return {
        "name": name,
        "distance": item.distance,
        "nfr": nfr.value,
        "lower": nfr.lower,
        "upper": nfr.upper,
        "count": nfr.count,
        "n": nfr.n,
        "relative_nfr": _value(item.measurements.get("relative_nfr")),
        "old_error": _value(item.measurements.get("old_error_rate")),
        "budget": bound,
        "status": budget["status"] if budget else "evaluated only",
        "reason": budget["reason"] if budget else "not in compatibility.against, or no adaptive weighting",
        "implied_by": budget.get("implied_by") if budget else None,
        "met": None if bound is None or nfr.value is None else nfr.value <= bound,
        "constraint_nfr": None if chosen is None else chosen["nfr"].get(name),
        "multiplier": multiplier,
        "multipliers": trace,
        "constraint_nfrs": [row["nfr"].get(name) for row in epochs],
        "pull": None if multiplier is None or bound is None else multiplier * bound,
    }


def _retirement(predecessors: Sequence[Mapping[str, Any]], cost: float | None) -> list[dict[str, Any]]:
    """Return what dropping each predecessor with a budget would buy, the most first.

    At the optimum of the dual the error falls by about the multiplier for each unit of budget, so multiplier x budget
    ranks the predecessors. The multiplier weighs a loss and not the NFR itself, so the scale is taken from what was
    measured: all of them together bought the `cost`, and each is predicted to give its share of it back.

    Returns:
        Rows of `name`, `share` of the pull in [0, 1], `error_gain`, predicted: 0 where the constraints cost nothing,
        None without a measured cost; `reactivates`, whose budgets follow from this one and would no longer.
    """
    budgeted = [predecessor for predecessor in predecessors if predecessor["pull"] is not None]
    total = math.fsum(predecessor["pull"] for predecessor in budgeted)
    rows = []
    for predecessor in sorted(budgeted, key=lambda item: -item["pull"]):
        share = predecessor["pull"] / total if total > 0.0 else 0.0
        rows.append(
            {
                "name": predecessor["name"],
                "share": share,
                "error_gain": None if cost is None else share * max(cost, 0.0),
                "reactivates": [
                    dependent["name"] for dependent in predecessors if dependent["implied_by"] == predecessor["name"]
                ],
            }
        )
    return rows


def _advice(predecessors: Sequence[Mapping[str, Any]], retirement: Sequence[Mapping[str, Any]]) -> list[str]:
    sentences = []
    by_name = {predecessor["name"]: predecessor for predecessor in predecessors}
    for row in retirement:
        predecessor = by_name[row["name"]]
        if not row["share"]:
            continue
        gain = row["error_gain"]
        buys = f"about {100 * gain:.2f} points of error" if gain else "no error, the constraints cost none"
        sentences.append(
            f"{predecessor['name']}: multiplier {predecessor['multiplier']:.2f} x budget"
            f" {100 * predecessor['budget']:.2f} %, {100 * row['share']:.0f} % of the pull; dropping it would"
            f" buy {buys}" + (f" and would reactivate {', '.join(row['reactivates'])}" if row["reactivates"] else "")
        )
    latest = next((predecessor["old_error"] for predecessor in predecessors if predecessor["distance"] == 1), None)
    for predecessor in predecessors:
        if latest and predecessor["old_error"] is not None and predecessor["old_error"] > NEAR_CHANCE * latest:
            sentences.append(
                f"{predecessor['name']}: its error {100 * predecessor['old_error']:.2f} % is over twice the latest"
                " predecessor's; retire it from compatibility.against"
            )
    return sentences


def _value(measurement: Measurement | None) -> float | None:
    return None if measurement is None else measurement.value
