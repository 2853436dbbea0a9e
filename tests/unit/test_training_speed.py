"""What a run says of its speed: shares of time, FLOPs, a profile, and how far it is, seen from outside."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch

from graceful import spec
from graceful.cli import progress
from graceful.errors import InfrastructureError
from graceful.launch.backend import Handle
from graceful.training import speed, trace
from graceful.training.driver import train
from graceful.training.job import PROFILE, TrainingJob
from tests.support import training_task

HANDLE = Handle(scheme="local", location="", name="blobs-v1")


def test_a_run_says_where_its_time_went(tmp_path: Path) -> None:
    recipe = {"epochs": 2, "batch_size": 24, "num_workers": 0, "engine": {"kind": "torch"}, "checkpoint_every": 5}
    task = {"kind": "python", "file": training_task.__file__}
    document = spec.parse({"model": "blobs", "name": "v1", "task": task, "train": recipe})
    train(TrainingJob(spec=document, run_dir=tmp_path, profile=True))
    rows = trace.read(tmp_path / trace.FILE)
    first, second = (row for row in rows if row["event"] == "epoch")
    assert set(first["time_shares"]) == {"data", "forward", "backward", "update", "checkpoint"}
    assert set(second["time_shares"]) == {*first["time_shares"], "evaluation"}
    for row in (first, second):
        assert sum(row["time_shares"].values()) == pytest.approx(1.0, abs=0.001)
        flops = 3 * 2 * (6 * 24 + 24 * 8 + 8 * 3)
        expected = row["samples_per_second_per_worker"] * flops / 1e12
        assert row["tflops_per_second_per_worker"] == pytest.approx(expected, abs=1e-4)
    assert {row["steps"] for row in rows if row["event"] == "step"} == {20}
    events = json.loads(gzip.decompress((tmp_path / PROFILE).read_bytes()))["traceEvents"]
    assert any(event.get("name") == "aten::linear" for event in events)


def test_waiting_for_other_ranks_is_taken_out_of_the_backward_pass() -> None:
    spent = {"forward": 1.0, "backward": 3.0}
    assert speed.of_whole(spent) == {"forward": 0.25, "backward": 0.75}
    assert speed.of_whole(spent, waiting=1.0) == {"forward": 0.25, "backward": 0.5, "communication": 0.25}
    assert speed.of_whole({}) == {}
    assert speed.utilisation(1e12, torch.device("cpu"), precision="bf16") is None


class Log:
    """A backend of which only the log is asked."""

    def __init__(self, *lines: str, error: Exception | None = None) -> None:
        self.lines, self.error, self.since = lines, error, ""

    def logs(self, handle: Handle, *, follow: bool = False, since: datetime | None = None) -> Iterator[str]:
        self.since = "" if since is None else since.isoformat()
        if self.error is not None:
            raise self.error
        yield from self.lines


LINE = "event=step step=120 steps=3000 epoch=2 loss=0.4127 lr=0.05 grad_norm=none samples_per_second=830.5 eta=840.2"


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        (
            Log("event=start step=0", LINE.replace("=120", "=110"), LINE, "event=epoch step=120"),
            "step 120 of 3000, epoch 2, loss 0.413, 830 samples/s, 14 min left",
        ),
        (Log("event=step step=1 epoch=1 loss=nan eta=30.0"), "step 1, epoch 1, loss nan, 30 s left"),
        (Log("event=start step=0"), None),
        (Log(error=InfrastructureError("forbidden")), None),
    ],
)
def test_progress_is_read_from_the_log(log: Any, expected: str | None) -> None:
    found = progress.of_run(log, HANDLE, here=False)
    assert (None if found is None else progress.described(found)) == expected
    assert log.since
    progress.of_run(log, HANDLE, here=True)
    assert not log.since
