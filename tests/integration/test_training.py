"""Training that loses a process: the rest of the run must be the one that nobody disturbed."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from graceful.training import trace

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]
TASK = ROOT / "tests" / "support" / "training_task.py"


def spec(*, options: dict[str, Any] | None = None, **train: Any) -> dict[str, Any]:
    recipe = {"epochs": 4, "batch_size": 24, "checkpoint_every": 7, "optimizer": {"kind": "adamw", "lr": 0.01}}
    return {
        "model": "blobs",
        "name": "v1",
        "task": {"kind": "python", "file": str(TASK), "options": options or {}},
        "train": {**recipe, **train},
    }


def run(*jobs: dict[str, Any]) -> tuple[int, list[dict[str, Any]], str]:
    command = [sys.executable, "-m", "tests.support.training_main", json.dumps(jobs)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")], done.stderr


def losses(run_dir: Path) -> list[tuple[int, float, float]]:
    rows = [row for row in trace.read(run_dir / trace.FILE) if row["event"] == "step"]
    return [(row["step"], row["loss"], row["grad_norm"]) for row in rows]


def weights(run_dir: Path) -> str:
    return hashlib.sha256((run_dir / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize(
    "engine", [{"kind": "torch"}, {"kind": "deepspeed", "zero_stage": 2}], ids=["torch", "deepspeed"]
)
def test_a_killed_process_resumes_as_if_nothing_had_happened(tmp_path: Path, engine: dict[str, Any]) -> None:
    document = spec(num_workers=0, engine=engine)
    killed, undisturbed = (
        {"spec": document, "run_dir": str(tmp_path / "a")},
        {"spec": document, "run_dir": str(tmp_path / "b")},
    )

    status, answers, _ = run({**killed, "die_at_step": 18})
    assert (status, answers) == (-signal.SIGKILL, [])
    assert len(losses(tmp_path / "a")) == 18

    status, answers, stderr = run(killed, undisturbed)
    assert status == 0, stderr
    assert [answer["resumed_from"] for answer in answers] == [14, None]
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    assert weights(tmp_path / "a") == weights(tmp_path / "b")


def test_a_lost_worker_is_replaced_and_the_run_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    engine = {"kind": "deepspeed", "zero_stage": 2}
    faults = {"die_in_rank": 1, "die_at": 27, "marker": str(tmp_path / "died")}
    disturbed = {"spec": spec(engine=engine, options=faults), "run_dir": str(tmp_path / "a")}
    undisturbed = {"spec": spec(engine=engine), "run_dir": str(tmp_path / "b")}

    status, answers, stderr = run(disturbed, undisturbed)
    assert status == 0, stderr
    assert (tmp_path / "died").exists()
    assert answers[0]["resumed_from"] in (7, 14, 21)
    assert answers[1]["resumed_from"] is None
    starts = [row for row in trace.read(tmp_path / "a" / trace.FILE) if row["event"] == "start"]
    assert [row["step"] for row in starts] == [0, answers[0]["resumed_from"]]
    assert len({pid for row in starts for pid in row["pids"]}) == 4
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    assert weights(tmp_path / "a") == weights(tmp_path / "b")


def test_what_a_worker_raises_on_purpose_reaches_the_driver_without_another_try(tmp_path: Path) -> None:
    status, answers, stderr = run({"spec": spec(options={"poison": 3}), "run_dir": str(tmp_path)})
    assert status == 0, stderr
    assert answers[0]["error"] == "NonFiniteError"
    assert answers[0]["message"].startswith("step 3, epoch 1: loss task is nan")
    assert len([row for row in trace.read(tmp_path / trace.FILE) if row["event"] == "start"]) == 1
