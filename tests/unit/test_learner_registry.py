"""Learners of other packages: found by entry point, combined with data by the spec, refused by name."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from graceful import spec, tasks
from graceful.chain import Completeness
from graceful.errors import DataError, SpecError
from graceful.learners import learner_of, registry
from graceful.models import bundle
from graceful.spec import RefreshSpec
from tests.support.runs import train

LEARNERS = '''
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from graceful.models.base import Headed, Outputs

class Scaled:
    """Divide numbers by a scale that the version keeps, and classify them."""

    encoders = ("default",)

    def __init__(self, width: int, scale: float = 2.0) -> None:
        self.width, self.scale = width, scale

    def network(self, classes):
        return Headed(nn.Linear(2, self.width), nn.Linear(self.width, len(classes)))

    def collate(self, items, views):
        rows = [item.square(8, "full").ravel()[:2] if hasattr(item, "square") else item for item in items]
        return {"x": torch.from_numpy(np.asarray(rows, dtype=np.float32) / np.float32(self.scale))}

    def forward(self, network, batch, *, encoder):
        embedding = network.embed(batch["x"])
        return Outputs(embedding, network.classify(embedding))

    def task_loss(self, outputs, batch, labels):
        return F.cross_entropy(outputs.logits, labels, reduction="none")

    def assets(self):
        return {"scale.json": self.scale}

    def restored(self, assets):
        return Scaled(self.width, assets["scale.json"])

class Failing(Scaled):
    def __init__(self): raise OSError("no model here")

def homeless(width: int = 2):
    learner = Scaled(width)
    learner.network = None
    return learner

def nothing(): return None
number = 3
'''
ENTRY_POINTS = """
[graceful.learners]
scaled = other_learners.learners:Scaled
failing = other_learners.learners:Failing
homeless = other_learners.learners:homeless
nothing = other_learners.learners:nothing
number = other_learners.learners:number
absent = other_learners.learners:Absent
raises = other_learners.raises:Learner
"""
DATA = """
import numpy as np
from graceful.tasks import in_split
from graceful.tasks.base import Samples

class Data:
    classes = ("left", "right")

    def __init__(self):
        rng = np.random.default_rng(0)
        self.items = rng.normal(size=(300, 2)).astype(np.float32)
        self.ids = np.array([f"point-{row}" for row in range(300)])

    def samples(self, split):
        mine = in_split(self.ids, split)
        labels = (self.items[mine, 0] > 0).astype(np.int64)
        return Samples.of(self.items[mine], labels, classes=self.classes, ids=self.ids[mine])

def task(): return Data()
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of an installed package's learners."""
    package, info = tmp_path / "site" / "other_learners", tmp_path / "site" / "other_learners-1.0.dist-info"
    for folder in (package, info):
        folder.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "learners.py").write_text(LEARNERS)
    (package / "raises.py").write_text("raise RuntimeError('needs another driver')")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-learners\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    for name in [name for name in sys.modules if name.partition(".")[0] == "other_learners"]:
        monkeypatch.delitem(sys.modules, name)
    registry._registered.cache_clear()
    yield package / "learners.py"
    registry._registered.cache_clear()


def spec_of(folder: Path, learner: dict[str, object], *, name: str = "v1", **sections: object) -> RefreshSpec:
    (folder / "data.py").write_text(DATA)
    task = {"kind": "python", "file": str(folder / "data.py"), "learner": learner}
    fast = {"num_workers": 0, "engine": {"kind": "torch"}, "epochs": 4, "batch_size": 16}
    document = {"model": "points", "name": name, "task": task, "train": {**fast, "optimizer": {"lr": 0.1}}}
    return spec.parse({**document, **sections})


def test_data_of_a_file_are_learnt_by_a_learner_that_the_spec_names(installed: Path, tmp_path: Path) -> None:
    documents = [
        spec_of(tmp_path, {"kind": "scaled", "options": {"width": width, "scale": scale}}, name=name, **sections)
        for name, width, scale, sections in (
            ("v1", 4, 2.0, {}),
            ("v2", 6, 5.0, {"compatibility": {"losses": [{"kind": "focal_distillation"}]}}),
        )
    ]
    folders: list[Path] = []
    for document in documents:
        run_dir = tmp_path / document.name
        train(document, run_dir=run_dir, home=tmp_path, ancestors=folders[::-1])
        folders.append(run_dir / "model")
    test = tasks.build(documents[1].task).samples("test")
    for folder, scale in zip(folders, (2.0, 5.0), strict=True):
        version = bundle.load(folder, augment_like=documents[1].task)
        assert version.learner.own.scale == scale  # type: ignore[attr-defined]
        predicted = version(test.read(np.arange(len(test)))).logits.argmax(1).numpy()
        assert (predicted == test.labels).mean() > 0.9
    recorded = json.loads((folders[0] / "arch.json").read_text())["task"]["learner"]
    assert recorded == {"kind": "scaled", "options": {"width": 4, "scale": 2.0}}


def test_images_of_a_folder_are_learnt_by_a_learner_that_the_spec_names(installed: Path, tmp_path: Path) -> None:
    from PIL import Image

    for name, shade in (("dark", 20), ("light", 200)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(12):
            Image.new("RGB", (8, 8), (shade, shade, number)).save(tmp_path / "images" / name / f"{number}.png")
    learner = {"kind": "scaled", "options": {"width": 4}}
    section = {"kind": "image_folder", "root": str(tmp_path / "images"), "size": 8, "learner": learner}
    document = {"model": "m", "name": "v1", "task": section}
    task = tasks.build(spec.parse(document).task)
    inputs = learner_of(task).collate(task.samples("train").read(np.arange(2)), None)
    assert learner_of(task).forward(task.network(task.classes), inputs, encoder="default").logits.shape == (2, 2)
    with pytest.raises(SpecError, match="shift and flip belong to the task's own transform, which learner replaces"):
        spec.parse({**document, "task": {**section, "flip": True}})


@pytest.mark.parametrize(
    ("learner", "message"),
    [
        ({"kind": "scalde"}, "no installed package offers the learner 'scalde'; did you mean scaled?"),
        ({"kind": "bert"}, "no installed package offers the learner 'bert'; install the package that does"),
        ({"kind": "scaled"}, "task.learner.options.width: required by Scaled in"),
        ({"kind": "scaled", "options": {"width": 2, "scael": 1}}, "takes no such option; did you mean scale?"),
        ({"kind": "failing"}, "OSError: no model here"),
        ({"kind": "homeless"}, "the learner, a Scaled, lacks the method network(classes)"),
        ({"kind": "nothing"}, "the learner, a NoneType, lacks the method collate"),
        ({"kind": "number"}, "other-learners offers the learner number as other_learners.learners:number, which is no"),
        ({"kind": "absent"}, "which cannot be imported (AttributeError"),
        ({"kind": "raises"}, "which cannot be imported (RuntimeError: needs another driver)"),
    ],
)
def test_a_learner_that_cannot_be_used_is_named_with_the_reason(
    installed: Path, tmp_path: Path, learner: dict[str, object], message: str
) -> None:
    document = spec_of(tmp_path, learner)
    with pytest.raises(SpecError) as caught:
        tasks.build(document.task)
    assert message in caught.value.message
    assert "\n" not in caught.value.message


def test_a_file_with_a_learner_of_its_own_takes_no_other(installed: Path, tmp_path: Path) -> None:
    document = spec_of(tmp_path, {"kind": "scaled"})
    (tmp_path / "data.py").write_text(DATA.replace("classes = (", "learner, classes = type('L', (), {})(), ("))
    with pytest.raises(SpecError, match="has a learner of its own, a L; leave one out"):
        tasks.build(document.task)


def test_a_version_whose_learner_is_not_installed_is_known_but_not_run(installed: Path, tmp_path: Path) -> None:
    document = spec_of(tmp_path, {"kind": "scaled", "options": {"width": 2}})
    task = tasks.build(document.task)
    bundle.save(tmp_path / "v1", network=task.network(task.classes), spec=document, classes=task.classes)
    before = tasks.transform_digest(document.task)
    installed.write_text(LEARNERS + "# another release\n")
    assert tasks.transform_digest(document.task) != before
    (tmp_path / "site" / "other_learners-1.0.dist-info" / "entry_points.txt").write_text("")
    registry._registered.cache_clear()
    version = bundle.load(tmp_path / "v1", augment_like=document.task, at_least=Completeness.NOTHING)
    assert version.unrunnable_reason == "its learner 'scaled' is not installed here"
    with pytest.raises(DataError, match="v1 cannot be run, its learner 'scaled' is not installed here; install the"):
        bundle.load(tmp_path / "v1", augment_like=document.task)


def test_a_section_without_a_learner_is_dumped_as_before() -> None:
    section = spec.parse({"model": "m", "name": "v1", "task": {"kind": "python", "file": "t.py"}}).task
    assert section.model_dump(mode="json") == {"kind": "python", "file": section.file, "options": {}}
