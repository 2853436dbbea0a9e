"""Checkpoints are brought away beside training: it goes on meanwhile, and hears of it when that fails."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

from graceful import spec
from graceful.errors import StorageError
from graceful.training import checkpoint
from graceful.training.driver import TrainingJob, train
from tests.support import training_task

DOCUMENT = spec.parse(
    {
        "model": "blobs",
        "name": "v2",
        "task": {"kind": "python", "file": training_task.__file__, "options": {}},
        "train": {"epochs": 1, "batch_size": 24, "engine": {"kind": "torch"}, "num_workers": 0, "checkpoint_every": 4},
    }
)


def test_training_goes_on_while_a_checkpoint_is_brought_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store takes the checkpoint of step 4 only when step 7 is done: a run that waited for it would never end."""
    later, seal = threading.Event(), checkpoint.Part.seal

    def slow_seal(part: checkpoint.Part) -> None:
        assert later.wait(60.0) or part.step > 4
        seal(part)

    def progress(row: Mapping[str, object]) -> None:
        if row["event"] == "step" and row["step"] == 7:
            later.set()

    monkeypatch.setattr(checkpoint.Part, "seal", slow_seal)
    train(TrainingJob(spec=DOCUMENT, run_dir=tmp_path), progress=progress)
    folders = sorted(folder.name for folder in (tmp_path / "checkpoints").iterdir())
    assert folders == ["step-000000008", "step-000000010"]
    assert all(checkpoint.verify(tmp_path / "checkpoints" / name) for name in folders)


@pytest.mark.parametrize("step", [4, 10])
def test_a_checkpoint_that_cannot_be_brought_away_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """In the middle, where the next checkpoint notices it, and at the end; the same run then goes on."""
    seal = checkpoint.Part.seal

    def broken(part: checkpoint.Part) -> None:
        if part.step == step:
            raise StorageError("bucket away")
        seal(part)

    job = TrainingJob(spec=DOCUMENT, run_dir=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.Part, "seal", broken)
        with pytest.raises(StorageError, match="bucket away"):
            train(job)
    assert train(job).resumed_from == (None if step == 4 else 8)
