"""Judgments of a table's queries: read, joined by id, and refused with file and row where they are wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graceful import spec
from graceful.errors import DataError, SpecError
from graceful.metrics import retrieval
from graceful.programs.outputs.model_outputs import SplitOutputs, embeddings_of
from tests.unit.test_tasks_table import build, csv, parquet, rows

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

COLUMNS = {"features": ["weight", "height"], "label": "label", "id": "id"}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRACEFUL_HOME", str(tmp_path / "home"))


def files(folder: Path, judgments: list[dict[str, Any]]) -> dict[str, Any]:
    """A table whose queries are rows 200 to 219 and whose gallery is the rest to 239."""
    table = rows(240)
    parts = {"train": table[:160], "test": table[160:200], "query": table[200:220], "gallery": table[220:]}
    for name, part in parts.items():
        parquet(folder / f"{name}.parquet", part)
    if judgments:
        csv(folder / "qrels.csv", judgments)
    return {
        "files": {name: str(folder / f"{name}.parquet") for name in parts},
        "columns": COLUMNS,
        "judgments": {"files": str(folder / "qrels.csv")},
    }


def judged(query: str, item: str, score: Any) -> dict[str, Any]:
    return {"query-id": query, "corpus-id": item, "score": score}


def test_judgments_decide_what_answers_a_query(tmp_path: Path) -> None:
    task = build(**files(tmp_path, [judged("row-0200", "row-0225", 2), judged("row-0201", "row-0230", 1)]))
    queries, gallery = task.samples("query"), task.samples("gallery")
    plain = build(**{key: value for key, value in files(tmp_path, []).items() if key != "judgments"})
    assert queries.digest != plain.samples("query").digest
    assert gallery.digest == plain.samples("gallery").digest
    vectors = np.zeros((20, 40), dtype=np.float32)
    vectors[:, :20] = np.eye(20)
    answers = np.zeros((20, 40), dtype=np.float32)
    answers[5, 0] = answers[10, 5] = 1.0  # row-0225 is found first by query row-0200; row-0230 by none
    logits = np.zeros((20, 3), dtype=np.float32)
    found = retrieval.self_test(
        embeddings_of(queries, SplitOutputs(logits=logits, embeddings=vectors)),
        embeddings_of(gallery, SplitOutputs(logits=logits, embeddings=answers)),
        draws=10,
    )
    assert found["self_test_recall_at_1"].n == 2, "two queries have an answer"
    assert found["self_test_recall_at_1"].value == 0.5


@pytest.mark.parametrize(
    ("judgments", "message"),
    [
        ([judged("row-0200", "row-0225", 1.5)], r"qrels.csv, row 0: score must be a whole number from 0 on, got 1.5"),
        ([judged("row-0200", "row-0225", -1)], r"qrels.csv, row 0: score must be a whole number from 0 on, got -1"),
        ([judged("row-0200", "row-0225", 1), judged("row-0200", "", 1)], r"qrels.csv, row 1: no value in corpus-id"),
        (
            [judged("row-0200", "row-0225", 1)] * 2,
            r"row 1: query 'row-0200' and item 'row-0225' are judged in .*row 0, too",
        ),
        ([judged("row-0225", "row-0200", 1)], r"none of 1 rows of .*qrels.csv names a row of the query split"),
        ([{"query": "a", "item": "b"}], r"qrels.csv has no column 'query-id'; it has query, item"),
    ],
)
def test_wrong_judgments_are_named_by_file_and_row(
    judgments: list[dict[str, Any]], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        build(**files(tmp_path, judgments)).samples("query")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"columns": {**COLUMNS, "id": None}}, "names rows by columns.id"),
        ({"files": {"train": "a.csv", "query": "b.csv"}}, "needs the splits query and gallery"),
    ],
)
def test_judgments_need_names_and_splits(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=message):
        build(**{**files(tmp_path, []), **changes})


def test_files_of_judgments_are_relative_to_the_spec(tmp_path: Path) -> None:
    (tmp_path / "v1.yaml").write_text(
        "model: m\nname: v1\ntask:\n  kind: table\n  files: {train: a.csv, query: b.csv, gallery: c.csv}\n"
        "  columns: {features: [x], id: id}\n  judgments: {files: qrels.csv}\n"
    )
    assert spec.load(tmp_path / "v1.yaml").task.judgments.files == (str(tmp_path / "qrels.csv"),)
