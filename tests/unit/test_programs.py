"""What a program says about a home, a run's folder and data that it cannot use."""

from __future__ import annotations

import itertools
import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from graceful import spec
from graceful.errors import (
    CollapsedError,
    DataError,
    InfrastructureError,
    IntegrityError,
    RegistryError,
    SpecError,
    StorageError,
)
from graceful.programs import exclusive
from graceful.programs.outputs.predecessor_outputs import Pace
from graceful.programs.refresh import Refreshed, refresh
from graceful.programs.runs.run import Run
from graceful.targets.blocks import blocks_of
from graceful.training import ray_outputs
from tests.support.runs import train
from tests.support.training_task import Blobs


def parse(home: Path, **train: Any) -> spec.RefreshSpec:
    recipe = {"num_workers": 0, "engine": {"kind": "torch"}, **train}
    return spec.parse({"model": "digits", "name": "v1", "task": {"kind": "digits"}, "train": recipe, "home": str(home)})


def finish(resolved: spec.RefreshSpec, text: str | None = None) -> Path:
    """Leave the folder that a finished refresh leaves."""
    folder = Run.of(resolved).folder
    folder.mkdir(parents=True)
    result = Refreshed(
        run_id=resolved.run_id,
        outcome="passed",
        reasons=(),
        version=1,
        model_id="m-" + "0" * 32,
        champion=1,
        spec_digest=resolved.digest(),
        report=str(folder / "report.json"),
        seconds=1.0,
    )
    (folder / "result.json").write_text(json.dumps(asdict(result)) if text is None else text)
    return folder


def test_a_home_that_is_a_file_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("")
    with pytest.raises(StorageError, match=r"cannot write, .*; check the path"), exclusive(tmp_path / "home" / "run"):
        pass


def test_a_run_is_worked_on_once_at_a_time(tmp_path: Path) -> None:
    already = pytest.raises(SpecError, match="already being worked on")
    with exclusive(tmp_path / "run"), already, exclusive(tmp_path / "run"):
        pass
    with exclusive(tmp_path / "run"):
        assert (tmp_path / "run" / "lock").exists()


@pytest.mark.parametrize("text", ["", "{", "{}", "[]", '{"spec_digest": 1}'])
def test_a_result_that_cannot_be_read_names_its_file_and_the_remedy(tmp_path: Path, text: str) -> None:
    resolved = parse(tmp_path)
    folder = finish(resolved, text)
    with pytest.raises(IntegrityError) as raised:
        refresh(Run.of(resolved))
    assert str(folder / "result.json") in raised.value.message
    assert raised.value.message.endswith(f"delete {folder} to refresh again")


def test_a_finished_run_that_the_registry_does_not_know_is_not_called_passed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolved = parse(tmp_path)
    folder = finish(resolved)

    def record(model_id: str) -> None:
        raise RegistryError(f"registry here: holds no {model_id}; restore it from a backup")

    monkeypatch.setattr("graceful.lineage.Store", lambda *_: SimpleNamespace(record=record))
    with pytest.raises(RegistryError) as raised:
        refresh(Run.of(resolved))
    assert raised.value.message == (
        f"run digits-v1 is finished, but registry here: holds no m-{'0' * 32}; restore it from a backup;"
        f" or delete {folder} to refresh again"
    )


SPLITS = ("train", "validation", "constraint", "test")


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(SPLITS, 2)))
def test_splits_that_share_ids_are_refused(tmp_path: Path, one: str, other: str) -> None:
    class Leaking(Blobs):
        def samples(self, split: Any) -> Any:
            found = super().samples(split)
            if split != other:
                return found
            return replace(found, ids=np.append(found.ids[:-2], super().samples(cast(Any, one)).ids[:2]))

    task = Leaking(classes=3, die_in_rank=0, die_at=None, marker=None, poison=None)
    with pytest.raises(
        DataError, match=rf"^task: 2 ids are in {one} and in {other}, e\.g\. {one}/000; keep them apart$"
    ):
        train(parse(tmp_path), run_dir=tmp_path / "run", home=tmp_path, task=task)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("error", [KeyError("constraint"), DataError("no image"), None])
def test_a_run_without_budgets_needs_no_constraint_split(tmp_path: Path, error: Exception | None) -> None:
    class Without(Blobs):
        notes = ("photos: 2 files passed over: 2 .heic",)

        def samples(self, split: Any) -> Any:
            if split == "constraint" and error is not None:
                raise error
            found = super().samples(split)
            none = {"ids": found.ids[:0], "labels": found.labels[:0], "groups": found.groups[:0]}
            return replace(found, **none) if split == "constraint" else found

    task = Without(classes=3, die_in_rank=0, die_at=None, marker=None, poison=None)
    document, rows = parse(tmp_path, epochs=1, batch_size=24), list[Any]()
    trained = train(document, run_dir=tmp_path / "run", home=tmp_path, task=task, progress=rows.append)
    assert trained.result.steps == 10
    assert trained.notes == Without.notes
    assert {"stage": "data", "notes": Without.notes} in rows


def test_one_class_is_refused(tmp_path: Path) -> None:
    task = Blobs(classes=1, die_in_rank=0, die_at=None, marker=None, poison=None)
    with pytest.raises(DataError, match="one class, 'blob-0', leaves nothing to tell apart"):
        train(parse(tmp_path), run_dir=tmp_path / "run", home=tmp_path, task=task)


@pytest.mark.parametrize(
    ("split", "changes", "said"),
    [
        ("test", {"ids": [], "labels": [], "groups": []}, "the test split is empty"),
        ("validation", {"ids": [], "labels": [], "groups": []}, "the validation split is empty"),
        ("train", {"labels": np.ones(240, np.int64)}, "every sample of the train split is labelled 'blob-1'"),
        ("test", {"read": lambda positions: [np.zeros(6 + at) for at in range(len(positions))]}, "inhomogeneous"),
        ("test", {"labels": [7]}, "labels span 7..7, there are 3 classes"),
        ("test", {"groups": ["g"]}, "labels, 1 groups"),
    ],
)
def test_data_that_would_fail_after_training_is_refused_before_it(
    tmp_path: Path, split: str, changes: dict[str, Any], said: str
) -> None:
    class Odd(Blobs):
        def samples(self, name: Any) -> Any:
            found = super().samples(name)
            if name != split:
                return found
            given = {key: value if key == "read" else np.asarray(value) for key, value in changes.items()}
            if given.get("labels") is not None and len(given["labels"]) == 1:
                given["labels"] = np.full(len(found), given["labels"][0])
            return replace(found, **given)

    task = Odd(classes=3, die_in_rank=0, die_at=None, marker=None, poison=None)
    with pytest.raises((DataError, ValueError), match=said):
        train(parse(tmp_path), run_dir=tmp_path / "run", home=tmp_path, task=task)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("reachable", [True, False])
def test_a_training_that_failed_is_marked_in_the_registry_and_keeps_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, reachable: bool
) -> None:
    marked = []

    def abandon(run: str) -> None:
        marked.append(run)
        if not reachable:
            raise RegistryError("registry: gone")

    def fail(*_: Any, **__: Any) -> None:
        raise CollapsedError("epoch 3: at chance")

    fleet = SimpleNamespace(queries=())
    store = SimpleNamespace(begin=lambda *_, **__: "run", chain=lambda _: [], display_uri="", abandon=abandon)
    store.fleet = lambda _: fleet
    monkeypatch.setattr("graceful.lineage.Store", lambda *_: store)
    monkeypatch.setattr("graceful.programs.refresh.train", fail)
    with pytest.raises(CollapsedError, match="at chance"):
        refresh(Run.of(parse(tmp_path)))
    assert marked == ["run"]


def test_networks_that_do_not_fit_are_refused_before_the_first_step(tmp_path: Path) -> None:
    from torch import nn

    from graceful.models.base import Headed
    from graceful.training.batches import try_out

    task = Blobs(classes=3, die_in_rank=0, die_at=None, marker=None, poison=None)
    samples = task.samples("train")
    try_out(task, task.network(task.classes), samples)
    with pytest.raises(SpecError, match=r"logits \[1, 2\] of one sample, \[1, 6\] float32; must be .* \[1, 3\]"):
        try_out(task, Headed(nn.Linear(6, 4), nn.Linear(4, 2)), samples)
    with pytest.raises(SpecError, match=r"fails on one sample, \[1, 6\] float32: mat1 and mat2"):
        try_out(task, Headed(nn.Linear(5, 4), nn.Linear(4, 3)), samples)


def test_a_build_tells_its_rate_and_what_remains_from_the_second_block_on() -> None:
    times = iter((10.0, 12.0, 12.0, 15.0))
    pace = Pace(stage="outputs of v1", clock=lambda: next(times))
    stage = {"stage": "outputs of v1", "steps": 1000}
    assert pace(100, 1000) == {**stage, "step": 100}
    assert pace(300, 1000) == {**stage, "step": 300, "samples_per_second": 100.0, "eta": 7.0}
    assert pace(300, 1000)["samples_per_second"] == 100.0
    assert pace(1000, 1000) == {**stage, "step": 1000, "samples_per_second": 180.0, "eta": 0.0}


@pytest.mark.parametrize(("seconds", "here"), [(1.0, 10), (9.0, 2)])
def test_workers_are_asked_once_the_rest_would_take_more_than_a_minute(
    monkeypatch: pytest.MonkeyPatch, seconds: float, here: int
) -> None:
    times = itertools.count(step=seconds)
    task = Blobs(classes=3, die_in_rank=0, die_at=None, marker=None, poison=None)
    samples = task.samples("train")
    monkeypatch.setattr(ray_outputs, "run", lambda *arguments: arguments[-1])
    blocks = blocks_of(240, views=None, size=24, rows_done=0)
    opened: Any = ray_outputs.Here(predecessor=cast(Any, None), samples=samples, views=1, clock=lambda: next(times))
    assert len(list(ray_outputs._until_worth_it(opened, blocks))) == here
    assert len(list(blocks)) == 10 - here


class Actor:
    """Stands for a worker of Ray; a reference is the actor and what was asked."""

    def __init__(self, name: str) -> None:
        self.__ray_ready__ = SimpleNamespace(remote=lambda: name)
        self.run = SimpleNamespace(remote=lambda block: (name, block))


def dealt(monkeypatch: pytest.MonkeyPatch, started: set[str], get: Any) -> list[Any]:
    import ray

    def wait(starting: list[str], *, num_returns: int, timeout: float) -> tuple[list[str], list[str]]:
        assert 1 <= num_returns <= len(starting)
        assert 0.0 <= timeout <= 60.0
        found = [one for one in starting if one in started][:num_returns]
        return found, [one for one in starting if one not in found]

    monkeypatch.setattr(ray, "wait", wait)
    monkeypatch.setattr(ray, "get", get)
    blocks: Any = range(5)
    actors = [Actor(name) for name in ("a", "b", "c")]
    return list(ray_outputs._in_order(actors, blocks, deadline=time.monotonic() + 60.0))


def test_blocks_go_to_workers_that_have_started_and_come_back_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    found = dealt(monkeypatch, {"a", "c"}, lambda reference, timeout: reference)
    assert [block for _, block in found] == [0, 1, 2, 3, 4]
    assert {name for name, _ in found} == {"a", "c"}
    with pytest.raises(InfrastructureError, match=r"none of 3 workers started within train\.timeout"):
        dealt(monkeypatch, set(), lambda reference, timeout: reference)


@pytest.mark.parametrize(
    ("error", "message"),
    [("GetTimeoutError", "not done within train.timeout"), ("RayError", r"Ray lost a result \(RayError: node\)")],
)
def test_an_answer_that_never_comes_is_trouble_of_the_cluster_in_one_line(
    monkeypatch: pytest.MonkeyPatch, error: str, message: str
) -> None:
    import ray.exceptions

    def get(reference: Any, timeout: float) -> Any:
        assert 0.0 <= timeout <= 60.0
        raise getattr(ray.exceptions, error)("node")

    with pytest.raises(InfrastructureError, match=message) as raised:
        dealt(monkeypatch, {"a"}, get)
    assert "\n" not in raised.value.message
