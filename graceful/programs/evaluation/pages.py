"""Write the files of an evaluation into a run's folder: report, pages and predictions. Runs in the driver."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from graceful.gate import Verdict
from graceful.programs.evaluation.constraint_report import FILE, build
from graceful.programs.evaluation.evaluate import Evaluation
from graceful.programs.outputs import recorded_predictions
from graceful.programs.outputs.flipped import excerpts, pictures
from graceful.storage import write_json, write_text
from graceful.views.heat import matrix_page
from graceful.views.report import render_report

SHOWN = 48
"""Negative flips against the latest ancestor that the HTML report shows."""


def write(run_dir: Path, evaluation: Evaluation, verdict: Verdict) -> None:
    """Write `report.json`, `verdict.json`, `flips.json`, the predictions, `constraints.json` and `report.html`."""
    write_text(run_dir / "report.json", evaluation.report.to_json())
    write_text(run_dir / "verdict.json", verdict.to_json())
    write_json(run_dir / "flips.json", [asdict(flip) for flip in evaluation.flips])
    recorded_predictions.save(run_dir / recorded_predictions.FILE, evaluation.predictions)
    constraints = build(evaluation.report, run_dir, evaluation.background)
    write_json(run_dir / FILE, constraints)
    nearest = next((item.against for item in evaluation.report.ancestors), None)
    latest = [flip for flip in evaluation.flips if flip.against == nearest][:SHOWN]
    page = render_report(
        evaluation.report,
        verdict,
        flips=latest,
        pictures=pictures(latest, evaluation.test),
        texts=excerpts([flip.id for flip in latest], evaluation.test),
        constraints=constraints,
    )
    write_text(run_dir / "report.html", page)


def write_matrix(run_dir: Path, document: Mapping[str, Any], *, model: str) -> None:
    """Write `matrix.json` and `matrix.html`."""
    write_json(run_dir / "matrix.json", document)
    write_text(run_dir / "matrix.html", matrix_page(document, title=f"{model}: every version"))
