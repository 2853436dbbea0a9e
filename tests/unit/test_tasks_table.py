"""Tables: rows of files become samples; what a row lacks is said with its file and number."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from graceful import spec, tasks
from graceful.chain import Predecessor, freeze
from graceful.errors import DataError, SpecError
from graceful.learners.features import FeatureLearner
from graceful.programs.outputs.flipped import excerpts
from graceful.programs.preparation.inspection import require_answers
from graceful.tasks import text_notes
from tests.support import text_checkpoint
from tests.support.text_checkpoint import WORDS

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

COLOURS = ("red", "green", "blue")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRACEFUL_HOME", str(tmp_path / "home"))


def rows(count: int = 240, *, seed: int = 0) -> list[dict[str, Any]]:
    """Texts of three words, one of them a colour, which is the label."""
    generator = np.random.default_rng(seed)
    made = []
    for index in range(count):
        colour = COLOURS[index % 3]
        others = generator.choice(WORDS[3:], size=2)
        made.append(
            {
                "id": f"row-{index:04d}",
                "text": f"{others[0]} {colour} {others[1]} {index}",
                "label": colour,
                "owner": f"owner-{index // 4}",
                "weight": float(generator.normal(index % 3)),
                "height": float(generator.normal()),
            }
        )
    return made


def parquet(path: Path, table: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(table), path)
    return path


def json_lines(path: Path, table: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in table), encoding="utf-8")
    return path


def csv(path: Path, table: list[dict[str, Any]]) -> Path:
    lines = [",".join(table[0]), *(",".join(map(str, row.values())) for row in table)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def saved(path: Path, table: list[dict[str, Any]]) -> Path:
    from datasets import Dataset

    Dataset.from_list(table).save_to_disk(path)
    return path


def build(**task: Any) -> Any:
    """A task of numbers by default, which needs no checkpoint."""
    columns = {"features": ["weight", "height"], "id": "id", **task.pop("columns", {})}
    document = {"kind": "table", "columns": {key: value for key, value in columns.items() if value is not None}, **task}
    document["files"] = json.loads(json.dumps(document["files"], default=str))
    return tasks.build(spec.parse({"model": "m", "name": "v1", "task": document}).task)


@pytest.mark.parametrize(
    ("name", "write"),
    [("t.parquet", parquet), ("t.jsonl", json_lines), ("t.csv", csv), ("saved", saved)],
)
def test_every_format_gives_the_same_samples(
    name: str, write: Callable[[Path, list[dict[str, Any]]], Path], tmp_path: Path
) -> None:
    task = build(files=write(tmp_path / name, rows()))
    wanted = build(files=parquet(tmp_path / "wanted.parquet", rows()))
    for split in ("train", "validation", "constraint", "test"):
        assert task.samples(split).digest == wanted.samples(split).digest
    train = task.samples("train")
    assert task.classes == ("blue", "green", "red")
    first = train.read(np.arange(2))
    assert [row["id"] for row in first] == train.ids[:2].tolist()
    assert first.column("label") == [task.classes[label] for label in train.labels[:2]]


def test_splits_come_from_files_from_a_column_or_from_a_hash_of_groups(tmp_path: Path) -> None:
    table = rows()
    hashed = build(files=parquet(tmp_path / "all.parquet", table), columns={"group": "owner"})
    parts = {split: hashed.samples(split) for split in ("train", "validation", "constraint", "test")}
    assert sum(map(len, parts.values())) == len(table)
    owners = [set(part.groups.tolist()) for part in parts.values()]
    assert sum(map(len, owners)) == len(set.union(*owners))  # no owner is in two splits

    parts_of = ("dev", "test", *["train"] * 8)
    named = [{**row, "part": parts_of[index % 10]} for index, row in enumerate(table)]
    column = build(files=parquet(tmp_path / "named.parquet", named), columns={"split": "part"})
    assert len(column.samples("validation")) == len(column.samples("test")) == 24
    assert len(column.samples("train")) + len(column.samples("constraint")) == 192

    train, test = parquet(tmp_path / "train.parquet", table[:200]), parquet(tmp_path / "x.parquet", table[200:])
    filed = build(files={"train": train, "test": test})
    assert filed.samples("test").ids.tolist() == [row["id"] for row in table[200:]]
    with pytest.raises(KeyError):
        filed.samples("query")


def test_a_larger_share_contains_a_smaller_one(tmp_path: Path) -> None:
    path = parquet(tmp_path / "t.parquet", rows())
    small, large, whole = (
        set(build(files=path, share=share).samples("train").ids.tolist()) for share in (0.3, 0.6, 1.0)
    )
    assert small < large < whole
    assert 0.15 < len(small) / len(whole) < 0.45


def test_rows_without_an_id_are_named_by_what_is_embedded(tmp_path: Path) -> None:
    table = rows()
    path = parquet(tmp_path / "t.parquet", table)
    shuffled = parquet(tmp_path / "s.parquet", table[::-1])
    names = set(build(files=path, columns={"id": None}).samples("test").ids.tolist())
    assert names == set(build(files=shuffled, columns={"id": None}).samples("test").ids.tolist())


def test_rows_that_embed_the_same_have_names_of_their_own_and_stay_in_one_split(tmp_path: Path) -> None:
    table = [{**row, "id": f"{copy}-{row['id']}"} for copy in range(3) for row in rows()]
    task = build(files=parquet(tmp_path / "t.parquet", table), columns={"id": None})
    parts = [task.samples(split) for split in ("train", "validation", "constraint", "test")]
    names = [str(name) for part in parts for name in part.ids]
    assert len(set(names)) == len(names) == 720
    for part in parts:
        assert all(count == 3 for count in np.unique(part.groups, return_counts=True)[1])


def test_what_only_a_predecessor_reads_belongs_to_the_digest_of_the_data(tmp_path: Path) -> None:
    """Outputs of a predecessor that reads texts are cached under the data of a version that reads numbers."""
    task = build(files=parquet(tmp_path / "t.parquet", rows()))
    other = build(files=parquet(tmp_path / "o.parquet", [{**row, "text": row["text"].upper()} for row in rows()]))
    assert task.samples("train").ids.tolist() == other.samples("train").ids.tolist()
    assert task.samples("train").digest != other.samples("train").digest


def change(index: int, **values: Any) -> list[dict[str, Any]]:
    table = rows()
    table[index].update(values)
    return table


@pytest.mark.parametrize(
    ("table", "columns", "message"),
    [
        (change(5, label=None), {}, "t.parquet, row 5: no value in one of weight, height, label; correct the rows"),
        (change(7, weight=float("nan")), {}, "t.parquet, row 7: no value in one of"),
        (rows(), {"label": "colour"}, "t.parquet has no column 'colour'; it has id, text, label"),
        (rows(), {"label": "weight"}, "column 'weight' of .*t.parquet holds float64; must be text or whole numbers"),
        (
            change(9, id="row-0003"),
            {},
            "t.parquet, row 9: id 'row-0003' is that of .*t.parquet, row 3, too; give each row",
        ),
        (rows(), {"features": ["text"]}, "t.parquet, row 0: text must be a number, got '"),
        ([{**row, "weight": "1.5"} for row in rows()], {}, "column 'weight' of .*t.parquet holds numbers as text"),
        ([{**row, "weight": [1.0]} for row in rows()], {}, "column 'weight' of .*t.parquet holds .*; must be numbers"),
        (rows(), {"split": "owner"}, "row 0: 'owner-0' is not a split; write train, validation or test"),
    ],
)
def test_what_a_table_lacks_is_said_with_file_and_row(
    table: list[dict[str, Any]], columns: dict[str, Any], message: str, tmp_path: Path
) -> None:
    task = build(files=parquet(tmp_path / "t.parquet", table), columns=columns)
    with pytest.raises(DataError, match=message):
        [task.samples(split) for split in ("train", "validation", "constraint", "test")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.parquet", b"PAR1 nothing", "t.parquet is damaged"),
        ("t.parquet", b"", "t.parquet is empty"),
        ("t.jsonl", b'{"id": 1\n', "t.jsonl is damaged"),
        ("t.txt", b"red", "an ending of no known format; write one of .parquet"),
        ("t.csv", b"a,b\n1,2,3\n", "t.csv is damaged"),
    ],
)
def test_damaged_files_are_named(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        build(files=tmp_path / name).samples("train")


def test_files_that_are_not_there_or_differ_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\*.parquet names no file"):
        build(files=tmp_path / "none*.parquet").samples("train")
    parquet(tmp_path / "a.parquet", rows())
    parquet(tmp_path / "b.parquet", [{"id": "x", "label": "red"}])
    with pytest.raises(DataError, match=r"b.parquet and .*a.parquet differ in column 'height'"):
        build(files=tmp_path / "*.parquet").samples("train")


def test_bad_rows_can_be_left_out_and_are_counted(tmp_path: Path) -> None:
    task = build(files=parquet(tmp_path / "t.parquet", change(5, label=None)), on_bad_row="skip")
    everyone = [name for split in ("train", "validation", "constraint", "test") for name in task.samples(split).ids]
    assert len(everyone) == 239
    assert "row-0005" not in everyone
    assert task.notes == ("1 of 240 rows were left out, because they lack a value in a column that is used",)


def test_na_is_a_class_like_any_other_and_no_number(tmp_path: Path) -> None:
    table = [{**row, "label": {"red": "NA", "green": "01", "blue": "null"}[row["label"]]} for row in rows()]
    assert build(files=csv(tmp_path / "t.csv", table)).classes == ("01", "NA", "null")
    table[4]["height"] = "NA"
    with pytest.raises(DataError, match=r"bad.csv, row 4: height must be a number, got 'NA'"):
        build(files=csv(tmp_path / "bad.csv", table)).samples("train")


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"columns": {}}, "must name one of text, features and image"),
        ({"columns": {"text": "text"}}, "columns.text needs a network for text"),
        ({"columns": {"pair": "text", "features": ["a"]}}, "pair needs text"),
        ({"columns": {"features": ["a"]}, "files": {"test": "t.parquet"}}, "files has no train split"),
        ({"columns": {"features": ["a"]}, "files": "gs://bucket/t.parquet"}, "must be a local path or s3://"),
        (
            {"columns": {"text": "t"}, "network": {"kind": "transformers", "checkpoint": "a/b", "revision": "main"}},
            "must be a commit of 40 hexadecimal digits",
        ),
    ],
)
def test_a_section_that_contradicts_itself_is_refused(task: dict[str, Any], message: str) -> None:
    document = {"model": "m", "name": "v1", "task": {"kind": "table", "files": "t.parquet", **task}}
    with pytest.raises(SpecError, match=message):
        spec.parse(document)


def test_features_are_standardised_with_the_training_rows_and_keep_their_numbers(tmp_path: Path) -> None:
    task = build(files=parquet(tmp_path / "t.parquet", rows()))
    train = task.samples("train")
    batch = task.learner.collate(train.read(np.arange(len(train))), None)
    assert batch.mean(0).abs().max() < 1e-6
    assert (batch.std(0, correction=0) - 1).abs().max() < 1e-6
    assert isinstance(task.learner, FeatureLearner)
    numbers = task.learner.assets()
    restored = build(files=tmp_path / "gone.parquet").restored(numbers)  # the data may be gone
    assert restored.learner.collate([[1.0, 2.0]], None).equal(task.learner.collate([[1.0, 2.0]], None))


def test_flipped_rows_are_shown_as_they_are_read(tmp_path: Path) -> None:
    path = parquet(tmp_path / "t.parquet", rows())
    numbers = build(files=path).samples("test")
    shown = excerpts([*numbers.ids[:2], "row-none"], numbers)
    row = numbers.read(np.arange(1))[0]
    assert shown[row["id"]] == f"weight = {row['weight']} | height = {row['height']}"
    assert len(shown) == 2
    network = {"kind": "transformers", "checkpoint": "none"}
    texts = build(files=path, columns={"features": None, "text": "text", "pair": "owner"}, network=network).samples(
        "test"
    )
    row = texts.read(np.arange(1))[0]
    assert excerpts([row["id"]], texts) == {row["id"]: f"{row['text']} | {row['owner']}"}


def test_texts_that_are_cut_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = parquet(
        tmp_path / "t.parquet", [{**row, "text": row["text"] * (1 + (i % 3 == 0))} for i, row in enumerate(rows())]
    )
    network = {
        "kind": "transformers",
        "checkpoint": str(text_checkpoint.save(tmp_path / "checkpoint")),
        "max_length": 6,
    }
    task = build(files=path, columns={"features": None, "text": "text"}, network=network)
    train = task.samples("train")
    cut = sum(len(text.split()) > 4 for text in train.read(np.arange(len(train))).column("text"))
    assert 0 < cut < len(train)
    (note,) = task.notes
    assert note == (
        f"{cut} of {len(train)} training rows ({cut / len(train):.1%}) have texts longer than"
        " task.network.max_length = 6 tokens, which are cut there"
    )
    monkeypatch.setattr(text_notes, "LOOKED_AT", 50)
    assert " of 50 training rows that were looked at (" in task.notes[0]


def test_a_column_that_only_an_ancestor_reads_is_named_with_the_ancestor(tmp_path: Path) -> None:
    old = build(files=parquet(tmp_path / "old.parquet", rows()))
    version = Predecessor(
        name="v1",
        model_id="m-1",
        digest="d",
        classes=old.classes,
        embedding_size=64,
        network=freeze(old.network(old.classes)),
        learner=old.learner.restored(old.learner.assets()),
        transform_digest="t",
    )
    table = [{key: value for key, value in row.items() if key != "height"} for row in rows()]
    new = build(files=parquet(tmp_path / "new.parquet", table), columns={"features": ["weight"]})
    with pytest.raises(DataError, match=r"^v1: task.columns: .*new.parquet has no column 'height'; it has id, text"):
        version(new.samples("test").read(np.arange(2)))
    with pytest.raises(DataError, match=r"^v1 cannot answer sample .* measured: task.columns: .*'height'; it has"):
        require_answers([version], new.samples("test"), split="test")
