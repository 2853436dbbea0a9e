"""Choose a map, write the adapter, measure it against the searches without it, and judge it. Driver."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graceful import adapters, gate
from graceful.adapters import Adapter, bundle, selection
from graceful.constraints import Constraint
from graceful.gate import Verdict
from graceful.metrics.adapted import measure_adapter
from graceful.programs.adapting import material as materials
from graceful.programs.adapting.material import Material
from graceful.programs.runs.run import Progress, silent
from graceful.report import Comparison, Report
from graceful.storage import write_json, write_text
from graceful.views.report import render_report


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is fitted, and what it is judged by.

    Attributes:
        folder: The folder of the adapter's files.
        model, name: Of the adapter.
        kinds: The kinds of maps that are tried.
        interpolate: Also try points between old and mapped query.
        constraints: The constraints of the gate.
        family: The family of its intervals.
        draws: The number of draws of the bootstrap.
        seed: The seed of networks and of the bootstrap.
    """

    folder: Path
    model: str
    name: str
    kinds: Sequence[adapters.Kind]
    interpolate: bool
    constraints: Sequence[Constraint]
    family: str = "none"
    draws: int = 1000
    seed: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Judged:
    """An adapter with what was measured of it."""

    adapter: Adapter
    tried: Sequence[selection.Tried]
    report: Report
    verdict: Verdict


def fitted(plan: Plan, found: Material, *, against: str, progress: Progress = silent) -> Judged:
    """Choose a map, write the adapter, measure and judge it.

    Args:
        plan: What is fitted.
        found: What it is fitted and measured on.
        against: What the old version is called in the report.
        progress: Called with each candidate.
    """
    progress({"stage": "fit", "pairs": len(found.train), "validation": len(found.validation)})
    best, tried = adapters.choose(
        materials.require_finite(found.train, name="training"),
        materials.require_finite(found.validation, name="validation"),
        kinds=plan.kinds,
        seed=plan.seed,
        side=found.side,
        old=plan.interpolate,
        progress=progress,
    )
    fitted_on = {"pairs": len(found.train), "agreement": best.agreement, **best.options}
    adapter = bundle.save(
        plan.folder,
        best.map,
        {
            "model": plan.model,
            "name": plan.name,
            "side": found.side,
            "kind": best.kind,
            "share": best.share,
            **found.ends,
            "fitted": fitted_on,
        },
    )
    progress({"stage": "evaluate"})
    rankings = found.rankings(adapter)
    measurements = measure_adapter(
        rankings["adapted"],
        old_old=rankings["old_old"],
        full=rankings["full"],
        draws=plan.draws,
        seed=plan.seed,
    )
    comparison = Comparison(against=against, model_id=found.old.model_id, distance=1, measurements=measurements)
    report = Report(
        model=plan.model,
        version=plan.name,
        data=dict(found.data),
        measurements={},
        comparisons=(comparison,),
        notes=_notes(adapter, best),
    )
    verdict = gate.judge(report, plan.constraints, family=plan.family)
    return Judged(adapter=adapter, tried=tried, report=report, verdict=verdict)


def _notes(adapter: Adapter, best: selection.Tried) -> tuple[str, ...]:
    described = adapter.described
    mapped = f"{described.side} of {described.source.name} are mapped into the space of {described.target.name}"
    chosen = f"chosen on validation pairs, without labels: {100 * best.agreement:.1f} % of the ten nearest agree"
    notes: tuple[str, ...] = (f"adapter: {mapped} by {described.kind}, {chosen}",)
    if described.share < 1.0:
        notes += (
            f"adapter: searches {described.share:g} of the way from old to mapped queries, which runs both models",
        )
    return notes


def summary(judged: Judged, folder: Path) -> dict[str, Any]:
    """Return what people want to know of an adapter, as JSON values."""
    described = judged.adapter.described
    measured = judged.report.comparisons[0].measurements
    return {
        "adapter": str(folder),
        "digest": judged.adapter.digest,
        "side": described.side,
        "kind": described.kind,
        "share": described.share,
        "fitted": described.fitted,
        "bytes": sum((folder / name).stat().st_size for name in (bundle.DESCRIPTION, bundle.WEIGHTS)),
        "metrics": {
            name: {"value": measured[name].value, "lower": measured[name].lower, "upper": measured[name].upper}
            for name in measured
        },
        "tried": [candidate.row() for candidate in judged.tried],
    }


def write(folder: Path, judged: Judged) -> None:
    """Write report and verdict for programs and people, and what was tried."""
    write_text(folder / "report.json", judged.report.to_json())
    write_text(folder / "verdict.json", judged.verdict.to_json())
    write_text(folder / "report.html", render_report(judged.report, judged.verdict))
    write_json(folder / "tried.json", [candidate.row() for candidate in judged.tried])
