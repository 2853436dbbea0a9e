"""A learner of a user's file on the whole path: batches that are mappings of integers, and two encoders."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from graceful.tasks import code
from tests.integration.test_refresh import graceful

pytestmark = pytest.mark.integration
SEQUENCES = Path(__file__).parents[1] / "support" / "sequences.py"


def refreshed(
    home: Path, name: str, *, options: dict[str, object], train: dict[str, object], **sections: object
) -> Path:
    document = {
        "model": "sequences",
        "name": name,
        "task": {"kind": "python", "file": "sequences.py", "options": options},
        "train": {"epochs": 8, "batch_size": 32, "optimizer": {"kind": "adamw", "lr": 0.02}, **train},
        "gate": {"constraints": [{"metric": "error_rate", "bound": 0.6, "against": "self"}]},
        **sections,
    }
    if not (home / "sequences.py").exists():
        shutil.copy(SEQUENCES, home / "sequences.py")
    path = home / f"{name}.yaml"
    path.write_text(yaml.safe_dump(document))
    done = graceful("refresh", path, "-o", "json", home=home)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["outcome"] == "passed"
    return home / "runs" / f"sequences-{name}"


SERVE = """
import json, sys
import mlflow
import numpy as np
sys.path.insert(0, sys.argv[1])
import sequences
samples = sequences.task().samples("test")
mlflow.set_tracking_uri(sys.argv[2])
model = mlflow.pyfunc.load_model(sys.argv[3])
labels = model.predict(samples.read(np.arange(len(samples))))["label"]
sys.stdout.write(json.dumps(float((labels != np.asarray(samples.classes)[samples.labels]).mean())))
"""


def served_error(home: Path, number: int) -> float:
    """Error of a version on the test split, as MLflow's own loader opens it in another process."""
    environment = {**os.environ, "GRACEFUL_TRUST_CODE": code.digest(str(home / "sequences.py"))}
    arguments = [home, f"sqlite:///{home / 'mlflow.db'}", f"models:/sequences/{number}"]
    command = [sys.executable, "-c", SERVE, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


def test_versions_with_vocabularies_of_their_own_are_trained_measured_and_served(tmp_path: Path) -> None:
    """Outputs of v1 are cached; the file of v2 orders words otherwise, so only its own assets tell v1's words."""
    first = refreshed(
        tmp_path, "v1", options={"width": 8, "share": 0.02}, train={"num_workers": 0, "engine": {"kind": "torch"}}
    )
    error = served_error(tmp_path, 1)
    file = tmp_path / "sequences.py"
    text = file.read_text()
    assert "dict.fromkeys(known)" in text
    file.write_text(text.replace("dict.fromkeys(known)", "sorted(set(known))"))
    losses = [
        {"kind": "focal_distillation"},
        {"kind": "influence"},
        {"kind": "embedding_regression", "weight": 1.0},
    ]
    train = {"num_workers": 2, "engine": {"kind": "deepspeed", "zero_stage": 3}}
    run = refreshed(tmp_path, "v2", options={"width": 12}, train=train, compatibility={"losses": losses})
    before, report = (json.loads((folder / "report.json").read_text()) for folder in (first, run))
    measured = {name: one["value"] for name, one in report["comparisons"][0]["measurements"].items()}
    assert measured["old_error_rate"] == before["measurements"]["error_rate"]["value"] == error
    assert measured["new_error_rate"] == served_error(tmp_path, 2)
    assert measured["negative_flip_rate"] < 0.2
    assert measured["cross_test_recall_at_1"] > 1 / 3
    told = graceful("diff", "sequences:1", "sequences:2", "-o", "json", home=tmp_path)
    assert json.loads(told.stdout)["flips"]["negative_flip_rate"]["value"] == measured["negative_flip_rate"]
