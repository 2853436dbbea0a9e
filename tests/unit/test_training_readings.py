"""Numbers that stay on the device for some steps, and what is prepared ahead: same training, and faults still named."""

from __future__ import annotations

import itertools
import threading
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from graceful import spec
from graceful.errors import NonFiniteError
from graceful.tasks.base import Samples, Split
from graceful.training import engine, prefetch, trace
from graceful.training.engine import TorchEngine
from graceful.training.job import TrainingJob
from graceful.training.loop import Loop
from graceful.training.rank_context import RankContext
from tests.support import training_task


class Faulty(training_task.Blobs):
    """Blobs, of which one may hold NaN, and a network whose head may get a gradient that is NaN in some step."""

    def __init__(self, *, poisoned: int | None = None, bad_step: int | None = None) -> None:
        super().__init__(classes=3, die_in_rank=0, die_at=None, marker=None, poison=None)
        self.poisoned, self.bad_step = poisoned, bad_step

    def samples(self, split: Split) -> Samples:
        clean = super().samples(split)

        def read(positions: Any) -> Any:
            items = clean.read(positions)
            items[positions == self.poisoned] = float("nan")
            return items

        return replace(clean, read=read if split == "train" else clean.read)

    def network(self, classes: tuple[str, ...]) -> nn.Module:
        network = super().network(classes)
        calls = 0

        def spoilt(gradient: Tensor) -> Tensor | None:
            nonlocal calls
            calls += 1
            return gradient * float("nan") if calls == self.bad_step else None

        network.head.weight.register_hook(spoilt)
        return network


def loop_of(
    task: Faulty, folder: Path, *, every: int, monkeypatch: pytest.MonkeyPatch, fused: bool, **facts: Any
) -> Loop:
    """A loop that reads its numbers every so many steps, as on a GPU; `fused` as there."""
    document = spec.parse(
        {
            "model": "blobs",
            "name": "v1",
            "task": {"kind": "python", "file": training_task.__file__},
            "train": {"epochs": 1, "batch_size": 24, "num_workers": 0, "engine": {"kind": "torch"}},
        }
    )
    context = RankContext(restore=nullcontext, publish=lambda part: None, every=every, **facts)
    monkeypatch.setattr(engine, "TorchEngine", partial(TorchEngine, fused=fused))
    folder.mkdir()
    loop = Loop(TrainingJob(spec=document, run_dir=folder, task=task), context, digest="")
    loop.start()
    return loop


def weights(loop: Loop) -> dict[str, Tensor]:
    return loop.engine.export() or {}


def rows(folder: Path) -> list[dict[str, Any]]:
    return [row for row in trace.read(folder / trace.FILE) if row["event"] == "step"]


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "guarded"])
def test_reading_numbers_later_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fused: bool) -> None:
    for every in (1, 4):
        loop = loop_of(Faulty(), tmp_path / str(every), every=every, monkeypatch=monkeypatch, fused=fused and every > 1)
        loop.epoch()
        loop.close()
    at_once, later = rows(tmp_path / "1"), rows(tmp_path / "4")
    assert [row["step"] for row in later] == list(range(1, 11))
    tolerance = {"rel": 1e-5} if fused else {"rel": 0.0, "abs": 0.0}
    for name in ("loss", "grad_norm"):
        assert [row[name] for row in later] == pytest.approx([row[name] for row in at_once], **tolerance)


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "guarded"])
@pytest.mark.parametrize("fault", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_no_weight_and_is_named_when_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, fused: bool
) -> None:
    clean = loop_of(Faulty(), tmp_path / "clean", every=1, monkeypatch=monkeypatch, fused=fused)
    order = clean.sampler.slices(0, first_step=0, rank=0)
    for number, slices in enumerate(clean.materials.slices(order, epoch=0)):
        if number < 5:
            clean._step(slices, epoch=0)
    clean.close()
    task = Faulty(poisoned=int(order[5][3])) if fault == "loss" else Faulty(bad_step=6)
    loop = loop_of(task, tmp_path / "faulty", every=4, monkeypatch=monkeypatch, fused=fused)
    with pytest.raises(NonFiniteError) as caught:
        loop.epoch()
    loop.close()
    sample = f"sample 'train/{order[5][3]:03d}' of train holds NaN"
    assert caught.value.message.startswith(
        "step 6, epoch 1: " + ("loss task is nan" if fault == "loss" else "gradient")
    )
    assert (sample in caught.value.message) == (fault == "loss")
    assert caught.value.facts["step"] == 6
    assert len(rows(tmp_path / "faulty")) == 5
    for name, value in weights(clean).items():
        torch.testing.assert_close(weights(loop)[name], value, rtol=0.0, atol=0.0)


@pytest.mark.parametrize(("every", "saved"), [(1, [6, 10]), (4, [8, 10])])
def test_an_announcement_is_answered_by_one_checkpoint_and_no_other_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int, saved: list[int]
) -> None:
    """Heard in step 6, it is known when that step's numbers are read."""
    steps: list[int] = []
    asked = iter(range(1, 100))
    loops = [
        loop_of(Faulty(), tmp_path / name, every=every, monkeypatch=monkeypatch, fused=False, **facts)
        for name, facts in {"quiet": {}, "announced": {"preempted": lambda: next(asked) >= 6}}.items()
    ]
    for loop in loops:
        loop.context = replace(loop.context, publish=lambda part: steps.append(part.step))
        loop.epoch()
        loop.close()
    assert steps == [10, *saved]
    quiet, announced = rows(tmp_path / "quiet"), rows(tmp_path / "announced")
    assert [(row["loss"], row["parts"]) for row in quiet] == [(row["loss"], row["parts"]) for row in announced]


def test_what_is_made_ahead_comes_in_order_and_errors_in_their_place() -> None:
    made: list[int] = []

    def make(number: int) -> int:
        made.append(number)
        return 60 // (4 - number)

    values = prefetch.ahead(make, 6, depth=2)
    assert next(values) == 15
    assert [next(values) for _ in range(3)] == [20, 30, 60]
    with pytest.raises(ZeroDivisionError):
        next(values)
    assert made in ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5])
    assert list(prefetch.ahead(make, 0, depth=2)) == []


def test_a_thread_makes_ahead_only_what_takes_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    threads, now = [], 0.0
    monkeypatch.setattr(prefetch, "time", SimpleNamespace(perf_counter=lambda: now))

    def make(number: int) -> int:
        nonlocal now
        threads.append(threading.get_ident())
        now += prefetch.QUICK_SECONDS * (2.0 if number >= 4 else 0.5)
        return number

    assert list(prefetch.ahead(make, 12, depth=2)) == list(range(12))
    here = threading.get_ident()
    assert threads[:5] == [here] * 5, "until the first that takes longer"
    assert here not in threads[5:]


@pytest.mark.parametrize("most", [1, 4])
def test_pieces_hold_no_more_than_they_may(most: int) -> None:
    """A stream keeps few batches, so one more may not be made before one was taken."""
    made = itertools.count()
    latest = 0

    def make(number: int) -> int:
        nonlocal latest
        latest = next(made)
        return number

    for number in prefetch.ahead(make, 200, depth=2, most=most):
        assert latest < number + 3 * most
