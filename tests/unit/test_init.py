"""`graceful init` writes a valid spec, from guesses or answers."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from graceful import cli, spec
from graceful.cli import data_guess
from graceful.tasks import image_listing
from graceful.tasks.table import source
from tests.support.shards import samples
from tests.support.shards import write as write_shards
from tests.unit.test_tasks_table import csv, json_lines, parquet, rows

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the test in an empty folder."""
    monkeypatch.chdir(tmp_path)


def table() -> list[dict[str, Any]]:
    """Rows with texts that are long enough to be recognised as such."""
    return [{**row, "text": f"{row['text']} on the table"} for row in rows()]


@pytest.mark.parametrize(("name", "write"), [("t.csv", csv), ("t.jsonl", json_lines), ("t.parquet", parquet)])
def test_texts_label_and_id_are_recognised(
    name: str, write: Callable[..., Path], command_line: Run, tmp_path: Path
) -> None:
    write(tmp_path / name, table())
    done = command_line("init", name, "--checkpoint", "minilm", "-o", "json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["next"] == ["graceful refresh v1.yaml --dry-run", "graceful refresh v1.yaml"]
    written = spec.load(tmp_path / "v1.yaml")
    assert (written.model, written.task.kind) == ("t", "table")
    columns = written.task.columns
    assert (columns.text, columns.label, columns.id, columns.features) == ("text", "label", "id", ())
    assert written.task.network.checkpoint == str(tmp_path / "minilm")
    assert command_line("refresh", "v1.yaml", "--dry-run").returncode == 0


@pytest.mark.usefixtures("in_tmp")
@pytest.mark.parametrize(
    ("package", "arguments", "extra"),
    [("datasets", [], "table"), ("transformers", ["--text", "text", "--checkpoint", "minilm"], "text")],
)
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    package: str, arguments: list[str], extra: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    csv(Path("t.csv"), rows())
    assert cli.main(["init", "t.csv", *arguments]) == 0
    shown = capsys.readouterr().out
    assert f"needs the package {package}, which is not installed" in shown
    assert f"next:  pip install 'graceful-ai[{extra}]'\n       graceful refresh v1.yaml --dry-run\n" in shown


def test_short_texts_that_all_differ_name_rows(command_line: Run, tmp_path: Path) -> None:
    kept = [{"sku": f"A-{row['id']}", **{key: row[key] for key in ("label", "weight")}} for row in rows()]
    csv(tmp_path / "shop.csv", kept)
    assert command_line("init", "shop.csv").returncode == 0
    assert spec.load(tmp_path / "v1.yaml").task.columns.id == "sku"
    csv(tmp_path / "shop.csv", [{**row, "sku": "twice"} for row in kept])
    assert command_line("init", "shop.csv", "--force").returncode == 0
    assert spec.load(tmp_path / "v1.yaml").task.columns.id is None


def test_numbers_are_taken_where_there_are_no_texts(command_line: Run, tmp_path: Path) -> None:
    kept = [{key: row[key] for key in ("id", "label", "weight", "height")} for row in rows()]
    (tmp_path / "parts").mkdir()
    csv(tmp_path / "parts" / "a.csv", kept)
    done = command_line("init", "parts", "--out", "jobs/first.yaml", "--model", "boxes")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "jobs/first.yaml: rows of ../parts/*.csv, label from weight, height",
        "next:  graceful refresh jobs/first.yaml --dry-run",
        "       graceful refresh jobs/first.yaml",
    ]
    written = spec.load(tmp_path / "jobs" / "first.yaml")
    assert written.task.columns.features == ("weight", "height")
    assert written.train.batch_size == 8  # about a thirtieth of the 240 rows, half of which are trained on


def test_short_texts_become_categories_and_gaps_are_said(command_line: Run, tmp_path: Path) -> None:
    table = [
        {"number": "" if index % 9 == 4 else index / 7, "colour": ("red", "blue")[index % 2], "label": index % 3}
        for index in range(90)
    ]
    csv(tmp_path / "mixed.csv", table)
    assert command_line("init", "mixed.csv", "--label", "label").returncode == 0
    columns = spec.load(tmp_path / "v1.yaml").task.columns
    assert (columns.features, columns.categories, columns.missing) == (("number",), ("colour",), "indicator")


def test_the_endings_that_are_recognised_are_those_that_tasks_read() -> None:
    """The client looks at names without the modules that read files, which load NumPy."""
    assert image_listing.SUFFIXES == data_guess.IMAGES
    assert source.FORMATS.keys() - data_guess.TABLES == {".arrow"}  # read by tasks, with columns that init cannot see


@pytest.mark.parametrize("name", ["id", "patient"])
def test_what_names_rows_is_never_embedded(name: str, command_line: Run, tmp_path: Path) -> None:
    """A number that counts rows is their name, and a column `id` whose values repeat is neither name nor number."""
    kept = [{name: index, "label": row["label"], "height": row["height"]} for index, row in enumerate(rows())]
    if name == "id":
        kept[7][name] = 3
    csv(tmp_path / "t.csv", kept)
    assert command_line("init", "t.csv").returncode == 0
    columns = spec.load(tmp_path / "v1.yaml").task.columns
    assert columns.features == ("height",)
    assert columns.id == (None if name == "id" else "patient")


def test_class_folders_of_images_are_recognised(command_line: Run, tmp_path: Path) -> None:
    for label in ("ant", "bee"):
        (tmp_path / "insects" / label).mkdir(parents=True)
        for number in range(60):
            Image.new("RGB", (8, 8)).save(tmp_path / "insects" / label / f"{number}.png")
    assert command_line("init", "insects").returncode == 0
    written = spec.load(tmp_path / "v1.yaml")
    assert (written.task.kind, written.task.root) == ("image_folder", str(tmp_path / "insects"))
    assert written.train.batch_size == 4  # the default is larger than the sixty images that are trained on
    again = command_line("init", "insects")
    assert again.returncode == 2
    assert "v1.yaml exists; add --force to replace it, or --out for another file" in again.stderr


@pytest.mark.parametrize("name", ["photos", "photos/*.tar", "photos/{000..002}.tar", "photos/001.tar"])
def test_shards_are_recognised(name: str, command_line: Run, tmp_path: Path) -> None:
    write_shards(tmp_path / "photos", samples(30))
    assert command_line("init", name).returncode == 0
    task = spec.load(tmp_path / "v1.yaml").task
    assert (task.kind, task.members.image, task.members.label) == ("shards", ("png",), "cls")
    assert spec.load(tmp_path / "v1.yaml").model == ("001" if name.endswith("001.tar") else "photos")
    assert task.files == (str(tmp_path / (name if name.endswith(".tar") else "photos/*.tar")),)


def test_texts_in_shards_with_a_class_in_json_are_recognised(command_line: Run, tmp_path: Path) -> None:
    table = [(key, {"txt": members["txt"], "json": b'{"topic": "a"}'}) for key, members in samples(30)]
    write_shards(tmp_path / "texts", table)
    assert command_line("init", "texts", "--checkpoint", "minilm").returncode == 0
    task = spec.load(tmp_path / "v1.yaml").task
    assert (task.members.text, task.members.label, task.network.kind) == ("txt", "json:topic", "transformers")


@pytest.mark.parametrize(
    ("files", "arguments", "message"),
    [
        ({}, ["none"], "none: no such folder or file"),
        ({"d/x.txt": "x"}, ["d"], "d: neither class folders of images nor rows"),
        ({"t.tar": "x"}, ["t.tar"], "t.tar: cannot be read"),
        ({"d/t.txt": "x"}, ["d/*.tar"], "d/*.tar: names no shard; check the pattern"),
        ({"t.txt": "x"}, ["t.txt"], "t.txt: an ending of no known format"),
        ({"t.csv": "a,b\n"}, ["t.csv"], "t.csv: holds no rows"),
        ({"t.jsonl": "[1]\n"}, ["t.jsonl"], "t.jsonl: cannot be read (a line is not a JSON object"),
        ({"t.jsonl": "{\n"}, ["t.jsonl"], "t.jsonl: cannot be read"),
        ({"t.parquet": "PAR1"}, ["t.parquet"], "t.parquet: cannot be read"),
        ({"d/a.csv": "a\n1\n", "d/b.jsonl": "{}"}, ["d"], "d: files of several formats (.csv, .jsonl)"),
        ({"t.csv": "a,b\n1,2\n"}, ["t.csv", "--label", "c"], "--label c: no such column; the data has a, b"),
        ({"t.csv": "a;b\n1;2\n"}, ["t.csv"], "t.csv: columns are separated by ';'; write commas"),
        ({"t.csv": "a,b\n1,2\n"}, ["t.csv"], "Column of the class (a, b): cannot be guessed; give --label"),
    ],
)
def test_data_that_cannot_be_guessed_ends_in_one_line(
    files: dict[str, str], arguments: list[str], message: str, command_line: Run, tmp_path: Path
) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    done = command_line("init", *arguments)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "v1.yaml").exists()


def test_on_a_terminal_three_questions_are_asked(tmp_path: Path) -> None:
    csv(tmp_path / "t.csv", table())
    master, slave = pty.openpty()
    environment = {**os.environ, "GRACEFUL_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-m", "graceful.cli", "init", "t.csv"]
    os.write(master, b"nosuch\nowner\nminilm\n\n")  # a wrong answer is asked again; the last takes the guess
    done = subprocess.run(
        command, stdin=slave, capture_output=True, text=True, check=False, timeout=600, cwd=tmp_path, env=environment
    )
    os.close(master)
    os.close(slave)
    assert done.returncode == 0, done.stderr
    questions = ("Column of the class", "Folder of a transformers checkpoint", "Name of the model family [t]")
    assert all(question in done.stderr for question in questions)
    written = spec.load(tmp_path / "v1.yaml")
    assert (written.model, written.task.columns.label) == ("t", "owner")
    assert written.task.network.checkpoint == str(tmp_path / "minilm")


def pictures(count: int, *, kind: str) -> list[dict[str, Any]]:
    """Rows with images: as bytes, as datasets stores them, or by name."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    data = buffer.getvalue()
    photo = {"bytes": data, "datasets": {"bytes": data, "path": None}, "paths": "photos/a.JPG"}[kind]
    return [{"name": f"n{index}", "photo": photo, "label": ("ant", "bee")[index % 2]} for index in range(count)]


@pytest.mark.parametrize(("kind", "name"), [("bytes", "t.parquet"), ("datasets", "t.parquet"), ("paths", "t.csv")])
def test_a_column_of_images_is_recognised(kind: str, name: str, command_line: Run, tmp_path: Path) -> None:
    (parquet if name.endswith("parquet") else csv)(tmp_path / name, pictures(40, kind=kind))
    assert command_line("init", name).returncode == 0
    task = spec.load(tmp_path / "v1.yaml").task
    assert (task.columns.image, task.columns.label, task.network.kind, task.network.size) == (
        "photo",
        "label",
        "small",
        "s2",
    )


@pytest.mark.parametrize("weights", ["pretrained", "random"])
def test_a_checkpoint_for_images_is_taken_with_its_weights_if_it_has_any(
    weights: str, command_line: Run, tmp_path: Path
) -> None:
    for name in ("ant", "bee"):
        (tmp_path / "insects" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "insects" / name / "1.png")
    (tmp_path / "vit").mkdir()
    if weights == "pretrained":
        (tmp_path / "vit" / "model.safetensors").touch()
    assert command_line("init", "insects", "--checkpoint", "vit").returncode == 0
    task = spec.load(tmp_path / "v1.yaml").task
    assert (task.network.kind, task.network.checkpoint, task.network.weights) == (
        "transformers",
        str(tmp_path / "vit"),
        weights,
    )
    assert task.size is None
