"""A machine is announced to go away and goes: the run saves what it has, and goes on with the workers that are left."""

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


def test_a_run_saves_when_a_machine_is_announced_to_go_and_goes_on_without_it(tmp_path: Path) -> None:
    env = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    command = [sys.executable, "-m", "tests.support.preempted", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True, timeout=1000, check=True)
    answer = json.loads(done.stdout.splitlines()[-1])
    assert 1 <= answer["resumed_from"] < answer["steps"] == answer["whole"]
    starts = rows(tmp_path / "moved", "start")
    assert [(start["step"], start["world_size"]) for start in starts] == [(0, 2), (answer["resumed_from"], 1)]
    moved, whole = (rows(tmp_path / name, "step") for name in ("moved", "whole"))
    assert [row["step"] for row in moved] == list(range(1, answer["steps"] + 1))
    assert [row["loss"] for row in moved] == pytest.approx([row["loss"] for row in whole], rel=1e-4)
    assert all("preempted" not in row["parts"] for row in moved)
