"""Images of a table: datasets' own, bytes and paths become what an image folder makes of the same files."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from graceful import spec, tasks
from graceful.errors import DataError, SpecError
from graceful.learners import run
from graceful.programs.outputs.flipped import thumbnails
from graceful.spec import ImageFolderTask, TableTask
from tests.support import image_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

COLOURS = {"ant": (255, 0, 0), "bee": (0, 0, 255)}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRACEFUL_HOME", str(tmp_path / "home"))


def files(folder: Path, count: int = 80) -> list[dict[str, Any]]:
    """Write images of every mode that needs care, and return rows with name, label and path."""
    rows = []
    for index in range(count):
        label = ("ant", "bee")[index % 2]
        picture = Image.new("RGB", (30, 20), COLOURS[label])
        picture.paste((0, 255, index), (0, 0, 15, 5))
        path = folder / label / f"{index:02d}.{('jpg', 'png', 'tif')[index % 3]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if index == 3:  # lies on its side
            turned = Image.Exif()
            turned[0x0112] = 6
            picture.save(path.with_suffix(".jpg"), exif=turned)
            path = path.with_suffix(".jpg")
        elif index == 4:
            picture.convert("CMYK").save(path.with_suffix(".jpg"))
            path = path.with_suffix(".jpg")
        elif index == 5:
            Image.fromarray(np.full((20, 30), 40_000 + index, dtype=np.uint16)).save(path)
        else:
            picture.save(path)
        rows.append({"name": f"{label}/{path.name}", "label": label, "path": str(path.relative_to(folder))})
    return rows


def stored(folder: Path, kind: str) -> tuple[Path, list[dict[str, Any]]]:
    """Write the table beside its images."""
    rows = files(folder)
    contents = [(folder / row["path"]).read_bytes() for row in rows]
    names = {"name": [row["name"] for row in rows], "label": [row["label"] for row in rows]}
    path = folder / "rows.parquet"
    if kind == "datasets":
        import datasets

        features = datasets.Features(
            {"name": datasets.Value("string"), "label": datasets.Value("string"), "photo": datasets.Image()}
        )
        photos = [{"bytes": content, "path": None} for content in contents]
        datasets.Dataset.from_dict({**names, "photo": photos}, features=features).to_parquet(path)
    elif kind == "bytes":
        pq.write_table(pa.table({**names, "photo": pa.array(contents, pa.binary())}), path)
    else:
        pq.write_table(pa.table({**names, "photo": [row["path"] for row in rows]}), path)
    return path, rows


def section_of(path: Path, **keys: Any) -> TableTask:
    columns = {"image": "photo", "label": "label", "id": "name"}
    return TableTask.model_validate({"files": str(path), "columns": columns, "size": 12, **keys})


@pytest.mark.parametrize("kind", ["datasets", "bytes", "paths"])
def test_images_are_decoded_as_those_of_a_folder(kind: str, tmp_path: Path) -> None:
    path, rows = stored(tmp_path / "images", kind)
    task = tasks.build(section_of(path, flip=True, network={"size": "xs"}))
    folder = tasks.build(ImageFolderTask(root=str(tmp_path / "images"), size=12))
    assert task.augments
    pixels: dict[str, Any] = {}
    for split in ("train", "validation", "constraint", "test"):
        samples = folder.samples(split)
        inputs = folder.transform(samples.read(np.arange(len(samples))), None)
        pixels |= dict(zip(samples.ids.tolist(), inputs, strict=True))
    samples = task.samples("train")
    inputs = task.learner.collate(samples.read(np.arange(len(samples))), None)
    assert len(samples) > 20
    for name, image in zip(samples.ids.tolist(), inputs, strict=True):
        assert np.allclose(image, pixels[name], atol=1e-5), name
    views = tasks.view_numbers(samples.ids[:8], seed=0, epoch=0)
    assert not task.learner.collate(samples.read(np.arange(8)), views).equal(inputs[:8])
    network = task.network(task.classes).eval()
    assert run(task.learner, network, inputs).logits.shape == (len(samples), 2)
    shown = thumbnails(samples.ids[:3].tolist(), samples)
    assert {Image.open(io.BytesIO(png)).size for png in shown.values()} <= {(56, 37), (37, 56)}
    assert {row["name"] for row in rows} >= set(samples.ids.tolist())


def test_a_checkpoint_says_how_rows_are_scaled_and_a_predecessor_keeps_its_own(tmp_path: Path) -> None:
    path, _ = stored(tmp_path / "images", "bytes")
    network = {"kind": "transformers", "checkpoint": str(image_checkpoint.save(tmp_path / "resnet"))}
    task = tasks.build(section_of(path, network=network).model_copy(update={"size": None}))
    rows = task.samples("train").read(np.arange(4))
    assert task.learner.collate(rows, None).shape == (4, 3, 32, 32)
    small = tasks.build(section_of(path))
    assert small.learner.collate(rows, None).shape == (4, 3, 12, 12)


def everything(task: Any) -> None:
    """Decode every image of a task."""
    for split in ("train", "validation", "constraint", "test"):
        samples = task.samples(split)
        task.learner.collate(samples.read(np.arange(len(samples))), None)


def test_an_image_that_cannot_be_decoded_is_named_or_left_out(tmp_path: Path) -> None:
    path, rows = stored(tmp_path / "images", "paths")
    (tmp_path / "images" / rows[7]["path"]).write_bytes(b"")
    (tmp_path / "images" / rows[8]["path"]).write_bytes(b"\xff\xd8\xff\xe0 cut")
    task = tasks.build(section_of(path))
    with pytest.raises(DataError, match=r"rows\.parquet, row [78], .*: not a readable image .*; repair or remove it"):
        everything(task)
    patient = tasks.build(section_of(path, on_bad_row="skip"))
    assert patient.notes[0].startswith("2 of 80 rows were left out")
    assert rows[7]["name"] not in {name for s in ("train", "test") for name in patient.samples(s).ids.tolist()}


def test_a_split_has_another_digest_when_an_image_beside_the_table_changes(tmp_path: Path) -> None:
    path, _ = stored(tmp_path / "images", "paths")
    before = tasks.build(section_of(path)).samples("train")
    Image.new("RGB", (9, 9)).save(tmp_path / "images" / before.ids[0])
    assert tasks.build(section_of(path)).samples("train").digest != before.digest


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"columns": {"image": "photo", "text": "text"}}, "must name one of text, features and image"),
        ({"columns": {"image": "photo"}, "network": {"kind": "perceptron"}}, "write network: {kind: small}"),
        ({"columns": {"image": "photo"}, "shift": 64}, "task.shift in spec: must be less than size = 64 pixels"),
        ({"columns": {"features": ["a"]}, "flip": True}, "are for images; leave them out"),
    ],
)
def test_a_section_that_contradicts_itself_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        spec.parse({"model": "m", "name": "v1", "task": {"kind": "table", "files": "a.csv", **keys}})


def test_keys_of_images_change_no_other_table_and_survive_a_round_trip() -> None:
    features = TableTask.model_validate({"files": "a.csv", "columns": {"features": ["a"]}}).model_dump(mode="json")
    assert not {"size", "channels", "decode", "shift", "flip"} & set(features)
    assert "image" not in features["columns"]
    for network in ({}, {"network": {"size": "m"}}, {"network": {"kind": "transformers", "checkpoint": "c"}}):
        section = TableTask.model_validate({"files": "a.csv", "columns": {"image": "photo"}, **network})
        assert TableTask.model_validate(section.model_dump(mode="json")) == section
    assert section.size is None


def test_a_column_of_numbers_is_no_column_of_images(tmp_path: Path) -> None:
    pq.write_table(pa.table({"photo": [1, 2], "label": ["a", "b"], "name": ["1", "2"]}), tmp_path / "rows.parquet")
    with pytest.raises(DataError, match=r"columns\.image: column 'photo' of .* holds int64; must be images"):
        tasks.build(section_of(tmp_path / "rows.parquet")).samples("train")
