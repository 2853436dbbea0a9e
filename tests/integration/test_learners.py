"""A learner of a user's file on the whole path: batches that are mappings of integers, and two encoders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from tests.integration.test_refresh import graceful

pytestmark = pytest.mark.integration
SEQUENCES = Path(__file__).parents[1] / "support" / "sequences.py"


def refreshed(home: Path, name: str, *, width: int, train: dict[str, object], **sections: object) -> Path:
    document = {
        "model": "sequences",
        "name": name,
        "task": {"kind": "python", "file": "sequences.py", "options": {"width": width}},
        "train": {"epochs": 8, "batch_size": 32, "optimizer": {"kind": "adamw", "lr": 0.02}, **train},
        "gate": {"constraints": [{"metric": "error_rate", "bound": 0.6, "against": "self"}]},
        **sections,
    }
    shutil.copy(SEQUENCES, home / "sequences.py")
    path = home / f"{name}.yaml"
    path.write_text(yaml.safe_dump(document))
    done = graceful("refresh", path, "-o", "json", home=home)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["outcome"] == "passed"
    return home / "runs" / f"sequences-{name}"


def test_a_learner_is_trained_with_two_workers_against_a_predecessor_and_measured(tmp_path: Path) -> None:
    refreshed(tmp_path, "v1", width=8, train={"num_workers": 0, "engine": {"kind": "torch"}})
    losses = [
        {"kind": "focal_distillation"},
        {"kind": "influence"},
        {"kind": "embedding_regression", "weight": 1.0},
    ]
    train = {"num_workers": 2, "engine": {"kind": "deepspeed", "zero_stage": 2}}
    run = refreshed(tmp_path, "v2", width=12, train=train, compatibility={"losses": losses})
    report = json.loads((run / "report.json").read_text())
    measured = report["comparisons"][0]["measurements"]
    assert measured["negative_flip_rate"]["value"] < 0.2
    assert measured["cross_test_recall_at_1"]["value"] > 1 / 3
