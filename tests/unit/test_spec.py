"""Reading a spec: defaults <- file <- overrides, one resolved value that repeats the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from graceful import spec
from graceful.errors import SpecError
from graceful.losses.influence import Influence

MINIMAL: dict[str, Any] = {"model": "glyphs", "name": "v1", "task": {"kind": "glyphs"}}


def written(folder: Path, text: str) -> Path:
    path = folder / "v1.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_defaults_fill_what_the_file_leaves_out() -> None:
    resolved = spec.parse(MINIMAL)
    assert resolved.run_id == "glyphs-v1"
    assert resolved.train == spec.Train()
    assert resolved.gate.constraints[0].metric == "negative_flip_rate"


def test_the_resolved_spec_reads_back_unchanged() -> None:
    losses = [{"kind": kind} for kind in ("focal_distillation", "logit_displacement", "influence", "reweighting")]
    compatibility = {"against": ["v0"], "losses": losses, "reference": {"runs": 2}}
    resolved = spec.parse({**MINIMAL, "compatibility": compatibility, "train": {"optimizer": {"kind": "adamw"}}})
    again = spec.parse(json.loads(json.dumps(resolved.dump())))
    assert again == resolved
    assert again.digest() == resolved.digest()


def test_the_resolved_spec_written_as_a_file_repeats_the_run_from_anywhere(tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    first = spec.load(
        written(tmp_path / "jobs", "{model: wine, name: v1, task: {kind: python, file: task.py, options: {a: 1}}}")
    )
    again = spec.load(written(tmp_path, json.dumps(first.dump())))
    assert isinstance(first.task, spec.PythonTask)
    assert first.task.file == str(tmp_path / "jobs" / "task.py")
    assert again == first


def test_buckets_are_not_taken_for_paths(tmp_path: Path) -> None:
    path = written(tmp_path, "{model: a, name: v1, task: {kind: image_folder, root: 's3://bucket/images'}}")
    task = spec.load(path).task
    assert isinstance(task, spec.ImageFolderTask)
    assert task.root == "s3://bucket/images"


def test_scientific_notation_that_yaml_reads_as_text_is_a_number(tmp_path: Path) -> None:
    text = "{model: a, name: v1, task: {kind: digits}, train: {optimizer: {kind: sgd, lr: 3e-4}}}"
    resolved = spec.load(written(tmp_path, text), ["train.timeout=1e3"])
    assert resolved.train.optimizer.lr == 0.0003
    assert resolved.train.timeout == 1000.0


def test_a_section_with_a_default_kind_may_leave_it_out() -> None:
    resolved = spec.parse({**MINIMAL, "train": {"optimizer": {"lr": 0.1}, "engine": {"zero_stage": 1}}})
    assert resolved.train.optimizer == spec.Sgd(lr=0.1)
    assert resolved.train.engine == spec.DeepSpeedEngine(zero_stage=1)


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("train.epochs=2", lambda s: s.train.epochs == 2),
        ("train.optimizer.lr=0.5", lambda s: s.train.optimizer == spec.Sgd(lr=0.5)),
        ("train.optimizer=adamw", lambda s: s.train.optimizer == spec.AdamW()),
        ("compatibility.weighting=decay", lambda s: s.compatibility.weighting == spec.Decay()),
        ("compatibility.weighting=equal", lambda s: s.compatibility.weighting == spec.Equal()),
        ("train.optimizer={kind: adamw, lr: 1e-3}", lambda s: s.train.optimizer == spec.AdamW(lr=1e-3)),
        ("task.kind=digits", lambda s: s.task == spec.DigitsTask()),
        ("task.network.size=m", lambda s: s.task.network.size == "m"),
        ("gate.constraints.0.bound=0.01", lambda s: s.gate.constraints[0].bound == 0.01),
        ("gate.constraints=[]", lambda s: s.gate.constraints == ()),
        ("compatibility.reference.runs=2", lambda s: s.compatibility.reference == spec.Reference(runs=2)),
        ("compatibility.losses.0={kind: influence}", lambda s: s.compatibility.losses == (Influence(),)),
        ("compatibility.against=[v1, v2]", lambda s: s.compatibility.against == ("v1", "v2")),
        ("train.use_gpu=null", lambda s: s.train.use_gpu is None),
        ("description=a=b", lambda s: s.description == "a=b"),
        ("trust.code_digests.+='" + "1" * 64 + "'", lambda s: s.trust.code_digests == ("1" * 64,)),
        ("gate.constraints.+={metric: negative_flip_rate, bound: 0.1}", lambda s: len(s.gate.constraints) == 2),
        ("home=/tmp/x", lambda s: s.home == "/tmp/x"),
    ],
)
def test_an_override_changes_its_key(tmp_path: Path, override: str, read: Any) -> None:
    text = (
        "{model: glyphs, name: v1, task: {kind: glyphs}, compatibility: {losses: [{kind: reweighting}], reference: },"
        " gate: {constraints: [{metric: error_rate, bound: 0.5, against: self}]}}"
    )
    assert read(spec.load(written(tmp_path, text), [override]))


def test_later_overrides_win(tmp_path: Path) -> None:
    path = written(tmp_path, json.dumps(MINIMAL))
    assert spec.load(path, ["train.epochs=2", "train.epochs=3"]).train.epochs == 3


def test_an_override_through_an_anchor_changes_one_place(tmp_path: Path) -> None:
    text = """
model: a
name: v1
task: {kind: digits}
compatibility: {losses: [&loss {kind: influence, weight: 1}, *loss]}
"""
    losses = spec.load(written(tmp_path, text), ["compatibility.losses.0.weight=2"]).compatibility.losses
    assert [loss.weight for loss in losses] == [2, 1]


def test_merge_keys_may_be_overridden(tmp_path: Path) -> None:
    text = """
model: a
name: v1
task: {kind: digits}
compatibility:
  losses:
    - &loss {kind: influence, weight: 1}
    - {<<: *loss, weight: 3}
"""
    assert [loss.weight for loss in spec.load(written(tmp_path, text)).compatibility.losses] == [1, 3]


def test_the_digest_ignores_where_it_runs_and_how_often_it_may_be_tried() -> None:
    plain = spec.parse(MINIMAL).digest()
    moved = {
        "home": "/x",
        "registry": {"uri": "http://y"},
        "description": "z",
        "train": {"timeout": 9, "max_failures": 0},
        "trust": {"code_digests": ["ab" * 32]},
    }
    assert spec.parse({**MINIMAL, **moved}).digest() == plain


@pytest.mark.parametrize("change", [{"train": {"seed": 1}}, {"gate": {"family": "bonferroni"}}, {"name": "v2"}])
def test_the_digest_sees_what_determines_the_result(change: dict[str, Any]) -> None:
    assert spec.parse({**MINIMAL, **change}).digest() != spec.parse(MINIMAL).digest()


def test_keys_that_were_added_later_leave_the_digests_of_earlier_specs_alone() -> None:
    """A digest that moved would have every registered version trained again."""
    earlier = spec.parse({"model": "m", "name": "v2", "task": {"kind": "digits"}, "tune": {}})
    assert earlier.digest() == "9c0279fb752d346a89d47ea90b679ad46474769f6f9c8f753e4e2b87482d72ca"
    assert "start" not in earlier.dump()["train"]
    assert "interpolation" not in earlier.dump()["compatibility"]
    assert "interpolation" not in earlier.dump()["tune"]["space"]
    assert "trust" not in earlier.dump()
    later = spec.parse({**earlier.dump(), "train": {"start": "latest"}})
    mixed = spec.parse({**later.dump(), "compatibility": {"interpolation": 0.3}})
    assert len({earlier.digest(), later.digest(), mixed.digest()}) == 3
    assert spec.parse(mixed.dump()) == mixed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"compatibility": {"interpolation": 0.3}}, "compatibility.interpolation in spec: must be 0, got 0.3, with"),
        ({"tune": {"space": {"interpolation": [0.1]}}}, "tune.space.interpolation in spec: must be null with"),
        (
            {"compatibility": {"interpolation": 1}},
            "compatibility.interpolation in spec: must be a number in [0, 1), got 1",
        ),
        ({"train": {"start": "old"}}, "train.start in spec: must be random, latest or head, got 'old'"),
    ],
)
def test_weights_are_mixed_with_those_they_started_from_alone(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        spec.parse({**MINIMAL, **change})
    assert caught.value.message.startswith(message)
    if "must be random" not in message and "got 1" not in message:
        assert caught.value.message.endswith("train.start: random; leave it out, or write train.start: latest")


def test_a_digest_that_is_none_is_refused() -> None:
    with pytest.raises(SpecError, match=r"trust\.code_digests in spec: must be SHA-256 of code, 64 digits .* got 'XY'"):
        spec.parse({**MINIMAL, "trust": {"code_digests": ["ab" * 32, "XY"]}})


def test_a_document_is_left_as_it_is() -> None:
    document = {**MINIMAL, "task": {"kind": "python", "file": "task.py"}, "train": {"optimizer": {"lr": 1}}}
    before = json.dumps(document)
    spec.parse(document, where="jobs/v1.yaml")
    assert json.dumps(document) == before


@example({" ": None})
@example({"": None})
@given(st.dictionaries(st.text(max_size=8), st.none() | st.booleans() | st.floats() | st.text(max_size=5), max_size=4))
def test_any_document_gives_a_spec_or_one_line(document: dict[str, Any]) -> None:
    message = ""
    try:
        spec.parse({**MINIMAL, **document})
    except SpecError as e:
        message = e.message
    assert "\n" not in message
    assert " in spec: " in message or not message


def test_paths_of_a_spec_are_absolute_and_keep_their_links(tmp_path: Path) -> None:
    """The folder of a ConfigMap is a link, and where it leads differs between pods."""
    (tmp_path / "..data-1").mkdir()
    (tmp_path / "..data-1" / "task.py").write_text("")
    (tmp_path / "job").symlink_to("..data-1")
    (tmp_path / "job" / "v1.yaml").write_text("model: m\nname: v1\ntask: {kind: python, file: task.py}\n")
    loaded = spec.load(tmp_path / "job" / "v1.yaml")
    assert loaded.task.file == str(tmp_path / "job" / "task.py")
