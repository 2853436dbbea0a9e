"""`graceful gate`: a report and the constraints of a spec give a verdict. Floats only; runs on the client."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from graceful import catalogue, documents, gate
from graceful.cli import output as out
from graceful.errors import EXIT_HELD, DataError, SpecError
from graceful.gate import Finding, Verdict
from graceful.report import Report
from graceful.spec import load

LARGEST = 2**28
"""Bytes of a report."""


def judge(report: Path, spec: Path, sets: Sequence[str], output: str) -> int:
    """Print the verdict and return its exit code: 0 passed, 3 held. Another version's constraints are remarked on.

    Raises:
        SpecError: The spec is wrong, of another model, or asks for what the report does not have.
        DataError: The report is missing or not one.
    """
    measured_report = Report.from_json(_text(report), where=str(report))
    with catalogue.recorded(measured_report.metrics):
        refresh_spec = load(spec, sets)
        constraints = [bound.constraint() for bound in refresh_spec.gate.constraints]
    if measured_report.model != refresh_spec.model:
        raise SpecError(
            f"{report} is about {measured_report.model}, {spec} about {refresh_spec.model}; give files of one model"
        )
    if measured_report.version != refresh_spec.name:
        out.talk(
            f"note: {report} is about {measured_report.version}, judged by the constraints of {refresh_spec.name}"
            f" in {spec}"
        )
    verdict = gate.judge(measured_report, constraints, family=refresh_spec.gate.family)
    with out.surviving():
        _show(measured_report, verdict, output)
    return EXIT_HELD if verdict.outcome is gate.Outcome.HELD else 0


def _show(report: Report, verdict: Verdict, output: str) -> None:
    if output != "table":
        out.document(json.loads(verdict.to_json()), output)
        return
    rows = [_row(finding) for finding in verdict.findings]
    title = f"{report.model} {report.version}: {verdict.outcome}"
    out.table(("", "constraint", "against", "found"), rows, title=title)
    for note in verdict.notes:
        out.talk(note)


def _row(finding: Finding) -> tuple[str, str, str, str]:
    constraint = finding.constraint
    state = "met" if finding.met else "held"
    return state, f"{constraint.metric} {constraint.direction} {constraint.bound:g}", finding.against, finding.reason


def _text(path: Path) -> str:
    try:
        return documents.read_text(path, largest=LARGEST)
    except FileNotFoundError as e:
        raise DataError(f"{path}: no such report; write it with `graceful evaluate`") from e
    except (OSError, ValueError) as e:
        raise DataError(f"{path}: cannot be read ({e}); give the report.json of a run") from e
