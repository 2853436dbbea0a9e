"""A run over a stream that is killed goes on at the exact row."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.integration.test_training import losses, run, weights
from tests.support import stream_task

pytestmark = pytest.mark.integration
TASK = {"kind": "python", "file": stream_task.__file__}


def test_a_run_over_a_stream_that_is_killed_goes_on_at_the_exact_row(tmp_path: Path) -> None:
    recipe = {"epochs": 3, "batch_size": 24, "checkpoint_every": 7, "num_workers": 0, "engine": {"kind": "torch"}}
    document = {"model": "points", "name": "v1", "task": TASK, "train": recipe}
    killed, undisturbed = ({"spec": document, "run_dir": str(tmp_path / name)} for name in "ab")
    assert run({**killed, "die_at_step": 18})[:2] == (-signal.SIGKILL, [])
    status, answers, stderr = run(killed, undisturbed)
    assert status == 0, stderr
    assert [answer["resumed_from"] for answer in answers] == [14, None]
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    assert len(losses(tmp_path / "a")) == 36
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
