"""Weights of samples and classes: 1 on average, in the task's loss alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from graceful import spec
from graceful.errors import DataError, SpecError
from graceful.models.base import Outputs
from graceful.tasks.base import Samples
from graceful.training.objective import Objective
from graceful.training.weights import sample_weights
from tests.support.runs import job_of
from tests.unit.test_training_loop import losses, parse, train

LABELS = np.asarray([0, 0, 0, 1], dtype=np.int64)


def samples(weights: Any = None) -> Samples:
    names = np.asarray(["a", "b", "c", "d"])
    array = None if weights is None else np.asarray(weights, dtype=np.float32)
    return Samples(
        ids=names, labels=LABELS, classes=("x", "y"), groups=names, read=lambda rows: rows, digest="0", weights=array
    )


@pytest.mark.parametrize(
    ("rows", "classes", "expected"),
    [
        ([1.0, 1.0, 2.0, 4.0], None, [0.5, 0.5, 1.0, 2.0]),
        (None, "balanced", [2 / 3, 2 / 3, 2 / 3, 2.0]),
        (None, {"y": 5.0}, [0.5, 0.5, 0.5, 2.5]),
        ([1.0, 1.0, 2.0, 4.0], "balanced", [0.5, 0.5, 1.0, 2.0]),
        ([0.0, 0.0, 2.0, 4.0], {"x": 2.0}, [0.0, 0.0, 2.0, 2.0]),
    ],
)
def test_weights_are_one_on_average(rows: Any, classes: Any, expected: list[float]) -> None:
    found = sample_weights(samples(rows), classes)
    assert found is not None
    assert found.of(np.arange(4), LABELS).tolist() == pytest.approx(expected)


def test_the_loss_of_the_task_is_weighted_and_nothing_else_changes() -> None:
    logits, weights = torch.randn(4, 2), torch.tensor([0.5, 0.5, 0.0, 3.0])
    objective = Objective(spec.Compatibility(), ("x", "y"), ())
    value = objective(Outputs(torch.randn(4, 3), logits), torch.from_numpy(LABELS), weights=weights)
    each = F.cross_entropy(logits, torch.from_numpy(LABELS), reduction="none")
    assert float(value.total) == pytest.approx(float((each * weights).sum() / 4))


def test_a_run_reads_the_weights_of_classes(tmp_path: Path) -> None:
    first = {}
    for name, weights in (("none", None), ("equal", {"blob-0": 1.0}), ("other", {"blob-0": 9.0})):
        run = job_of(parse(class_weights=weights, epochs=1), tmp_path / name, [])
        train(run, progress=lambda row: None)
        first[name] = losses(run.run_dir)[0]
    assert first["equal"] == first["none"]
    assert first["other"] != first["none"]


def test_samples_in_memory_take_weights_and_their_digest_covers_them() -> None:
    given = {"items": np.zeros((2, 1)), "labels": [0, 1], "classes": ("x", "y"), "ids": ["a", "b"]}
    plain, first, second = (Samples.of(**given, weights=weights) for weights in (None, [1, 2], [1.0, 3.0]))
    assert first.weights is not None
    assert first.weights.tolist() == [1.0, 2.0]
    assert len({plain.digest, first.digest, second.digest}) == 3
    with pytest.raises(DataError, match=r"weight -1\.0 of sample 1"):
        Samples.of(**given, weights=[1, -1])
    with pytest.raises(DataError, match="must be numbers from 0 on"):
        Samples.of(**given, weights=["much", "more"])


@pytest.mark.parametrize(
    ("weights", "message"),
    [([1.0, np.nan, 1.0, 1.0], "weight nan of sample 1"), ([1.0, 1.0, 1.0, -2.0], "weight -2.0 of sample 3")],
)
def test_weights_that_are_no_weights_are_refused(weights: list[float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        samples(weights)


def test_weights_of_nothing_are_refused() -> None:
    with pytest.raises(DataError, match="no training sample has a weight above 0"):
        sample_weights(samples([0.0] * 4), None)
    with pytest.raises(SpecError, match="the task has no class 'z'; it has x, y"):
        sample_weights(samples(), {"z": 2.0})


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("balance", "train.class_weights in spec: must be balanced, or factors by class"),
        ({"x": -1.0}, "factor of class 'x' must be a number from 0 on, got -1.0"),
        ({"x": float("nan")}, "factor of class 'x' must be a number from 0 on, got nan"),
    ],
)
def test_weights_of_a_spec_are_balanced_or_numbers(weights: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse(class_weights=weights)
