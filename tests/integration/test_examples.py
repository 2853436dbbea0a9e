"""Examples under jobs/ that fetch real data: each is prepared and refreshed as its page says, reduced to seconds."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.integration.test_refresh import graceful

pytestmark = pytest.mark.integration

JOBS = Path(__file__).parents[2] / "jobs"
SMALL = ("train.num_workers=0", "train.engine={kind: torch}", "train.epochs=1", "gate.constraints=[]")
INLINE = tuple(word for setting in SMALL for word in ("--set", setting))


def prepared(example: str, folder: Path, *options: str) -> Path:
    """Copy the specs of an example and let its script write beside them what they read."""
    for path in (JOBS / example).glob("v*.yaml"):
        shutil.copy(path, folder)
    script = [sys.executable, str(JOBS / example / "prepare.py"), "--to", str(folder), *options]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"the data of {example} cannot be fetched from here: {done.stderr.strip()[-200:]}")
    return folder


def refreshed(folder: Path, name: str, *options: str) -> dict[str, Any]:
    """Refresh and return the report."""
    done = graceful("refresh", folder / f"{name}.yaml", *INLINE, *options, home=folder)
    assert done.returncode == 0, done.stderr
    (report,) = (folder / "runs").glob(f"*-{name}/report.json")
    return dict(json.loads(report.read_text()))


def rate(measurements: dict[str, Any], name: str) -> float:
    return float(measurements[name]["value"])


def test_glosses(tmp_path: Path) -> None:
    """Real texts and pretrained weights: 45 classes are told far better than by chance, and v2 is compared with v1."""
    folder = prepared("glosses", tmp_path, "--rows", "1")
    short = ("--set", "task.network.max_length=16")
    first = refreshed(folder, "v1", *short)
    second = refreshed(folder, "v2", *short, "--set", "task.network.layers=4")
    (against,) = second["comparisons"]
    measured = against["measurements"]
    assert rate(measured, "old_error_rate") == rate(first["measurements"], "error_rate")
    assert rate(measured, "new_error_rate") < min(0.75, rate(measured, "old_error_rate"))
    assert 0 < rate(measured, "negative_flip_rate") < rate(measured, "positive_flip_rate")
    assert rate(measured, "cross_test_recall_at_1") > 0.2


def test_packages(tmp_path: Path) -> None:
    """Real numbers and categories: v2, which reads categories as well, errs less than v1."""
    folder = prepared("packages", tmp_path)
    first = refreshed(folder, "v1")
    second = refreshed(folder, "v2", "--set", "task.share=0.2")
    (against,) = second["comparisons"]
    measured = against["measurements"]
    assert rate(measured, "old_error_rate") == rate(first["measurements"], "error_rate")
    assert rate(measured, "new_error_rate") < 0.9 * rate(measured, "old_error_rate")
    assert 0 < rate(measured, "negative_flip_rate") < rate(measured, "positive_flip_rate")
