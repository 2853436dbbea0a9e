"""Small files for the command line, written by code."""

from __future__ import annotations

from pathlib import Path

import pytest

from graceful.report import Comparison, Measurement, Report

SPEC = """\
model: digits
name: v2
task: {kind: digits}
gate:
  constraints:
    - {metric: negative_flip_rate, bound: 0.05}
    - {metric: error_rate, bound: 0.2, against: self}
"""


def small_report() -> Report:
    """Error rate 5 to 8 percent, NFR 1 to 3 percent against v1."""
    return Report(
        model="digits",
        version="v2",
        data={"test": "0" * 64},
        measurements={"error_rate": Measurement(value=0.06, lower=0.05, upper=0.08, n=1000)},
        comparisons=(
            Comparison(
                against="v1",
                model_id="m-1",
                distance=1,
                measurements={"negative_flip_rate": Measurement(value=0.02, lower=0.01, upper=0.03, n=1000)},
            ),
        ),
    )


@pytest.fixture
def report_and_spec(tmp_path: Path) -> tuple[Path, Path]:
    """A report that passes the constraints of a spec."""
    report, spec = tmp_path / "report.json", tmp_path / "v2.yaml"
    report.write_text(small_report().to_json(), encoding="utf-8")
    spec.write_text(SPEC, encoding="utf-8")
    return report, spec
