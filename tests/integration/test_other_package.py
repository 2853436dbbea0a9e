"""A loss, a metric and a backend of a package outside the repository: the examples of docs/extending, installed.

Nothing of graceful names them. They are found, trained with, measured, gated on, searched and sent jobs through.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.other_package import example, install, search_path

pytestmark = pytest.mark.integration
ENTRY_POINTS = """
[graceful.losses]
sign_agreement = elsewhere.losses:SignAgreement

[graceful.metrics]
sure_nfr = elsewhere.metrics:METRIC

[graceful.backends]
shell = elsewhere.backend:Shell
"""
SMALL = {
    "model": "digits",
    "task": {"kind": "digits", "share": 0.5, "network": {"head": "cosine"}},
    "train": {"num_workers": 0, "engine": {"kind": "torch"}, "epochs": 1, "batch_size": 32},
    "evaluate": {"retrieval": False, "bootstrap": 100},
}
V2 = {
    "name": "v2",
    "compatibility": {"losses": [{"kind": "sign_agreement", "slack": 0.5}]},
    "gate": {"constraints": [{"metric": "sure_nfr", "bound": 0.0001}]},
}
SEARCH = {"trials": 2, "tolerance": 1.0, "space": {"runs": [1]}, "final": {"candidates": 1, "seeds": 2}}


@pytest.fixture
def site(tmp_path: Path) -> Path:
    modules = {"losses": example("loss"), "metrics": example("metric"), "backend": example("backend")}
    return install(tmp_path / "site", "elsewhere", modules, ENTRY_POINTS)


@pytest.fixture
def graceful(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command of graceful, or a program, with the package or without it."""

    def run(
        *arguments: str | Path, site: Path | None, module: str = "graceful.cli"
    ) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "GRACEFUL_HOME": str(tmp_path / "home"), "PYTHONPATH": search_path(site)}
        env.pop("MLFLOW_TRACKING_URI", None)
        command = [sys.executable, *(["-m", module] if module else []), *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=600)

    return run


def written(folder: Path, **document: Any) -> Path:
    path = folder / f"{document['name']}.yaml"
    path.write_text(json.dumps({**SMALL, **document}), encoding="utf-8")
    return path


def test_they_are_trained_with_measured_gated_on_and_sent_jobs_through(
    site: Path, tmp_path: Path, graceful: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    desk = tmp_path / "desk.yaml"
    desk.write_text("{kind: shell, nice: 1}", encoding="utf-8")
    first = written(tmp_path, name="v1", gate={"constraints": [{"metric": "error_rate", "bound": 0.95}]})
    second = written(tmp_path, **V2)
    for path, code in ((first, 0), (second, 3)):
        sent = graceful("submit", path, "--on", desk, "--yes", "-o", "json", site=site)
        assert sent.returncode == 0, sent.stderr
        handle = json.loads(sent.stdout)["handle"]
        assert handle == f"shell://digits-{path.stem}"
        ended = graceful("status", handle, "--on", desk, "--wait", site=site)
        assert ended.returncode == code, graceful("logs", handle, "--on", desk, site=site).stdout + ended.stderr

    run = tmp_path / "home" / "runs" / "digits-v2"
    report = json.loads((run / "report.json").read_text())
    measured = report["comparisons"][0]["measurements"]["sure_nfr"]
    assert 0.0 <= measured["lower"] <= measured["value"] <= measured["upper"] <= 1.0
    assert report["metrics"]["sure_nfr"]["better"] == "lower"
    assert f"<td>{100 * measured['value']:.2f} %</td>" in (run / "report.html").read_text().partition("sure_nfr")[2]
    trained = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert any("sign_agreement/v1" in json.dumps(row) for row in trained)

    third = written(tmp_path, **{**V2, "name": "v3"}, tune=SEARCH)
    tuned = graceful("tune", third, "-o", "json", site=site)
    assert tuned.returncode == 0, tuned.stderr
    best = json.loads(tuned.stdout)["front"][0]["point"]
    assert {"sign_agreement", "slack"} <= set(best)
    fits = (tmp_path / "home" / "tunes" / "digits-v3" / "fits").glob("*/spec.json")
    assert any("sign_agreement" in path.read_text() for path in fits)

    verdicts = [graceful("gate", run / "report.json", second, "-o", "json", site=where) for where in (site, None)]
    # without the package its loss is unknown, so the constraints are judged with a spec that has none
    assert verdicts[0].returncode == 3, verdicts[0].stderr
    assert "sign_agreement" in verdicts[1].stderr
    bare = written(tmp_path, name="v2", gate=V2["gate"])
    without = graceful("gate", run / "report.json", bare, "-o", "json", site=None)
    assert (without.returncode, without.stdout) == (3, verdicts[0].stdout), without.stderr
    assert "sure_nfr against v1: " in without.stdout
    assert "exceeds the bound 0.01 %" in without.stdout or "insufficient evidence" in without.stdout


def test_the_backend_passes_the_contract(
    site: Path, tmp_path: Path, graceful: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    suite = tmp_path / "test_shell.py"
    contract = example("backend", block=2)
    suite.write_text(f"import sys\nfrom elsewhere.backend import Shell\n{contract}", encoding="utf-8")
    done = graceful("-q", "-p", "no:cacheprovider", "--rootdir", tmp_path, suite, site=site, module="pytest")
    assert done.returncode == 0, done.stdout
    assert "11 passed" in done.stdout
