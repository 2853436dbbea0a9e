"""Columns of a table beside texts and numbers: weights, categories, and numbers that are missing."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from graceful import tasks
from graceful.errors import DataError, SpecError
from graceful.learners import run
from graceful.learners.batch import finite_rows
from graceful.learners.features import CATEGORIES, NUMBERS
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


# --- categories -------------------------------------------------------------------------------------------------------


def mixed(count: int = 120) -> list[dict[str, Any]]:
    """Numbers, a text, a whole number and a truth value as categories; the label follows from the text."""
    return [
        {
            "id": f"row-{index:03d}",
            "number": float(index % 7),
            "colour": ("red", "green", "blue")[index % 3],
            "code": index % 4,
            "new": index % 2 == 0,
            "label": ("warm", "cold", "cold")[index % 3],
        }
        for index in range(count)
    ]


COLUMNS = {"features": ["number"], "categories": ["colour", "code", "new"], "id": "id"}


@pytest.mark.parametrize("write", [parquet, csv, json_lines])
def test_categories_are_looked_up_beside_numbers(write: Any, tmp_path: Path) -> None:
    path = write(tmp_path / f"rows.{write.__name__.replace('json_lines', 'jsonl')}", mixed())
    task = build(files=path, columns=COLUMNS)
    files = task.learner.assets()
    assert files[CATEGORIES]["columns"] == ["colour", "code", "new"]
    assert files[CATEGORIES]["values"][:2] == [["blue", "green", "red"], ["0", "1", "2", "3"]]
    train = task.samples("train")
    rows_read = train.read(np.arange(8))
    batch = task.learner.collate(rows_read, None)
    assert batch["numbers"].shape == (8, 1)
    colours = [("blue", "green", "red").index(row["colour"]) + 1 for row in rows_read]
    assert batch["categories"][:, 0].tolist() == colours
    network = task.network(task.classes).eval()
    outputs = run(task.learner, network, batch)
    assert outputs.embedding.shape == (8, 32)
    assert rows_read[:1].texts()[0].startswith("number = ")


def test_served_rows_are_mappings_or_lists_and_unknown_values_share_one_row(tmp_path: Path) -> None:
    task = build(files=parquet(tmp_path / "rows.parquet", mixed()), columns=COLUMNS)
    restored = task.learner.restored(json.loads(json.dumps(task.learner.assets())))
    expected = {"numbers": [[0.0]], "categories": [[3, 3, 2]]}
    mean = restored.assets()[NUMBERS]["mean"][0]
    row = {"number": mean, "colour": "red", "code": 2, "new": True}
    for items in ([row], {name: [value] for name, value in row.items()}, [list(row.values())]):
        assert {name: tensor.tolist() for name, tensor in restored.collate(items, None).items()} == expected
    strange = restored.collate([{**row, "colour": "mauve"}, {**row, "colour": "ochre", "code": 2.0}], None)
    assert strange["categories"].tolist() == [[0, 3, 2], [0, 3, 2]]
    network = restored.network(task.classes)
    assert not network.body.embeddings[0].weight[0].any()
    with pytest.raises(DataError, match="rows have no column 'code'; give number, colour, code, new"):
        restored.collate([{"number": 1.0, "colour": "red"}], None)
    with pytest.raises(DataError, match="number must be a number"):
        restored.collate([{**row, "number": "many"}], None)


def gaps() -> list[dict[str, Any]]:
    return [
        {**row, **({"number": None} if index % 5 == 0 else {}), **({"colour": None} if index % 6 == 1 else {})}
        for index, row in enumerate(mixed())
    ]


@pytest.mark.parametrize("write", [parquet, csv])
def test_missing_values_are_refused_or_filled(write: Any, tmp_path: Path) -> None:
    table = [{name: ("" if write is csv and value is None else value) for name, value in row.items()} for row in gaps()]
    path = write(tmp_path / f"rows.{write.__name__}", table)
    with pytest.raises(DataError, match="row 0: no value in one of number, colour, code, new, label"):
        build(files=path, columns=COLUMNS).samples("train")
    task = build(files=path, columns={**COLUMNS, "missing": "indicator"})
    train = task.samples("train")
    raw = [row["number"] for row in train.read(np.arange(len(train)))]
    present = np.asarray([value is not None and np.isfinite(value) for value in raw])
    batch = task.learner.collate(train.read(np.arange(len(train))), None)
    assert batch["numbers"][:, 1].tolist() == (~present).astype(float).tolist()
    assert batch["numbers"][~present, 0].tolist() == [0.0] * int((~present).sum())
    assert float(batch["numbers"][present, 0].mean()) == pytest.approx(0.0, abs=1e-6)
    assert float(batch["numbers"][present, 0].std(correction=0)) == pytest.approx(1.0, abs=1e-5)
    assert (batch["categories"][:, 0] == 0).any()
    assert build(files=path, columns={**COLUMNS, "missing": "mean"}).learner.collate(train.read(np.arange(2)), None)[
        "numbers"
    ].shape == (2, 1)


def test_a_network_of_categories_alone_learns_what_they_say(tmp_path: Path) -> None:
    path = parquet(tmp_path / "rows.parquet", mixed())
    task = build(files=path, columns={"features": None, "categories": ["colour"]})
    torch.manual_seed(0)
    network, train = task.network(task.classes), task.samples("train")
    batch, labels = task.learner.collate(train.read(np.arange(len(train))), None), torch.tensor(train.labels)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.05)
    for _ in range(40):
        optimizer.zero_grad()
        task.learner.task_loss(run(task.learner, network, batch), batch, labels).mean().backward()
        optimizer.step()
    assert (run(task.learner, network, batch).logits.argmax(1) == labels).all()
    assert NUMBERS not in task.learner.assets()
    assert finite_rows(batch).all()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"categories": ["number"]}, "features and categories both name number"),
        ({"features": None, "text": "colour", "missing": "mean"}, "missing is for features and categories"),
        ({"categories": ["colour"], "text": "colour"}, "must name one of text, features and image"),
    ],
)
def test_columns_that_do_not_go_together_are_refused(columns: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = parquet(tmp_path / "rows.parquet", mixed())
    with pytest.raises(SpecError, match=message):
        build(files=path, columns={**COLUMNS, "categories": [], **columns})


def test_words_are_left_out_of_texts_alone(tmp_path: Path) -> None:
    path, augment = parquet(tmp_path / "rows.parquet", rows(60)), {"kind": "word_dropout"}
    with pytest.raises(SpecError, match="augment is for texts"):
        build(files=path, augment=augment)
    network = {"kind": "transformers", "checkpoint": str(tmp_path)}
    texts = {"files": path, "columns": {"features": None, "text": "text"}, "network": network}
    plain, augmented = build(**texts), build(**texts, augment=augment)
    assert (plain.augments, augmented.augments) == (False, True)
    assert tasks.transform_digest(plain._section) != tasks.transform_digest(augmented._section)


def test_categories_must_be_texts_or_whole_numbers(tmp_path: Path) -> None:
    path = parquet(tmp_path / "rows.parquet", mixed())
    with pytest.raises(DataError, match=r"columns.categories: column 'number' of .* holds float64; must be text"):
        build(files=path, columns={"features": None, "categories": ["number"]}).samples("train")
