"""What a version keeps beside weights: in its bundle, covered by its digest, given back to its own learner."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from graceful import spec, tasks
from graceful.errors import DataError, IntegrityError, SpecError
from graceful.learners import learner_of
from graceful.models import assets, bundle
from graceful.models.stored import StoredVersion
from graceful.spec import PythonTask, RefreshSpec
from graceful.targets import build
from graceful.training.start import weights_of

SEQUENCES = Path(__file__).parents[1] / "support" / "sequences.py"


def spec_of(name: str, *, file: Path = SEQUENCES, share: float = 1.0) -> RefreshSpec:
    task = {"kind": "python", "file": str(file), "options": {"width": 8, "share": share}}
    return spec.parse({"model": "m", "name": name, "task": task})


def saved(folder: Path, document: RefreshSpec) -> tuple[str, np.ndarray]:
    """A bundle with random weights: its digest, and its logits of the first test samples before it was saved."""
    torch.manual_seed(len(str(folder)))
    task = tasks.build(document.task)
    learner, network = learner_of(task), task.network(task.classes).eval()
    items = task.samples("test").read(np.arange(6))
    with torch.no_grad():
        outputs = learner.forward(network, learner.collate(items, None), encoder="query")
    digest = bundle.save(folder, network=network, spec=document, classes=task.classes, task=task)
    return digest, outputs.logits.numpy()


def test_versions_with_other_vocabularies_answer_through_their_own_while_both_are_open(tmp_path: Path) -> None:
    """The ancestor is opened with the new version's file, whose vocabulary has another order."""
    changed = tmp_path / "task.py"
    text = SEQUENCES.read_text()
    assert "dict.fromkeys(known)" in text
    changed.write_text(text.replace("dict.fromkeys(known)", "sorted(set(known))"))
    first, second = spec_of("v1", share=0.02), spec_of("v2", file=changed)
    expected = [saved(tmp_path / one.name, one) for one in (first, second)]
    versions = [bundle.load(tmp_path / one.name, augment_like=second.task) for one in (first, second)]
    words = [version.learner.own.vocabulary for version in versions]  # type: ignore[attr-defined]
    assert words[0] != words[1]
    assert len(words[0]) < len(words[1])
    samples = tasks.build(second.task).samples("test")
    for version, (digest, logits) in zip(versions, expected, strict=True):
        assert version.digest == digest
        assert np.array_equal(version(samples.read(np.arange(6))).logits.numpy(), logits)
    cache = build(versions[0], samples, views=None, root=tmp_path / "caches")
    cached = cache.fetch(np.arange(6), None, None, 0).logits.numpy()
    assert np.allclose(cached, expected[0][1], atol=1e-2)
    assert "vocabulary.json" in json.loads((tmp_path / "v1" / "arch.json").read_text())["assets"]
    reopened = bundle.load(tmp_path / "v1", augment_like=first.task, expected_digest=expected[0][0])
    assert np.array_equal(reopened(samples.read(np.arange(6))).logits.numpy(), expected[0][1])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda path: path.write_text("[]"), IntegrityError, "vocabulary.json: SHA-256 must be"),
        (lambda path: path.unlink(), DataError, "vocabulary.json: missing; fetch the version again"),
    ],
)
def test_files_are_compared_before_they_are_read(tmp_path: Path, change, error, message) -> None:
    document = spec_of("v1")
    saved(tmp_path / "v1", document)
    change(tmp_path / "v1" / "assets" / "vocabulary.json")
    with pytest.raises(error, match=message):
        bundle.load(tmp_path / "v1", augment_like=document.task)


def test_a_description_cannot_name_a_file_elsewhere_or_another_content(tmp_path: Path) -> None:
    document = spec_of("v1")
    digest, _ = saved(tmp_path / "v1", document)
    path = tmp_path / "v1" / "arch.json"
    described = json.loads(path.read_text())
    path.write_text(json.dumps({**described, "assets": {"../arch.json": "0" * 64}}))
    with pytest.raises(DataError, match="assets"):
        bundle.load(tmp_path / "v1", augment_like=document.task)
    path.write_text(json.dumps({**described, "assets": {}}))
    with pytest.raises(IntegrityError, match="SHA-256 must be"):
        bundle.load(tmp_path / "v1", augment_like=document.task, expected_digest=digest)


def test_every_kind_of_file_comes_back_as_it_was(tmp_path: Path) -> None:
    named = {
        "words.json": ["a", "ö", {"n": [1, 2.5, None]}],
        "mean.safetensors": {"mean": torch.arange(6.0).reshape(2, 3).T},
        "model.spm": b"\x00\xff",
    }
    contents = assets.encode(named, owner="t.py: assets()")
    assets.write(tmp_path, {"old.txt": b"of an older bundle"})
    assets.write(tmp_path, contents)
    values = assets.read(tmp_path, assets.digests(contents))
    assert torch.equal(values["mean.safetensors"].pop("mean"), named["mean.safetensors"]["mean"])
    assert {**values, "mean.safetensors": {}} == {**named, "mean.safetensors": {}}
    assert sorted(path.name for path in (tmp_path / "assets").iterdir()) == sorted(named)
    for name in ("words.json", "mean.safetensors"):
        (tmp_path / "assets" / name).write_bytes(b"[" * 100_000)
        recorded = {name: assets.digests({name: b"[" * 100_000})[name]}
        with pytest.raises(DataError, match="its content does not fit its name"):
            assets.read(tmp_path, recorded)


@pytest.mark.parametrize(
    ("named", "message"),
    [
        (["a"], "returned a list; return a mapping of file names to contents"),
        ({"../x.json": 1}, r"names a file '\.\./x\.json'; a name has at most 100 letters"),
        ({3: b""}, "names a file 3; a name has"),
        ({"a\n": b""}, r"names a file 'a\\n'; a name has"),
        ({"words.pkl": b""}, "names a file words.pkl, an ending of pickled files"),
        ({"a.json": 1, "A.json": 2}, "names the files a.json and A.json, which some file systems mix up"),
        ({"a.json": {1, 2}}, "a.json is not a JSON value"),
        ({"a.json": float("nan")}, "a.json is not a JSON value"),
        ({"a.txt": "text"}, "a.txt must be bytes, got a str; for a JSON value let its name end in .json"),
        ({"a.safetensors": b""}, "a.safetensors must be a mapping of names to tensors, got a bytes"),
        ({f"{n}.json": n for n in range(65)}, "in 65 files; a version keeps at most 268435456 in 64"),
        ({"a.bin": bytes(2**28 + 1)}, "returned 268435457 bytes in 1 files"),
    ],
)
def test_what_no_version_can_keep_is_refused_by_name(named: object, message: str) -> None:
    with pytest.raises(SpecError, match=f"t.py: assets.. of the learner.*{message}") as caught:
        assets.encode(named, owner="t.py: assets() of the learner")
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("return TokenLearner(assets", "return self; (assets", "returned the learner itself; return a new one"),
        ("return TokenLearner(assets", "return (assets", "the learner, a list, lacks the method collate"),
        ("return TokenLearner(assets", "return 1 / 0; (assets", "ZeroDivisionError"),
        ("def restored", "def other", "the learner, a TokenLearner, has assets without the method restored; add it"),
        ("self.learner = TokenL", "self.learner, _ = None, TokenL", "has no learner, and this version was saved"),
    ],
)
def test_a_learner_that_takes_its_files_back_wrongly_is_told_in_one_line(
    tmp_path: Path, right: str, wrong: str, message: str
) -> None:
    saved(tmp_path / "v1", spec_of("v1"))
    text = SEQUENCES.read_text()
    assert right in text
    text = text.replace(right, wrong).replace("Network(self.learner.size", "Network(60")
    if "None" in wrong:
        text = text.replace("    def samples(", "    def transform(self, items, views): ...\n\n    def samples(")
    (tmp_path / "task.py").write_text(text)
    with pytest.raises(SpecError) as caught:
        bundle.load(tmp_path / "v1", augment_like=PythonTask(file=str(tmp_path / "task.py")))
    assert message in caught.value.message
    assert "\n" not in caught.value.message


def test_training_does_not_start_at_weights_that_belong_to_another_vocabulary(tmp_path: Path) -> None:
    first = spec_of("v1")
    saved(tmp_path / "v1", first)
    (tmp_path / "task.py").write_text(SEQUENCES.read_text().replace("dict.fromkeys(known)", "sorted(set(known))"))
    for document in (first, spec_of("v2", file=tmp_path / "task.py")):
        task = tasks.build(document.task)
        network, start = task.network(task.classes), StoredVersion(folder=tmp_path / "v1", augment_like=document.task)
        if document is first:
            assert weights_of(start, network, task=task).keys() == network.state_dict().keys()
            continue
        with pytest.raises(SpecError, match=r"the weights of v1 belong to the vocabulary\.json that its learner had"):
            weights_of(start, network, task=task)
