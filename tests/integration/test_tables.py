"""Tables on the whole path: texts with tokenizers of their own, numbers, and rows in a bucket."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.test_refresh import graceful
from tests.support import image_checkpoint, text_checkpoint
from tests.unit.test_tasks_table import parquet, rows
from tests.unit.test_tasks_table_images import stored

pytestmark = pytest.mark.integration


def refreshed(home: Path, name: str, *, task: dict[str, Any], **sections: Any) -> dict[str, Any]:
    """Refresh and return the report."""
    document = {
        "model": "rows",
        "name": name,
        "task": {"kind": "table", "files": "rows.parquet", **task},
        "train": {
            "epochs": 6,
            "batch_size": 32,
            "num_workers": 0,
            "engine": {"kind": "torch"},
            "optimizer": {"kind": "adamw", "lr": 0.003},
        },
        "gate": {"constraints": [{"metric": "error_rate", "bound": 0.6, "against": "self"}]},
        **sections,
    }
    path = home / f"{name}.yaml"
    path.write_text(yaml.safe_dump(document))
    done = graceful("refresh", path, "-o", "json", home=home)
    assert done.returncode == 0, done.stderr
    return dict(json.loads((home / "runs" / f"rows-{name}" / "report.json").read_text()))


SERVE = """
import json, sys
import mlflow
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(sys.argv[2])
sys.stdout.write(json.dumps(model.predict(json.loads(sys.argv[3]))["label"].tolist()))
"""


def served(home: Path, number: int, items: list[Any], *, script: str = SERVE) -> list[str]:
    arguments = [f"sqlite:///{home / 'mlflow.db'}", f"models:/rows/{number}", json.dumps(items)]
    env = {**os.environ, "GRACEFUL_HOME": str(home / "serving")}
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False, env=env
    )
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


def test_texts_of_two_tokenizers_in_one_chain(tmp_path: Path) -> None:
    """The checkpoint of v1 is deleted before v2 is trained: its version has all that is needed to run it."""
    parquet(tmp_path / "rows.parquet", rows(600))
    text_checkpoint.save(tmp_path / "small")
    text_checkpoint.save(tmp_path / "large", words=text_checkpoint.WORDS[::-1], hidden=32, layers=3)
    columns = {"text": "text", "label": "label", "id": "id", "group": "owner"}
    network = {"kind": "transformers", "checkpoint": "small", "max_length": 16}
    first = refreshed(tmp_path, "v1", task={"columns": columns, "share": 0.5, "network": network})
    shutil.rmtree(tmp_path / "small")
    second = refreshed(
        tmp_path,
        "v2",
        task={"columns": columns, "network": {**network, "checkpoint": "large", "layers": 2}},
        compatibility={"losses": [{"kind": "focal_distillation"}, {"kind": "influence"}]},
    )
    measured = {name: one["value"] for name, one in second["comparisons"][0]["measurements"].items()}
    assert measured["old_error_rate"] == first["measurements"]["error_rate"]["value"]
    assert measured["new_error_rate"] < 0.1
    shutil.rmtree(tmp_path / "large")
    texts = ["small red ball", "an old blue cup", "new green box"]
    assert served(tmp_path, 2, texts) == ["red", "blue", "green"]


def test_adapters_in_one_chain_are_served_from_the_copy_of_their_base(tmp_path: Path) -> None:
    """The base lies in the registry once; versions hold adapters and head alone. Its folder is deleted before v2 is
    trained on from v1, and the store before v2 is served."""
    parquet(tmp_path / "rows.parquet", rows(600))
    base = text_checkpoint.save(tmp_path / "base", hidden=64)
    whole = (base / "model.safetensors").stat().st_size
    task = {
        "columns": {"text": "text", "label": "label", "id": "id", "group": "owner"},
        "network": {
            "kind": "transformers",
            "checkpoint": "base",
            "max_length": 16,
            "peft": {"kind": "lora", "r": 4},
            "projection": 8,
        },
    }
    optimizer = {"kind": "adamw", "lr": 0.01}
    train = {"epochs": 3, "batch_size": 32, "num_workers": 0, "optimizer": optimizer}
    refreshed(tmp_path, "v1", task={**task, "share": 0.5}, train={**train, "engine": {"kind": "torch"}})
    second = refreshed(
        tmp_path,
        "v2",
        task=task,
        train={**train, "start": "latest", "engine": {"kind": "deepspeed", "zero_stage": 2}},
        compatibility={"losses": [{"kind": "focal_distillation"}, {"kind": "influence"}]},
    )
    measured = {name: one["value"] for name, one in second["comparisons"][0]["measurements"].items()}
    assert measured["new_error_rate"] < 0.2
    for name in ("v1", "v2"):
        assert (tmp_path / "runs" / f"rows-{name}" / "model" / "model.safetensors").stat().st_size < whole / 4
    shutil.rmtree(base)
    requirements = [path.read_text() for path in (tmp_path / "artifacts").rglob("requirements.txt")]
    assert [text.partition("==")[0] for text in requirements] == ["graceful-ai[text]"] * 2
    copies = [path for path in tmp_path.rglob("model.safetensors") if path.stat().st_size == whole]
    assert len(copies) == 1
    texts = ["small red ball", "an old blue cup", "new green box"]
    assert served(tmp_path, 2, texts) == ["red", "blue", "green"]


def test_numbers_and_categories_are_served_as_they_were_learnt(tmp_path: Path) -> None:
    shades = ("dark", "light")
    parquet(tmp_path / "rows.parquet", [{**row, "shade": shades[place % 2]} for place, row in enumerate(rows(600))])
    columns = {"features": ["weight", "height"], "categories": ["shade"], "label": "label", "id": "id"}
    report = refreshed(tmp_path, "v1", task={"columns": columns})
    assert report["measurements"]["error_rate"]["value"] < 0.5
    (tmp_path / "rows.parquet").unlink()
    items = [{"weight": -2.0, "height": 0.0, "shade": "dark"}, {"weight": 4.0, "height": 0.0, "shade": "never seen"}]
    assert served(tmp_path, 1, items) == ["red", "blue"]


SERVE_IMAGES = """
import json, sys
import mlflow
from PIL import Image
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(sys.argv[2])
pictures = [Image.new("RGB", (30, 20), colour) for colour in json.loads(sys.argv[3])]
sys.stdout.write(json.dumps(model.predict(pictures)["label"].tolist()))
"""


def test_images_of_two_checkpoints_in_one_chain(tmp_path: Path) -> None:
    """Each version is fed as its own checkpoint says, also after the first one's folder is gone."""
    path, _ = stored(tmp_path / "images", "datasets")
    image_checkpoint.save(tmp_path / "resnet")
    other = {**image_checkpoint.PROCESSOR, "size": 32, "do_center_crop": False, "image_mean": [0.1, 0.2, 0.3]}
    image_checkpoint.save(tmp_path / "vit", "vit", processor=other)
    columns = {"image": "photo", "label": "label", "id": "name"}
    network = {"kind": "transformers", "checkpoint": "resnet"}
    files = str(path.relative_to(tmp_path))
    first = refreshed(tmp_path, "v1", task={"files": files, "columns": columns, "network": network})
    shutil.rmtree(tmp_path / "resnet")
    second = refreshed(
        tmp_path,
        "v2",
        task={"files": files, "columns": columns, "network": {**network, "checkpoint": "vit", "pooling": "cls"}},
        compatibility={"losses": [{"kind": "focal_distillation"}]},
    )
    measured = {name: one["value"] for name, one in second["comparisons"][0]["measurements"].items()}
    assert measured["old_error_rate"] == first["measurements"]["error_rate"]["value"]
    shutil.rmtree(tmp_path / "vit")
    (tmp_path / "images" / "rows.parquet").unlink()
    assert served(tmp_path, 1, ["red", "blue"], script=SERVE_IMAGES) == ["ant", "bee"]
