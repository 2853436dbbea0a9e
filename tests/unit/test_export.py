"""Exported files give what the network gives, for every kind of learner, and say which version they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from graceful import spec, tasks
from graceful.errors import SpecError
from graceful.learners import learner_of, run
from graceful.models.base import Network
from graceful.programs.exporting import files
from graceful.programs.exporting.program import Wanted, export
from graceful.tasks.base import Task
from tests.support import text_checkpoint
from tests.unit.test_tasks_table import parquet

PROVENANCE = {"version_digest": "d" * 64, "classes": ["a", "b"]}
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
"""Of torch's exporter and of onnxscript, about themselves."""


def task_of(kind: str, folder: Path) -> Task:
    stages = [{"width": 4}, {"width": 8, "kernel": 5, "depthwise": True, "depth": 2}]
    if kind == "images":
        section: dict[str, Any] = {"kind": "digits", "network": {"kind": "stages", "stages": stages, "head": "cosine"}}
    else:
        columns: dict[str, Any] = {"features": ["height", "weight"], "label": "label"}
        network: dict[str, Any] = {"kind": "perceptron"}
        if kind == "texts":
            columns = {"text": "text", "label": "label", "id": "id"}
            checkpoint = str(text_checkpoint.save(folder / "checkpoint"))
            network = {"kind": "transformers", "checkpoint": checkpoint, "max_length": 16}
        words = ("small red ball", "old blue cup", "a new green box and a ball")
        table = [
            {"id": f"row-{index}", "text": words[index % 3], "label": "ab"[index % 2], "height": index, "weight": 1.5}
            for index in range(60)
        ]
        files_ = str(parquet(folder / "rows.parquet", table))
        section = {"kind": "table", "files": files_, "columns": columns, "network": network}
    return tasks.build(spec.parse({"model": "m", "name": "v1", "task": section}).task)


@pytest.mark.parametrize(
    ("kind", "form", "int8"),
    [
        ("images", "onnx", False),
        ("images", "onnx", True),
        ("images", "pt2", False),
        ("texts", "onnx", False),
        ("texts", "onnx", True),
        ("columns", "onnx", False),
    ],
)
def test_a_file_gives_what_the_network_gives(kind: str, form: Any, int8: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    task = task_of(kind, tmp_path)
    learner, network = learner_of(task), task.network(task.classes).eval()
    train = task.samples("train")
    batches = [learner.collate(train.read(np.arange(start, start + 8)), None) for start in (0, 8)]
    module = files.Inference(network, learner, tuple(files.named(batches[0])))
    path = plain = tmp_path / f"m.{form}"
    files.write(plain, module, batches[0], form=form, provenance=PROVENANCE)
    if int8:
        path = tmp_path / "m.int8.onnx"
        files.quantise(plain, path, batches)
        assert path.stat().st_size < plain.stat().st_size
    runner, said = files.opened(path, form)
    assert said["version_digest"] == PROVENANCE["version_digest"]
    other = learner.collate(train.read(np.arange(3)), None)  # as many samples as the file has not seen
    with torch.no_grad():
        expected = run(learner, network, other)
    found = run(files.FileLearner(learner, runner), network, other)
    allowed = 0.1 if int8 else 1e-4
    for name in ("embedding", "logits"):
        before, after = getattr(expected, name), getattr(found, name)
        assert after.shape == before.shape
        assert float((after - before).abs().max()) <= allowed * float(before.abs().max())


class Special(nn.Module, Network):
    """A network with an operation that ONNX has not."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def embed(self, x: Any) -> torch.Tensor:
        return torch.special.bessel_j0(self.layer(x))

    def classify(self, embedding: torch.Tensor) -> torch.Tensor:
        return embedding


def test_what_the_exporter_does_not_know_is_one_line(tmp_path: Path) -> None:
    module = files.Inference(Special().eval(), learner_of(task_of("images", tmp_path)), (files.ONLY,))
    with pytest.raises(SpecError, match=r"cannot write this network \(.*bessel_j0") as caught:
        files.write(tmp_path / "m.onnx", module, torch.zeros(2, 2), form="onnx", provenance=PROVENANCE)
    assert "\n" not in caught.value.message
    with pytest.raises(SpecError, match="--int8 is for --format onnx, got pt2"):
        export(Wanted(version="m", form="pt2", int8=True), tmp_path)
