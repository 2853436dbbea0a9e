"""What a Ray worker owes the driver when something fails, and the file system it is handed. Starts no cluster."""

from __future__ import annotations

import json
import pickle
import threading
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray.train.torch
import torch

from graceful import spec
from graceful.errors import DataError, GracefulError, StorageError
from graceful.storage import Mirror
from graceful.training import checkpoint, ray_worker
from graceful.training.bucket import PatientS3
from graceful.training.elastic import DivisibleScaling
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


def test_a_worker_of_ray_takes_its_next_checkpoint_when_the_last_one_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray calls what it was given in a thread; a store that fails lets the next one come all the same."""
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(ray.train, "report", lambda metrics, **options: calls.append(options))
    answers = iter([StorageError("bucket away"), "there"])

    def persist(local: object, name: str) -> object:
        answer = next(answers)
        if isinstance(answer, StorageError):
            raise answer
        return answer

    kept = SimpleNamespace(persist_current_checkpoint=persist)
    monkeypatch.setattr(ray.train, "get_context", lambda: SimpleNamespace(get_storage=lambda: kept))
    uploads = ray_worker.Uploads(TrainingJob(spec=SPEC, run_dir=tmp_path, mirror=Mirror.NONE))

    def part(step: int) -> checkpoint.Part:
        folder = tmp_path / str(step)
        folder.mkdir()
        (folder / "engine.pt").write_bytes(b"weights")
        return checkpoint.Part(folder=folder, step=step, metrics={}, state={}, rank=0, world_size=1)

    uploads.publish(part(1))
    second = threading.Thread(target=uploads.publish, args=(part(2),))
    second.start()
    second.join(0.3)
    assert second.is_alive()
    assert len(calls) == 1
    assert calls[0]["checkpoint_upload_mode"] is ray.train.CheckpointUploadMode.ASYNC
    with pytest.raises(StorageError, match="bucket away"):
        calls[0]["checkpoint_upload_fn"]("local", "step-000000001")
    second.join(60.0)
    assert calls[1]["checkpoint_upload_fn"]("local", "step-000000002") == "there"
    assert checkpoint.verify(tmp_path / "1") == checkpoint.verify(tmp_path / "2") == {}


def test_an_elastic_group_has_a_number_of_workers_by_which_batches_are_divided() -> None:
    policy = DivisibleScaling(ray.train.ScalingConfig(num_workers=(2, 8)), allowed=[2, 3, 4, 6, 8])
    room = [policy._count_possible_workers({"a": {"CPU": 1.0}, "b": {"CPU": float(cpus)}}) for cpus in (0, 4, 5, 99)]
    assert room == [0, 4, 6, 8]
