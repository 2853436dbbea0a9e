"""Runs whose number of workers changes: a machine is evicted and leaves, another one joins."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from graceful.training import trace

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]
ROOT = Path(__file__).parents[2]


def rows(run_dir: Path, event: str) -> list[dict[str, Any]]:
    return [row for row in trace.read(run_dir / trace.FILE) if row["event"] == event]


def answer_of(module: str, folder: Path) -> dict[str, Any]:
    """Return what a module of tests.support says that starts clusters of its own."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    command = [sys.executable, "-m", f"tests.support.{module}", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True, timeout=1000, check=True)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def assert_same_steps(changed: Path, whole: Path, *, steps: int) -> None:
    """Expect each step once, with the losses of the undisturbed run but for the order of sums."""
    ours, theirs = rows(changed, "step"), rows(whole, "step")
    assert [row["step"] for row in ours] == list(range(1, steps + 1))
    assert [row["loss"] for row in ours] == pytest.approx([row["loss"] for row in theirs], rel=1e-4)


def test_a_run_saves_when_a_machine_is_evicted_and_goes_on_without_it(tmp_path: Path) -> None:
    answer = answer_of("preempted", tmp_path)
    assert 1 <= answer["resumed_from"] < answer["steps"] == answer["whole"]
    starts = rows(tmp_path / "moved", "start")
    assert [(start["step"], start["world_size"]) for start in starts] == [(0, 2), (answer["resumed_from"], 1)]
    assert_same_steps(tmp_path / "moved", tmp_path / "whole", steps=answer["steps"])
    assert all("preempted" not in row["parts"] for row in rows(tmp_path / "moved", "step"))


def test_a_run_grows_when_a_machine_joins(tmp_path: Path) -> None:
    answer = answer_of("grown", tmp_path)
    assert 5 <= answer["resumed_from"] < answer["steps"] == answer["whole"]
    assert answer["resumed_from"] % 5 == 0, "a run grows from its last checkpoint"
    starts = rows(tmp_path / "grown", "start")
    assert [(start["step"], start["world_size"]) for start in starts] == [(0, 1), (answer["resumed_from"], 2)]
    assert_same_steps(tmp_path / "grown", tmp_path / "whole", steps=answer["steps"])
