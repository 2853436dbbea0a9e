"""What people get to read when a spec is wrong: one line with key, file, bound, value and remedy."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from graceful import section_keys, spec
from graceful.errors import SpecError
from graceful.spec.methods import Combination, Lqf, Pruned

MINIMAL: dict[str, Any] = {"model": "glyphs", "name": "v1", "task": {"kind": "glyphs"}}
REQUIRED = {"file": "task.py", "root": "images", "metric": "error_rate", "bound": 0.5, "model": "a", "name": "v1"}
REQUIRED |= {"files": ["rows.csv"], "checkpoint": "bert", "features": ["height"], "version": "b@champion", "width": 8}
REQUIRED |= {"old": "b:v1", "new": "b:v2"}
REQUIRED |= {"ids": ["a"], "versions": {"v1": 1.0}, "capacities": [0.5], "sha256": "0" * 64}
"""Values of the keys that have no default, or whose default needs another key."""
CHOICES = (0, 1, 2, 3, 4, 5, 16, 27)
"""Every member of every union is one of these modulo the number of members."""


def refusal(document: dict[str, Any]) -> str:
    with pytest.raises(SpecError) as caught:
        spec.parse(document, where="v1.yaml")
    return caught.value.message


def filled(section: type[spec.Section], choice: int) -> dict[str, Any]:
    """Every key of a section, and of those below; of a union member number `choice`, of a list one item of each."""
    document: dict[str, Any] = {}
    for name, field in section.model_fields.items():
        inner = section_keys.item(field.annotation)
        found = section_keys.sections(field.annotation if inner is None else inner)
        if inner is not None and found:
            document[name] = [filled(one, choice) for one in found]
        elif found:
            document[name] = filled(found[choice % len(found)], choice)
        else:
            free_kind = name == "kind" and field.is_required()  # of a learner that another package offers
            value = "sentences" if free_kind else REQUIRED.get(name, field.default)
            document[name] = list(value) if isinstance(value, tuple) else value
    if isinstance(document.get("depthwise"), list):  # choices of a stage, each a list
        document["width"] = [document["width"]]
    if "pruning" in document:  # or a space, and not both
        document["space" if choice % 2 else "pruning"] = None
    if "blend" in document:  # a teacher of its own, in place of others
        others = ("influence", "embedding_regression", "reweighting")
        alone = {"reference": None, "losses": [loss for loss in document["losses"] if loss["kind"] in others]}
        document |= alone if choice == CHOICES[-1] else {"blend": None}
    if document.get("gallery") and document["compatibility"]["blend"]:
        document["gallery"] = None  # a blend is of ancestors
    if section is spec.RefreshSpec:
        _fill_method(document, choice)
    for columns in {"columns", "members"} & document.keys():  # what is embedded must suit the network
        kind = document["network"]["kind"]
        inputs = {"transformers": {"text": "text"}, "perceptron": {"features": ["height"]}}.get(kind, {"image": "jpg"})
        document[columns] |= {"text": None, "features": [], "id": "id", **inputs}
        if "text" not in inputs and "augment" in document:
            document["augment"] = None  # it is for texts
    return document


def _fill_method(document: dict[str, Any], choice: int) -> None:
    """Linear-quadratic fine-tuning takes one loss in one form, and no other teacher; the others train nothing."""
    quadratic = {"blend": None, "reference": None, "weighting": {"kind": "equal"}}
    if choice == CHOICES[0]:
        document["train"]["method"] = filled(Combination, choice)
        document["compatibility"] |= {"losses": [], "reference": None, "blend": None}
        document["gallery"] = None
    elif choice in CHOICES[4:6]:  # memory and limits need different solvers
        without = {"memory": None} if choice == CHOICES[5] else {"protect": None}
        document["train"]["method"] = filled(Lqf, choice) | without
        (loss,) = (one for one in document["compatibility"]["losses"] if one["kind"] == "focal_distillation")
        document["compatibility"] |= {**quadratic, "losses": [{**loss, "form": "lm"}]}
        document["gallery"] = None  # such a version embeds where its starting weights do
    elif choice == CHOICES[2]:
        document["train"]["method"] = filled(Pruned, choice)
    else:
        document["train"]["method"] = {"kind": "descent"}


def places(document: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Path of every key of every section; `options` of a Python task and names of versions are free."""
    if isinstance(document, list):
        for index, item in enumerate(document):
            yield from places(item, (*path, index))
    elif isinstance(document, dict) and path[-1:] not in (("options",), ("versions",)):
        for key, value in document.items():
            yield (*path, key)
            yield from places(value, (*path, key))


def misspelt(document: Any, path: tuple[str | int, ...]) -> Any:
    head, *rest = path
    if isinstance(document, list):
        return [misspelt(item, tuple(rest)) if index == head else item for index, item in enumerate(document)]
    if rest:
        return {key: misspelt(value, tuple(rest)) if key == head else value for key, value in document.items()}
    return {f"{key}x" if key == head else key: value for key, value in document.items()}


CASES = {
    (choice, path): filled(spec.RefreshSpec, choice)
    for choice in CHOICES
    for path in places(filled(spec.RefreshSpec, choice))
}


def test_the_filled_documents_are_valid_and_cover_every_key() -> None:
    documents = [filled(spec.RefreshSpec, choice) for choice in CHOICES]
    for document in documents:
        spec.parse(document)
    covered = {".".join(str(part) for part in path if isinstance(part, str)) for _, path in CASES}
    known = {re.sub(r"<\w+>|\[\]", "", key.path) for key in section_keys.keys(spec.RefreshSpec)}
    assert known - covered == set()


@pytest.mark.parametrize(
    ("choice", "path"), CASES, ids=lambda value: ".".join(map(str, value)) if isinstance(value, tuple) else str(value)
)
def test_a_misspelt_key_is_refused_with_its_path_at_every_depth(choice: int, path: tuple[str | int, ...]) -> None:
    message = refusal(misspelt(CASES[choice, path], path))
    *parents, key = map(str, path)
    if key == "kind" and f"{'.'.join([*parents, 'kindx'])} in" not in message:
        assert message.startswith(f"{'.'.join([*parents, 'kind'])} in v1.yaml: required and missing")
        return
    assert message.startswith(f"{'.'.join([*parents, key + 'x'])} in v1.yaml: unknown key, did you mean {key}?")
    assert "\n" not in message


def test_a_key_of_another_section_is_told_where_it_belongs() -> None:
    assert "lr belongs under train.optimizer" in refusal({**MINIMAL, "train": {"lr": 0.1}})


def test_suggestions_come_from_the_same_section() -> None:
    message = refusal({**MINIMAL, "compatibility": {"reference": {"rnus": 2}}})
    assert message.startswith("compatibility.reference.rnus in v1.yaml: unknown key, did you mean runs?")


def test_a_wrong_value_of_a_free_key_is_told_with_its_key_and_bounds() -> None:
    def weighting(bounds: Any) -> dict[str, Any]:
        return {**MINIMAL, "compatibility": {"weighting": {"kind": "adaptive", "bounds": bounds}}}

    message = refusal(weighting({"v1": -0.1}))
    assert message == "compatibility.weighting.bounds.v1 in v1.yaml: must be a number in (0, 1], got -0.1"
    two = refusal(weighting({"v1": "x", "v2": 2}))
    assert two == "compatibility.weighting.bounds.v1 in v1.yaml: must be a number in (0, 1], got 'x' (and 1 more)"
    assert refusal(weighting(3)).startswith("compatibility.weighting.bounds in v1.yaml: must be a mapping, got 3")


WRONG: list[dict[str, Any]] = [
    {"task": {"kind": "glyfs"}},
    {"task": {}},
    {"task": 3},
    {"compatibility": {"against": 7}},
    {"compatibility": {"against": []}},
    {"compatibility": {"losses": [{"kind": "influense"}]}},
    {"compatibility": {"losses": {"kind": "influence"}}},
    {"compatibility": None},
    {"gate": {"constraints": {}}},
    {"gate": {"constraints": ["x"]}},
    {"gate": {"constraints": [{"metric": "negative_flip_rate", "bound": 7}]}},
    {"gate": {"constraints": [{"metric": "negative_flip_rate", "bound": -1}]}},
    {"gate": {"constraints": [{"metric": "error_rate"}]}},
    {"gate": {"constraints": [{"metric": "a", "bound": float("nan")}]}},
    {"gate": {"constraints": [{"metric": "usage_weighted_nfr", "bound": 0.1}]}},
    {"task": {"kind": "image_folder", "root": "a", "size": 32, "shift": 32}},
    {"gate": {"constraints": [{"metric": "a", "bound": 1, "direction": "at_mots"}]}},
    {"train": {"epochs": "many"}},
    {"train": {"epochs": 0}},
    {"train": {"epochs": True}},
    {"train": {"optimizer": {"momentum": 1}}},
    {"train": {"engine": {"zero_stage": 4}}},
    {"train": {"batch_size": 127}},
    {"train": {"use_gpu": "perhaps"}},
    {"compatibility": {"losses": [{"kind": "focal_distillation", "alpha": 0}]}},
    {"name": 2},
    {"name": "V 2"},
    {"name": "all"},
    {"train": {"epochs": 0, "warmup": 2}},
    {"description": ["x" * 99]},
]


def test_golden_messages_about_wrong_values(golden: Callable[[str, str], None]) -> None:
    told = [(change, refusal({**MINIMAL, **change})) for change in WRONG]
    assert all("\n" not in message for _, message in told)
    golden("spec-errors.txt", "".join(f"{json.dumps(change)}\n    {message}\n" for change, message in told))


FILES: list[tuple[str, str]] = [
    ("model: a\nmodel: b\n", "not valid YAML (key 'model' (first in line 1) is written twice; keep one, line 2)"),
    ("model: a\ntrain: {epochs: 1, seed: 2, epochs: 3}\n", "key 'epochs' is written twice; keep one, line 2"),
    ("model: a\non: b\n", "key 'on' is not text; put it in quotes, line 2"),
    ("model: a\n1: b\n", "key '1' is not text; put it in quotes, line 2"),
    ("model: [a\n", "not valid YAML ("),
    ("- a\n", "must be a mapping of keys, got list; see `graceful schema`"),
    ("", "must be a mapping of keys, got NoneType; see `graceful schema`"),
    ("a: !!python/object:os.system x\n", "not valid YAML (could not determine a constructor"),
]


@pytest.mark.parametrize(("text", "message"), FILES)
def test_a_file_that_is_no_spec_is_told_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "v1.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SpecError) as caught:
        spec.load(path)
    assert caught.value.message.startswith(f"{path}: ")
    assert message in caught.value.message
    assert "\n" not in caught.value.message


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no such spec file; check the path"):
        spec.load(tmp_path / "nowhere.yaml")
    with pytest.raises(SpecError, match="cannot be read"):
        spec.load(tmp_path)


OVERRIDES: list[tuple[str, str]] = [
    ("train.epochs", "must look like a.b=value"),
    ("=3", "must look like a.b=value"),
    ("train..epochs=3", "must look like a.b=value"),
    ("train.epochs=[", "not valid YAML"),
    ("model.x=3", "model is a value ('glyphs'), not a section"),
    ("gate.constraints.1.bound=3", "gate.constraints is a list of 1, it has no item '1'; count from 0"),
    ("gate.constraints.last.bound=3", "gate.constraints is a list of 1, it has no item 'last'; count from 0"),
    ("compatibility.losses.0.weight=3", "compatibility.losses is not in the file, so it has no items to change"),
    ("train.epohcs=3", "train.epohcs in"),
    ("train.optimizer.kind=adam", "train.optimizer.kind in"),
]


@pytest.mark.parametrize(("override", "message"), OVERRIDES)
def test_a_wrong_override_is_told_in_one_line(tmp_path: Path, override: str, message: str) -> None:
    path = tmp_path / "v1.yaml"
    path.write_text(json.dumps({**MINIMAL, "gate": {"constraints": [{"metric": "a", "bound": 1}]}}), encoding="utf-8")
    with pytest.raises(SpecError) as caught:
        spec.load(path, [override])
    assert message in caught.value.message
    assert "\n" not in caught.value.message


def test_every_key_says_what_it_means() -> None:
    assert [key.path for key in section_keys.keys(spec.RefreshSpec) if not key.doc] == []


def test_what_pydantic_found_is_put_into_words_in_one_module() -> None:
    package = Path(section_keys.__file__).parent
    modules = [path for path in package.rglob("*.py") if ".errors(include_url" in path.read_text(encoding="utf-8")]
    assert [path.name for path in modules] == ["section_errors.py"]
