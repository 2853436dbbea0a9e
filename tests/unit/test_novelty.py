"""When a refresh is skipped: only if recipe and training data are those of the champion, or of what was held since."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from graceful import spec, tasks
from graceful.lineage import LineageRecord
from graceful.programs.runs import novelty
from tests.support.mlflow_records import record

DATA = {"data": "a" * 64, "transform": "b" * 64}


def recipe(name: str = "v2", **changes: Any) -> spec.RefreshSpec:
    return spec.parse({"model": "glyphs", "name": name, "task": {"kind": "digits"}, **changes})


def champion(**changes: Any) -> LineageRecord:
    made = replace(record("v1"), version=3, training=dict(DATA), spec_digest=recipe("v1").digest())
    return replace(made, **changes)


def test_the_same_recipe_on_the_same_data_is_nothing_new() -> None:
    assert novelty.nothing_new(recipe(), DATA, champion()) == "no new data since glyphs@3 (sha256 aaaaaaaaaaaa)"


def test_a_held_version_is_said_to_be_one() -> None:
    reason = novelty.nothing_new(recipe(), DATA, champion(verdict="held"))
    assert reason == "no new data since glyphs@3, which was held (sha256 aaaaaaaaaaaa)"


@pytest.mark.parametrize("changed", [{"data": "c" * 64}, {"transform": "c" * 64}])
def test_other_data_or_another_transform_is_new(changed: dict[str, str]) -> None:
    assert novelty.nothing_new(recipe(), {**DATA, **changed}, champion()) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"train": {"epochs": 7}},
        {"train": {"seed": 1}},
        {"task": {"kind": "digits", "shift": 2}},
        {"gate": {"constraints": [{"metric": "negative_flip_rate", "bound": 0.01}]}},
        {"model": "other"},
    ],
)
def test_another_recipe_is_new(changes: dict[str, Any]) -> None:
    assert novelty.nothing_new(recipe(**changes), DATA, champion()) is None


@pytest.mark.parametrize(
    "changes", [{"description": "again"}, {"home": "/elsewhere"}, {"if_new_data": True}, {"train": {"timeout": 60}}]
)
def test_what_does_not_determine_the_result_is_not_new(changes: dict[str, Any]) -> None:
    assert novelty.nothing_new(recipe(**changes), DATA, champion()) is not None


def test_the_champion_itself_is_not_skipped_its_refresh_repeats_its_result() -> None:
    assert novelty.nothing_new(recipe("v1"), DATA, champion()) is None


def test_a_record_of_before_the_data_was_written_down_skips_nothing() -> None:
    assert novelty.nothing_new(recipe(), DATA, champion(training={})) is None


def test_a_python_task_counts_with_the_content_of_its_file(tmp_path: Path) -> None:
    file = tmp_path / "task.py"
    section = {"kind": "python", "file": str(file)}
    found = []
    for text in ("x = 1\n", "x = 1\n", "x = 2\n"):
        file.write_text(text, encoding="utf-8")
        found.append(novelty.ingredients(recipe(task=section).task, data="a" * 64))
    assert found[0] == found[1] != found[2]


def test_the_ingredients_name_data_and_transform() -> None:
    section = recipe().task
    assert novelty.ingredients(section, data="d") == {"data": "d", "transform": tasks.transform_digest(section)}


def test_whether_it_may_be_skipped_does_not_change_what_a_spec_computes() -> None:
    assert recipe(if_new_data=True).digest() == recipe().digest()


def test_old_records_are_read_and_new_ones_survive_json() -> None:
    for one in (record("v1"), champion(version=0)):
        assert LineageRecord.from_json(one.to_json()) == one
    text = record("v1").to_json().replace('  "training": {},\n', "")
    assert '"training"' not in text
    assert LineageRecord.from_json(text).training == {}
