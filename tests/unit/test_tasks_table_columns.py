"""Columns of a table beside texts and numbers: weights, categories, and numbers that are missing."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graceful import tasks
from graceful.errors import DataError
from tests.unit.test_tasks_table import build, csv, json_lines, parquet, rows


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRACEFUL_HOME", str(tmp_path / "home"))


def weighted(weights: Any) -> list[dict[str, Any]]:
    return [{**row, "importance": weights(index)} for index, row in enumerate(rows(60))]


@pytest.mark.parametrize("write", [parquet, csv, json_lines])
def test_rows_count_what_their_weight_says_in_training_alone(write: Any, tmp_path: Path) -> None:
    path = write(tmp_path / f"rows.{write.__name__.replace('json_lines', 'jsonl')}", weighted(lambda index: index % 5))
    task = build(files=path, columns={"weight": "importance"})
    train = task.samples("train")
    numbers = [int(name.removeprefix("row-")) for name in train.ids[np.arange(len(train))].tolist()]
    assert train.weights is not None
    assert train.weights.tolist() == [float(number % 5) for number in numbers]
    assert task.samples("test").weights is None
    plain = build(files=path)
    assert plain.samples("train").digest == train.digest
    assert tasks.transform_digest(plain._section) == tasks.transform_digest(task._section)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (
            lambda index: -0.5 if index == 7 else 1.0,
            r"rows.parquet, row 7: importance must be a number from 0 on, got -",
        ),
        (lambda index: math.inf if index == 7 else 1.0, r"row 7: importance must be a number from 0 on, got inf"),
        (lambda index: math.nan if index == 7 else 1.0, r"row 7: no value in one of .*, label, importance;"),
        (lambda index: None if index == 7 else 1.0, r"row 7: no value in one of .*, label, importance;"),
        (lambda index: 0, r"columns.weight: all \d+ training rows have weight 0"),
        (lambda index: "much", r"row 0: importance must be a number, got 'much'"),
    ],
)
def test_weights_that_are_none_are_refused_with_file_and_row(weights: Any, message: str, tmp_path: Path) -> None:
    path = parquet(tmp_path / "rows.parquet", weighted(weights))
    with pytest.raises(DataError, match=message):
        build(files=path, columns={"weight": "importance"}).samples("train")


def test_a_column_of_weights_must_be_there(tmp_path: Path) -> None:
    path = parquet(tmp_path / "rows.parquet", rows(60))
    with pytest.raises(DataError, match=r"has no column 'importance'"):
        build(files=path, columns={"weight": "importance"}).samples("train")
