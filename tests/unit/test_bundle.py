"""Version bundles: exact round trip, nothing parsed before its digest is right, one line for whatever does not fit."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from graceful import spec, storage, tasks
from graceful.chain import Completeness, Predecessor
from graceful.errors import DataError, GracefulError, IntegrityError, NonFiniteError
from graceful.lineage.serving import _load_pyfunc
from graceful.models import bundle, bundle_files, weights
from graceful.tasks import code

SPEC = spec.RefreshSpec(model="digits", name="v1", task=spec.DigitsTask(classes=6))


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(5)
    task = tasks.build(SPEC.task)
    return task.network(task.classes)


@pytest.fixture
def saved(tmp_path: Path, network: nn.Module) -> tuple[Path, str]:
    return tmp_path, bundle.save(tmp_path, network=network, spec=SPEC, classes=tasks.build(SPEC.task).classes)


def _rewrite(folder: Path, **changes: Any) -> None:
    path = folder / bundle_files.DESCRIPTION
    storage.write_json(path, json.loads(path.read_text()) | changes)


def _exchange_weights(folder: Path, weights: bytes) -> None:
    """Weights and the digest that goes with them: what only the network's shape can still refuse."""
    (folder / bundle_files.WEIGHTS).write_bytes(weights)
    _rewrite(folder, weights_sha256=hashlib.sha256(weights).hexdigest())


def _refusal(folder: Path, kind: type[GracefulError], **options: Any) -> str:
    with pytest.raises(kind) as caught:
        bundle.load(folder, **options)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_round_trip_is_exact(saved: tuple[Path, str], network: nn.Module) -> None:
    folder, digest = saved
    version = bundle.load(folder, expected_digest=digest)
    for name, tensor in network.state_dict().items():
        assert torch.equal(version.network.state_dict()[name], tensor)
    task = tasks.build(SPEC.task)
    items = task.samples("test").read(np.arange(20))
    with torch.no_grad():
        wanted = network.classify(network.embed(task.transform(items, None)))  # type: ignore[operator]
    assert torch.equal(version(items).logits, wanted)
    assert (version.name, version.model_id, version.digest) == ("v1", "digits-v1", digest)
    assert version.classes == ("0", "1", "2", "3", "4", "5")
    assert version.embedding_size == 64
    assert version.notes == ()
    assert not version.network.training


def test_the_folder_holds_three_files_and_the_documented_keys(saved: tuple[Path, str]) -> None:
    folder, digest = saved
    assert sorted(path.name for path in folder.iterdir()) == ["arch.json", "head.safetensors", "model.safetensors"]
    described = json.loads((folder / "arch.json").read_text())
    assert sorted(described) == [
        "classes", "embedding_size", "head_sha256", "model", "name", "schema", "task", "transform_digest",
        "weights_sha256",
    ]  # fmt: skip
    assert described["head_sha256"] == storage.sha256_file(folder / "head.safetensors")
    assert described["weights_sha256"] == storage.sha256_file(folder / "model.safetensors")
    assert bundle.digest(folder) == digest


def test_saving_twice_gives_the_same_digest_and_another_weight_another(
    saved: tuple[Path, str], network: nn.Module, tmp_path: Path
) -> None:
    classes = tasks.build(SPEC.task).classes
    assert bundle.save(tmp_path / "again", network=network, spec=SPEC, classes=classes) == saved[1]
    with torch.no_grad():
        next(network.parameters()).view(-1)[0] += 1e-3
    assert bundle.save(tmp_path / "other", network=network, spec=SPEC, classes=classes) != saved[1]


def test_half_precision_networks_are_saved_as_fp32(network: nn.Module, tmp_path: Path) -> None:
    bundle.save(tmp_path, network=network.bfloat16(), spec=SPEC, classes=tasks.build(SPEC.task).classes)
    state = safetensors.torch.load_file(tmp_path / bundle_files.WEIGHTS)
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}


def test_weights_that_are_not_finite_are_never_saved(network: nn.Module, tmp_path: Path) -> None:
    with torch.no_grad():
        next(network.parameters()).view(-1)[3] = float("nan")
    with pytest.raises(NonFiniteError, match=r"features\.0\.weight"):
        bundle.save(tmp_path, network=network, spec=SPEC, classes=("a",))
    assert list(tmp_path.iterdir()) == []


def test_embedding_size_is_read_off_a_network_that_does_not_tell(network: nn.Module, tmp_path: Path) -> None:
    del network.embedding_size
    bundle.save(tmp_path, network=network, spec=SPEC, classes=tasks.build(SPEC.task).classes)
    assert json.loads((tmp_path / "arch.json").read_text())["embedding_size"] == 64


def test_loading_leaves_the_random_state_alone(saved: tuple[Path, str]) -> None:
    before = torch.random.get_rng_state()
    bundle.load(saved[0])
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty"])
def test_damaged_weights_are_refused_before_they_are_parsed(
    saved: tuple[Path, str], damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved[0] / bundle_files.WEIGHTS
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes({"flip": bytes(data), "truncate": bytes(data[:100]), "empty": b""}[damage])

    def never(weights: bytes) -> None:
        pytest.fail("parsed unverified bytes")

    monkeypatch.setattr(weights, "parse_weights", never)
    message = _refusal(saved[0], IntegrityError)
    assert "model.safetensors" in message
    assert "SHA-256 must be" in message
    assert "fetch the version again" in message


def test_a_bundle_other_than_the_expected_one_is_refused(saved: tuple[Path, str]) -> None:
    folder, digest = saved
    _refusal(folder, IntegrityError, expected_digest="0" * 64)
    _rewrite(folder, classes=["5", "4", "3", "2", "1", "0"])
    bundle.load(folder)
    message = _refusal(folder, IntegrityError, expected_digest=digest)
    assert digest[:12] in message


@pytest.mark.parametrize("name", [bundle_files.WEIGHTS, bundle_files.DESCRIPTION])
def test_a_missing_file_is_named(saved: tuple[Path, str], name: str) -> None:
    (saved[0] / name).unlink()
    assert name in _refusal(saved[0], DataError)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"schema": 2}, "schema"),
        ({"extra": 1}, "extra"),
        ({"classes": []}, "classes"),
        ({"weights_sha256": "../../etc"}, "weights_sha256"),
        ({"task": {"kind": "digits", "klasses": 3}}, "task.digits.klasses"),
        ({"task": {"kind": "unheard"}}, "task"),
        ({"embedding_size": 32}, "embedding_size must be 64, got 32"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(
    saved: tuple[Path, str], changes: dict[str, Any], named: str
) -> None:
    _rewrite(saved[0], **changes)
    message = _refusal(saved[0], DataError)
    assert "arch.json" in message
    assert named in message


def test_a_description_that_is_not_json_is_refused(saved: tuple[Path, str]) -> None:
    (saved[0] / bundle_files.DESCRIPTION).write_text("{")
    assert "arch.json" in _refusal(saved[0], DataError)


def test_weights_of_another_network_are_refused_with_tensor_and_shapes(saved: tuple[Path, str]) -> None:
    folder = saved[0]
    state = safetensors.torch.load_file(folder / bundle_files.WEIGHTS)
    _exchange_weights(folder, safetensors.torch.save({**state, "head.weight": torch.zeros(7, 64)}))
    assert "tensor head.weight must have shape [6, 64], got [7, 64]" in _refusal(folder, DataError)
    _exchange_weights(folder, safetensors.torch.save({k: v for k, v in state.items() if k != "head.bias"}))
    assert "tensor head.bias is missing" in _refusal(folder, DataError)
    _exchange_weights(folder, safetensors.torch.save({**state, "stray": torch.zeros(1)}))
    assert "tensor stray is not part of the network" in _refusal(folder, DataError)


def test_a_pickle_is_never_read(saved: tuple[Path, str], tmp_path: Path) -> None:
    torch.save({"head.bias": torch.zeros(6)}, tmp_path / "weights.pt")
    _exchange_weights(saved[0], (tmp_path / "weights.pt").read_bytes())
    assert "not a safetensors file" in _refusal(saved[0], DataError)


def test_a_predecessor_without_augmentation_can_see_the_new_versions_views(saved: tuple[Path, str]) -> None:
    new = spec.DigitsTask(classes=6, shift=2)
    items = tasks.build(new).samples("test").read(np.arange(30))
    views = np.arange(30, dtype=np.uint64)
    own, alike = bundle.load(saved[0]), bundle.load(saved[0], augment_like=new)
    assert torch.equal(own.learner.collate(items, views), own.learner.collate(items, None))
    assert torch.equal(alike.learner.collate(items, views), tasks.build(new).transform(items, views))
    assert torch.equal(alike.learner.collate(items, None), own.learner.collate(items, None))
    assert alike.transform_digest != own.transform_digest
    assert alike.notes == ()
    other = bundle.load(saved[0], augment_like=spec.ImageFolderTask(root="/nowhere", shift=2))
    assert other.transform_digest == own.transform_digest


PYTHON_TASK = """
import numpy as np
import torch

class Net(torch.nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.body, self.head = torch.nn.Linear(3, 2), torch.nn.Linear(2, classes)
    def embed(self, x):
        return self.body(x)
    def classify(self, e):
        return self.head(e)

class Own:
    classes = ("a", "b")
    augments = False
    def network(self, classes):
        return Net(len(classes))
    def samples(self, split):
        raise KeyError(split)
    def transform(self, items, views):
        return torch.as_tensor(items, dtype=torch.float32) * FACTOR

FACTOR = 1.0

def task():
    return Own()
"""


def _python_version(tmp_path: Path) -> tuple[Path, Path]:
    source, folder = tmp_path / "own.py", tmp_path / "bundle"
    source.write_text(PYTHON_TASK)
    refresh = spec.RefreshSpec(model="own", name="v1", task=spec.PythonTask(file=str(source)))
    task = tasks.build(refresh.task)
    bundle.save(folder, network=task.network(("a", "b")), spec=refresh, classes=("a", "b"), embedding_size=2)
    return source, folder


def test_a_python_task_that_changed_is_loaded_with_a_note(tmp_path: Path) -> None:
    source, folder = _python_version(tmp_path)
    unchanged: Predecessor = bundle.load(folder, trusted=[code.digest(str(source))])
    assert unchanged.notes == ()
    source.write_text(PYTHON_TASK.replace("FACTOR = 1.0", "FACTOR = 2.0"))
    for like in (None, spec.DigitsTask()):
        with pytest.raises(DataError, match="is not the file v1 was saved with"):
            bundle.load(folder, augment_like=like, trusted=[code.digest(str(source))])
    changed = bundle.load(folder, augment_like=spec.PythonTask(file=str(source)))
    assert len(changed.notes) == 1
    assert "own.py changed since" in changed.notes[0]
    assert "may differ" in changed.notes[0]
    assert changed.transform_digest != unchanged.transform_digest
    assert float(changed.learner.collate([[1.0, 1.0, 1.0]], None).max()) == 2.0


def _as_folder(source: Path) -> Path:
    """The same task as a folder that imports a module beside it."""
    folder = source.parent / "own"
    folder.mkdir()
    (folder / "beside.py").write_text(f"{MARK}FACTOR = 1.0\n")
    (folder / "task.py").write_text(PYTHON_TASK.replace("FACTOR = 1.0", "from beside import FACTOR"))
    return folder


MARK = "import os\nopen(os.environ['MARKER'], 'w').close()\n"
"""What a file does that must not run."""


@pytest.mark.usefixtures("own_modules")
@pytest.mark.parametrize("as_folder", [False, True], ids=["file", "folder"])
def test_recorded_code_runs_only_where_its_digest_is_trusted(
    tmp_path: Path, as_folder: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MARKER", str(tmp_path / "ran"))
    source = tmp_path / "own.py"
    source.write_text(MARK + PYTHON_TASK)
    source = _as_folder(source) if as_folder else source
    refresh = spec.RefreshSpec(model="own", name="v1", task=spec.PythonTask(file=str(source)))
    network = tasks.build(refresh.task).network(("a", "b"))
    bundle.save(tmp_path / "v1", network=network, spec=refresh, classes=("a", "b"), embedding_size=2)
    digest = code.digest(str(source))
    (tmp_path / "ran").unlink()
    sys.modules.pop("beside", None)
    for like in (None, spec.DigitsTask()):
        for trusted in ((), ["0" * 64]):
            message = _refusal(tmp_path / "v1", DataError, augment_like=like, trusted=trusted)
            assert f"v1 cannot be run, its recorded code {source} is not trusted; read that code, then" in message
            assert f"--trust-code {digest} " in message
            version = bundle.load(tmp_path / "v1", augment_like=like, trusted=trusted, at_least=Completeness.NOTHING)
            assert (version.completeness, version.unrunnable_reason) == (
                Completeness.NOTHING,
                f"its recorded code {source} is not trusted",
            )
            with pytest.raises(DataError, match="cannot be run"):
                version.learner.collate([[1.0, 1.0, 1.0]], None)
    with monkeypatch.context() as served:
        served.setenv("GRACEFUL_TRUST_CODE", f"{'0' * 64}, {digest[:63]}")
        with pytest.raises(DataError, match="GRACEFUL_TRUST_CODE="):
            _load_pyfunc(str(tmp_path / "v1"))
    assert not (tmp_path / "ran").exists()
    loaded = bundle.load(tmp_path / "v1", augment_like=spec.DigitsTask(), trusted=[digest])
    assert float(loaded.learner.collate([[1.0, 1.0, 1.0]], None).max()) == 1.0
    assert loaded.transform_digest == version.transform_digest
    monkeypatch.setenv("GRACEFUL_TRUST_CODE", digest)
    assert set(_load_pyfunc(str(tmp_path / "v1")).predict([[1.0, 1.0, 1.0]])["classes"]) == {"a", "b"}


@pytest.mark.parametrize("file", ["gone.py", ".", "/dev/zero", "/" + "x" * 300, "a\0b", "pipe"])
def test_a_recorded_path_may_be_anything_and_is_not_read(tmp_path: Path, file: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    _, folder = _python_version(tmp_path)
    _rewrite(folder, task={"kind": "python", "file": str(tmp_path / file), "options": {}})
    assert "is not here as it was saved; restore that code" in _refusal(folder, DataError)


def test_the_file_that_a_registry_names_gives_way_to_the_one_the_user_names(tmp_path: Path) -> None:
    source, folder = _python_version(tmp_path)
    moved = source.rename(tmp_path / "moved.py")
    trap = "raise SystemExit('the recorded file ran')"
    source.write_text(trap)
    loaded = bundle.load(folder, augment_like=spec.PythonTask(file=str(moved)))
    assert float(loaded.learner.collate([[1.0, 1.0, 1.0]], None).max()) == 1.0
    assert loaded.notes == ()


def test_a_python_task_with_another_network_is_refused(tmp_path: Path) -> None:
    source, folder = _python_version(tmp_path)
    source.write_text(PYTHON_TASK.replace("Linear(3, 2)", "Linear(4, 2)"))
    with pytest.raises(DataError) as caught:
        bundle.load(folder, augment_like=spec.PythonTask(file=str(source)))
    message = str(caught.value)
    assert "body.weight must have shape [2, 4], got [2, 3]; its Python file has changed" in message


def test_classes_of_image_folders_are_compared_in_one_spelling(saved: tuple[Path, str]) -> None:
    decomposed, composed = "cafe\u0301", "caf\u00e9"
    for kind, name in (("image_folder", composed), ("python", decomposed)):
        _rewrite(saved[0], task={"kind": kind}, classes=[decomposed, "dog"])
        assert bundle.describe(saved[0]).classes == (name, "dog")
