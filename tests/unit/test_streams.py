"""Streams: rows in their order, resumed at the exact row whatever the number of workers; what cannot be is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graceful import spec, tasks
from graceful.errors import DataError, IntegrityError, SpecError
from graceful.models import bundle
from graceful.programs.outputs.predecessor_outputs import Views
from graceful.tasks.base import Samples
from graceful.tasks.streams import Stream
from graceful.training import trace
from graceful.training.sampler import Sampler
from graceful.training.stream_reader import StreamReader
from graceful.training.weights import sample_weights
from tests.support import runs, stream_task

TASK = Path(stream_task.__file__)
SIZE, STEPS = 12, 8


class Counting:
    """Rows 0, 1, 2 ... of an epoch."""

    def __init__(self, epoch: int, count: int = 100) -> None:
        self.epoch, self.count, self.next = epoch, count, 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while self.next < self.count:
            self.next += 1
            yield {"id": f"{self.epoch}/{self.next - 1}", "label": (self.next - 1) % 3, "x": self.next - 1}

    def state_dict(self) -> Any:
        return {"next": self.next}

    def load_state_dict(self, state: Any) -> None:
        self.next = state["next"]


def stream(rows: Callable[[int], Any] = Counting, **changes: Any) -> Stream:
    values: dict[str, Any] = {"length": 100, "classes": ("a", "b", "c"), "digest": "counting", "item": "x", **changes}
    return Stream(rows=rows, **values)


def points(buffer: int = 0) -> Stream:
    made = stream_task.task(length=100, rows=100, buffer=buffer).samples("train")
    assert isinstance(made, Stream)
    return made


def reader(source: Stream) -> StreamReader:
    return StreamReader(source, batch_size=SIZE, steps_per_epoch=STEPS)


def trained(source: StreamReader, steps: range, *, world_size: int = 1) -> list[str]:
    """Ids that all ranks together read in some steps."""
    sampler = Sampler(samples=100, batch_size=SIZE, accumulation=2, world_size=world_size, seed=0, in_order=True)
    ids: list[str] = []
    for step in steps:
        epoch, inside = divmod(step, STEPS)
        for positions in sampler.epoch(epoch)[inside].reshape(-1, sampler.slice_size):
            ids += source.read(positions, epoch=epoch).ids.tolist()
    return ids


@pytest.mark.parametrize("make", [stream, points])
@pytest.mark.parametrize("stopped", [3, 8, 13])
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_stream_goes_on_at_the_exact_row(make: Callable[[], Stream], stopped: int, world_size: int) -> None:
    whole = trained(reader(make()), range(2 * STEPS))
    assert len(whole) == 2 * STEPS * SIZE
    first, second = reader(make()), reader(make())
    begun = trained(first, range(stopped))
    kept = json.loads(json.dumps(first.state(stopped)))
    second.resume(stopped, kept)
    assert begun + trained(second, range(stopped, 2 * STEPS), world_size=world_size) == whole


def test_a_stream_that_does_not_go_on_at_the_row_is_refused() -> None:
    first, second = reader(points(buffer=40)), reader(points(buffer=40))
    trained(first, range(3))
    second.resume(3, first.state(3))
    with pytest.raises(IntegrityError, match=r"the stream went on at row .* where the run was interrupted before"):
        trained(second, range(3, 4))


def test_a_task_shows_the_first_rows_until_training_reads_the_stream() -> None:
    task = tasks.build(spec.PythonTask(file=str(TASK), options={"length": 1000, "rows": 1000}))
    train = task.samples("train")
    assert (len(train), train.training_rows) == (256, 1000)
    assert train.stream is not None
    assert task.transform(train.read(np.arange(3)), None).shape == (3, 2)
    test = task.samples("test")
    assert (len(test), test.stream, test.ids[79]) == (80, None, "3/79")
    other = tasks.build(spec.PythonTask(file=str(TASK), options={"length": 999, "rows": 1000}))
    assert other.samples("train").digest != train.digest


class NotJson(Counting):
    def state_dict(self) -> Any:
        return {"next": (self.next,)}


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (lambda: stream(lambda epoch: [1, 2]), SpecError, r"rows\(0\) returned a list without state_dict"),
        (lambda: stream(NotJson), SpecError, r"state_dict\(\) holds tuples or keys"),
        (lambda: stream(id="name"), DataError, "row 0 has no 'name'; name the key, or give a function"),
        (lambda: stream(id="x"), DataError, "row 0 has the id 0; must be text"),
        (lambda: stream(label="x"), DataError, r"row 3 \('0/3'\) has the label 3; must be an index into the 3 classes"),
        (lambda: stream(length=0), DataError, "length must be at least 1"),
        (lambda: stream(digest=""), DataError, "digest a text"),
    ],
)
def test_rows_that_cannot_be_trained_on_are_refused(
    source: Callable[[], Stream], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Samples.of_stream(source())


def test_a_stream_that_is_shorter_than_it_says_is_named() -> None:
    short = reader(replace(stream(lambda epoch: Counting(epoch, 50)), path=TASK))
    with pytest.raises(DataError, match=r"stream_task.py: epoch 1 of the stream ends after 50 rows, length says 100"):
        trained(short, range(STEPS))


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"targets": {"mode": "keyed"}}, "compatibility.targets.mode: the training rows are a stream, .*; write live"),
        ({"losses": [], "reference": {}}, "compatibility.reference: reads cached outputs, and the training rows are"),
    ],
)
def test_cached_targets_of_a_stream_are_refused_with_the_reason(section: dict[str, Any], message: str) -> None:
    document = {"model": "m", "name": "v1", "task": {"kind": "python", "file": str(TASK)}, "compatibility": section}
    train = Samples.of_stream(stream())
    with pytest.raises(SpecError, match=message):
        Views.of(spec.parse(document), train, augments=False)
    del document["compatibility"]
    assert Views.of(spec.parse(document), train, augments=True).live
    with pytest.raises(SpecError, match=r"train.class_weights: are divided by their mean"):
        sample_weights(train, "balanced")


def test_versions_of_a_stream_are_trained_against_predecessors_that_run_in_every_step(tmp_path: Path) -> None:
    def trained(name: str, *, ancestors: list[Path], units: int, **sections: Any) -> Any:
        recipe = {"epochs": 2, "batch_size": 24, "num_workers": 0, "engine": {"kind": "torch"}}
        task = {"kind": "python", "file": str(TASK), "options": {"units": units}}
        document = spec.parse({"model": "points", "name": name, "task": task, "train": recipe, **sections})
        return runs.train(document, run_dir=tmp_path / name, home=tmp_path, ancestors=ancestors)

    first = trained("v1", ancestors=[], units=8)
    losses = {"losses": [{"kind": "focal_distillation"}]}
    second = trained("v2", ancestors=[first.folder], units=16, compatibility=losses)
    assert second.result.steps == 24
    assert second.result.validation_error < 0.4
    assert {"task", "focal_distillation/v1"} <= set(rows_of(tmp_path / "v2")[-1]["parts"])
    assert not (tmp_path / "targets").exists()
    with pytest.raises(DataError, match="they are a stream"):
        bundle.load(second.folder, task=tasks.build(spec.PythonTask(file=str(TASK)))).training_ids()


def rows_of(run_dir: Path) -> list[dict[str, Any]]:
    return [row for row in trace.read(run_dir / trace.FILE) if row["event"] == "step"]
