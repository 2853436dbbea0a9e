"""Code that a registry names does not run: a registered version whose task lies in a bucket, on a real S3 server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from graceful.programs.housekeeping import ship
from graceful.programs.refresh import refresh
from graceful.programs.runs.run import Run
from graceful.spec import parse
from graceful.storage.server import client
from tests.support.s3_server import serving

pytestmark = [
    pytest.mark.integration,
    pytest.mark.usefixtures("own_modules"),
    pytest.mark.filterwarnings("ignore"),  # MLflow and what it imports
]
PLANTED = """
import os

if "MARKER" in os.environ:
    open(os.environ["MARKER"], "w").close()

from graceful.spec import DigitsTask
from graceful.tasks.digits import Digits


def task():
    return Digits(DigitsTask())
"""
TRAIN = {"epochs": 4, "num_workers": 0, "engine": {"kind": "torch"}, "optimizer": {"kind": "adamw", "lr": 0.01}}
GATE = {"constraints": [{"metric": "negative_flip_rate", "bound": 0.9}, {"metric": "error_rate", "bound": 0.9}]}


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with serving():
        client().create_bucket(Bucket="trust")
        yield "s3://trust/team"


@pytest.fixture
def planted(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Digest of code in a bucket with which somebody has registered the champion v1."""
    monkeypatch.setenv("GRACEFUL_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "planted").mkdir()
    (tmp_path / "planted" / "task.py").write_text(PLANTED)
    sent = ship.ship(tmp_path / "planted", bucket)
    document = {"model": "digits", "name": "v1", "train": TRAIN, "gate": GATE}
    first, _ = refresh(Run.of(parse({**document, "task": {"kind": "python", "file": sent["uri"]}})))
    assert first.outcome == "passed"
    return str(sent["uri"]).rpartition("/")[2].removesuffix(".zip")


@pytest.fixture
def graceful(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The command line, where the planted code would leave a mark."""

    def run(program: str, name: str, *options: str, **sections: object) -> subprocess.CompletedProcess[str]:
        document = {"model": "digits", "name": name, "task": {"kind": "digits"}, "train": TRAIN, "gate": GATE}
        (tmp_path / "spec.yaml").write_text(yaml.safe_dump({**document, **sections}))
        return subprocess.run(
            [sys.executable, "-m", "graceful.cli", program, "spec.yaml", "-o", "json", "-q", *options],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env={**os.environ, "MARKER": str(tmp_path / "ran")},
            timeout=600,
        )

    return run


def test_code_that_a_registry_names_runs_only_where_the_user_trusts_its_digest(
    planted: str, graceful: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    held = graceful("refresh", "v2")
    assert held.returncode == 3, held.stderr
    (reason,) = (line for line in json.loads(held.stdout)["reasons"] if "negative_flip_rate" in line)
    assert f"v1 cannot be run, its recorded code s3://trust/team/code/{planted}.zip is not trusted" in reason
    assert f"--trust-code {planted}" in reason
    report = (tmp_path / "home" / "runs" / "digits-v2" / "report.json").read_text()
    assert "so nothing was measured against it; read that code, then trust it" in report
    started = graceful("refresh", "v3", compatibility={"losses": [{"kind": "focal_distillation"}]})
    assert started.returncode == 2
    assert f"--trust-code {planted}" in started.stderr
    assert not (tmp_path / "ran").exists()
    trusted = graceful("refresh", "v4", "--trust-code", "0" * 64, "--trust-code", planted)
    assert trusted.returncode == 0, trusted.stderr
    assert (tmp_path / "ran").exists()
