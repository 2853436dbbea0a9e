"""What a Ray worker owes the driver when something fails, and the file system it is handed. Starts no cluster."""

from __future__ import annotations

import json
import pickle
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray.train.torch
import torch

from graceful import spec
from graceful.errors import DataError, GracefulError, StorageError
from graceful.training import ray_worker
from graceful.training.bucket import PatientS3
from graceful.training.job import FAILURE, TrainingJob
from graceful.training.rank_context import unanimous

SPEC = spec.parse({"model": "m", "name": "v1", "task": {"kind": "digits"}}, where="test")


def test_the_file_system_of_checkpoints_keeps_its_patience_when_it_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sent elsewhere, it is made anew there, from the variables of that process."""
    for name, value in (("AWS_ACCESS_KEY_ID", "here"), ("AWS_SECRET_ACCESS_KEY", "s"), ("AWS_REGION", "eu-central-1")):
        monkeypatch.setenv(name, value)
    sent = pickle.dumps(PatientS3.open())
    assert b"here" not in sent
    monkeypatch.setattr(PatientS3, "open", lambda: "made there")
    assert pickle.loads(sent) == "made there"  # noqa: S301  our own bytes


def test_trouble_at_the_start_of_a_worker_keeps_its_retries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk or bucket that is away for a moment is not a reason to end the run without a word."""

    def start(error: GracefulError) -> dict[str, Any]:
        monkeypatch.setattr("graceful.training.loop.run", partial(_raise, unanimous(error)))
        return ray_worker.worker({"job": TrainingJob(spec=SPEC, run_dir=tmp_path), "digest": "d"})

    monkeypatch.setattr(
        ray.train, "get_context", lambda: SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 1)
    )
    monkeypatch.setattr(ray.train.torch, "get_device", lambda: torch.device("cpu"))
    with pytest.raises(StorageError, match="bucket away"):
        start(StorageError("bucket away"))
    assert not (tmp_path / FAILURE).exists()
    assert start(DataError("no such class")) == {}
    assert json.loads((tmp_path / FAILURE).read_text())["message"] == "no such class"


def _raise(error: Exception, *_: object, **__: object) -> None:
    raise error
