"""Backfills: every id once, in one space, whatever stops them; searches meanwhile; taking one back."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from graceful import locks
from graceful.errors import DataError, GracefulError, InfrastructureError, SpecError
from graceful.index import Index, Space, Vectors, backfill, files
from graceful.index.backfill_work import Settings
from graceful.index.log import MovedError
from graceful.index.order import ORDERS
from graceful.programs.indexing import backfill_plan, backfilling
from tests.support.limits import largest_file

OLD, NEW = Space.declared("old", 12), Space.declared("new", 8)
COUNT = 300
MATRIX = np.random.default_rng(5).normal(size=(12, 8)).astype(np.float32)
Command = Callable[..., "subprocess.CompletedProcess[str]"]


def vectors(count: int = COUNT, *, prefix: str = "x", seed: int = 0) -> Vectors:
    made = np.random.default_rng(seed).normal(size=(count, 12)).astype(np.float32)
    ids = np.asarray([f"{prefix}{number:04d}" for number in range(count)])
    return Vectors(ids=ids, vectors=made, payload={"label": np.asarray(["ab"[number % 2] for number in range(count)])})


def mapped(made: Vectors) -> Vectors:
    """What the new model says about the same items."""
    return Vectors(ids=made.ids, vectors=made.vectors @ MATRIX)


@dataclass
class Model:
    """The new model, which knows some items."""

    known: Vectors
    space: Space = NEW
    called: int = 0

    def __call__(self, ids: NDArray[np.str_]) -> Vectors:
        self.called += len(ids)
        return mapped(self.known).take(np.isin(self.known.ids, ids))


def once(index: Index, expected: set[str]) -> dict[str, int]:
    """Require that every id has one vector in one space, and return how many each space has."""
    head = index.head()
    view = index.view(head)
    ids = {name: view.ids(name).tolist() for name in head.spaces}
    everything = [name for names in ids.values() for name in names]
    assert len(everything) == len(set(everything)), "doubled"
    assert set(everything) == expected
    assert index.backend.verify(head) == []
    return {name: len(names) for name, names in ids.items()}


@pytest.fixture
def index(new_place: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    monkeypatch.setenv("GRACEFUL_HOME", str(tmp_path / "home"))
    return Index.create(new_place(), vectors(), OLD)


@pytest.mark.parametrize(("order", "batch"), [*((order, 64) for order in ORDERS), ("random", 10 * COUNT)])
def test_a_backfill_moves_all_vectors_and_then_the_alias(order: Any, batch: int, index: Index) -> None:
    model, made = Model(vectors()), vectors()
    traffic = {name: float(number) for number, name in enumerate(made.ids.tolist())}
    settings = Settings(order=order, batch=batch, traffic=traffic, stop_at=0.4, reason="better")
    half = backfill.run(index, model, settings)
    assert (half.state, half.serving, half.to) == ("stopped", "old", "new")
    assert half.done == math.ceil(0.4 * COUNT)
    counts = once(index, set(made.ids.tolist()))
    assert counts == {"old": COUNT - half.done, "new": half.done}
    if order == "traffic":
        assert set(index.view().ids("new").tolist()) == set(made.ids[-half.done :].tolist())
    queries = {"old": made.vectors[:50], "new": mapped(made).vectors[:50]}
    hits = index.search(queries, k=1)
    assert hits.ids[:, 0].tolist() == made.ids[:50].tolist(), "each is found, in whichever space it is"
    done = backfill.run(index, model, replace(settings, stop_at=1.0))
    assert (done.state, done.serving, done.done) == ("moved", "new", COUNT)
    head = index.head()
    assert (head.action, head.writes, head.reason, head.calibrations) == ("move", "new", "better", ())
    assert index.view().read("new").payload["label"].tolist() == made.payload["label"].tolist()
    again = backfill.run(index, model, settings)
    assert (again.state, again.snapshot) == ("moved", head.number), "a finished backfill repeats its result"
    assert model.called <= COUNT + 32 + 32, "and embeds nothing twice but for the check"


def test_what_others_write_meanwhile_stays(index: Index) -> None:
    made, model = vectors(), Model(vectors())
    embed = model.__call__

    def meanwhile(ids: NDArray[np.str_]) -> Vectors:
        if model.called == 0:
            index.delete(ids[:1])
            fresh = mapped(vectors(2, prefix="fresh"))
            index.add(replace(fresh, payload={"label": fresh.ids}), NEW)
            anew = Vectors(ids=ids[1:2], vectors=np.ones((1, 8), dtype=np.float32), payload={"label": ids[1:2]})
            index.add(anew, NEW, replacing=True)
            meanwhile.ids = ids.tolist()  # type: ignore[attr-defined]
            with pytest.raises(SpecError, match="takes vectors of new"):
                index.add(vectors(1, prefix="late"), OLD)
        return embed(ids)

    meanwhile.space = NEW  # type: ignore[attr-defined]
    done = backfill.run(index, meanwhile, Settings(batch=100))  # type: ignore[arg-type]
    assert done.state == "moved"
    gone, kept = meanwhile.ids[:2]  # type: ignore[attr-defined]
    expected = {*made.ids.tolist(), "fresh0000", "fresh0001"} - {gone}
    assert once(index, expected) == {"old": 0, "new": len(expected)}
    np.testing.assert_allclose(index.view().read("new", np.asarray([kept])).vectors, 8**-0.5, atol=1e-6)
    before = index.head().number
    back = backfill.rollback(index, reason="recall fell")
    assert (back.serving, back.writes, back.backfill) == ("old", "old", None)
    assert once(index, expected) == {"old": COUNT - 2, "new": 3}, "what was written since has no old vector"
    index.rollback(before)
    assert once(index, expected) == {"old": 0, "new": len(expected)}


def test_scores_of_both_models_are_comparable_meanwhile(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    latent = generator.normal(size=(COUNT, 6))
    old = latent @ generator.normal(size=(6, 12)) + 4.0  # cosines between 0.8 and 1
    new = latent @ generator.normal(size=(6, 8))
    ids = vectors().ids
    first = Vectors(ids=ids, vectors=old.astype(np.float32))
    index = Index.create(tmp_path / "index", first, OLD)
    model = Model(replace(first, vectors=new.astype(np.float32) @ np.linalg.pinv(MATRIX)))
    backfill.run(index, model, Settings(batch=50, stop_at=0.5))
    head = index.head()
    calibration = head.calibration("old", "old")
    assert calibration is not None
    queries = {"old": first.vectors, "new": mapped(model.known).vectors}
    share = {}
    for name, manifest in (("calibrated", head), ("raw", replace(head, calibrations=()))):
        hits = index.search(queries, k=11, manifest=manifest)
        moved = set(index.view(head).ids("new").tolist())
        others = [
            [name for name in row if name != own] for row, own in zip(hits.ids.tolist(), ids.tolist(), strict=True)
        ]
        share[name] = np.mean([[name in moved for name in row[:10]] for row in others])
    assert share["raw"] < 0.1, "raw cosines of the old model are all larger"
    assert 0.3 < share["calibrated"] < 0.99, "half of the vectors are moved, and more of the results"


def altered(kind: str, index: Index, model: Model) -> Any:
    """Prepare one refusal; returns what then runs into it."""
    if kind == "two models":
        backfill.run(index, model, Settings(batch=50, stop_at=0.1))
        model.space = Space.declared("third", 8)
    elif kind == "two backfills":
        held = locks.exclusive(index.place.scratch / "backfill-0-of-1.lock")
        held.__enter__()
        return held
    elif kind == "missing":
        model.known = vectors().take(np.arange(3, COUNT))
    elif kind in ("taken back", "alias"):
        embed = model.__call__

        class Moving(Model):
            def __call__(self, ids: NDArray[np.str_]) -> Vectors:
                if kind == "taken back":
                    index.rollback(1)
                elif self.called >= COUNT:
                    index.commit(lambda head: (head.after(action="move", serving="elsewhere"), None))
                self.called += len(ids)
                return embed(ids)

        model.__class__ = Moving
    elif kind == "another model now":
        backfill.run(index, model, Settings(batch=50, stop_at=0.5))
        model.known = vectors(seed=1)
    elif kind == "nan":
        model.known.vectors[7] = np.nan
    return None


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("two models", SpecError, "a backfill to new is under way; finish it, or take it back"),
        ("two backfills", InfrastructureError, "another process backfills it"),
        ("missing", DataError, "3 ids have no item for new, e.g. 'x0000'; all others are done"),
        ("taken back", MovedError, "was taken back meanwhile; nothing more is done"),
        ("alias", MovedError, "its alias moved to elsewhere meanwhile"),
        ("another model now", DataError, "the alias was not moved, new gives another vector for 'x"),
        ("nan", DataError, "the vector of id 'x0007' holds NaN or infinity"),
    ],
)
def test_what_cannot_go_on_says_why(kind: str, error: type[GracefulError], message: str, index: Index) -> None:
    model = Model(vectors())
    held = altered(kind, index, model)
    with pytest.raises(error, match=re.escape(message)):
        backfill.run(index, model, Settings(batch=COUNT))
    if held is not None:
        held.__exit__(None, None, None)
    once(index, set(vectors().ids.tolist()))
    assert index.head().serving in ("old", "elsewhere")


def test_workers_share_a_backfill_and_pause(index: Index) -> None:
    model, states = Model(vectors()), list[str]()
    workers = [
        threading.Thread(
            target=lambda number=number: states.append(
                backfill.run(Index.open(index.place), model, Settings(batch=20, shard=(number, 2))).state
            )
        )
        for number in (0, 1)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(states) in (["moved", "stopped"], ["moved", "moved"])
    assert once(index, set(vectors().ids.tolist())) == {"old": 0, "new": COUNT}
    backfill.rollback(index)
    slept = list[float]()

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        backfill.pause(index)

    paused = backfill.run(index, model, Settings(batch=50, rate=25.0), sleep=sleep)
    assert (paused.state, paused.done) == ("paused", 50)
    assert 1.0 < slept[0] <= 2.0, "50 vectors at 25 a second take two seconds"
    assert backfill.run(index, model, Settings()).state == "moved"


def arguments(index: Index, tmp_path: Path, *more: str) -> list[str]:
    document = {
        "action": "run",
        "index": str(index.place),
        "source": {"vectors": str(tmp_path / "new.npz"), "space": None, "metric": "cosine"},
        **dict(pair.split("=") for pair in more),
    }
    document = {key: float(value) if key in ("rate", "stop_at") else value for key, value in document.items()}
    return [json.dumps({**document, "batch": 10})]


def test_a_killed_backfill_loses_and_doubles_nothing(tmp_path: Path, index: Index) -> None:
    """Real processes, killed wherever they are; the last one is not, and a full disk is survived on the way."""
    files.write(tmp_path / "new.npz", mapped(vectors()), NEW)
    expected = set(vectors().ids.tolist())
    command = [sys.executable, "-m", "graceful.programs", "backfill", "--output", "json"]
    env = {**os.environ, "GRACEFUL_HOME": str(tmp_path / "home")}
    slow = arguments(index, tmp_path, "rate=200")[0]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, env=env, text=True, stdout=subprocess.DEVNULL)
    assert process.stdin is not None
    process.stdin.write(slow)
    process.stdin.close()
    end = time.monotonic() + 300
    while index.head().counts.get("new", 0) < 20 and time.monotonic() < end:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    part = once(index, expected)
    assert 0 < part["new"] < COUNT
    hits = index.search({"old": vectors().vectors[:9], "new": mapped(vectors()).vectors[:9]}, k=1)
    assert hits.ids[:, 0].tolist() == vectors().ids[:9].tolist()
    fast = arguments(index, tmp_path)[0]
    with largest_file(700):
        full = subprocess.run(command, input=fast, env=env, text=True, capture_output=True, check=False)
    assert (full.returncode, full.stderr.count("cannot write")) == (4, 1), full.stderr
    assert once(index, expected)["old"] > 0
    done = subprocess.run(command, input=fast, env=env, text=True, capture_output=True, check=False)
    assert json.loads(done.stdout)["state"] == "moved", done.stderr
    assert once(index, expected) == {"old": 0, "new": COUNT}


def test_programs_say_how_far_a_backfill_is(tmp_path: Path, index: Index) -> None:
    files.write(tmp_path / "new.npz", mapped(vectors()), NEW)

    def act(action: str, **parts: Any) -> Any:
        document = {"action": action, "index": str(index.place), **parts}
        return backfilling.act(backfilling.Action.of(document), tmp_path)

    source = {"vectors": str(tmp_path / "new.npz")}
    assert act("status").document["state"] == "none"
    with pytest.raises(SpecError, match="--order traffic: needs how often each id was found"):
        act("run", source=source, order="traffic")
    (tmp_path / "traffic.json").write_text('{"x0001": "often"}')
    with pytest.raises(DataError, match="must be JSON that gives each id how often it was found"):
        act("run", source=source, order="traffic", traffic=str(tmp_path / "traffic.json"))
    with pytest.raises(SpecError, match="give the new model"):
        act("run")
    act("run", source=source, batch=60, stop_at=0.5)
    status = act("status").document
    assert (status["state"], status["done"], status["total"], status["fraction"]) == ("stopped", 150, COUNT, 0.5)
    assert status["vectors_per_second"] > 0
    assert not act("pause").document["running"]
    assert act("run", source=source).document["state"] == "moved"
    assert act("rollback").document["counts"] == {"old": COUNT, "new": 0}
    with pytest.raises(SpecError, match="no backfill was begun"):
        act("rollback")


def test_a_plan_predicts_what_a_backfill_takes_and_what_searches_are_worth(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(30), 10)
    centres = generator.normal(size=(30, 12))
    noisy = {
        name: (centres[labels] + spread * generator.normal(size=(COUNT, 12))).astype(np.float32)
        for name, spread in (("old", 1.2), ("new", 0.3))
    }
    made = replace(vectors(), vectors=noisy["old"], payload={"label": labels.astype(np.str_)})
    index = Index.create(tmp_path / "index", made, OLD)

    class Slow(Model):
        def __call__(self, ids: NDArray[np.str_]) -> Vectors:
            time.sleep(len(ids) / 2000)
            return self.known.take(np.isin(self.known.ids, ids))

    model = Slow(replace(made, vectors=noisy["new"]), space=Space.declared("new", 12))
    plan = backfill_plan.planned(index, model, Settings(rate=50.0), sample=COUNT, price=36.0)
    assert (plan["from"], plan["to"], plan["vectors"], plan["sample"]) == ("old", "new", COUNT, COUNT)
    assert 100 < plan["vectors_per_second"] < 2000
    assert plan["hours"] == pytest.approx(COUNT / 50 / 3600)
    assert plan["cost"] == pytest.approx(36 * COUNT / 50 / 3600)
    assert COUNT * 4 * 12 < plan["bytes"] < COUNT * (4 * 12 + 60)
    by_fraction = {point["fraction"]: point for point in plan["curve"] if point["order"] == "random"}
    assert by_fraction[0.0]["flips"] == 0.0
    assert by_fraction[0.0]["recall_at_1"] < by_fraction[0.1]["recall_at_1"] < by_fraction[1.0]["recall_at_1"]
    assert {point["order"] for point in plan["curve"]} == {"random", "distance", "uncertainty"}
    assert "hours" in backfill_plan.lines({**plan, "currency": "EUR"})["time"]
    assert index.head().number == 1, "a plan changes nothing"
    backfill.run(index, model, Settings())
    with pytest.raises(SpecError, match="all vectors are of new; there is nothing to backfill"):
        backfill_plan.planned(index, model, Settings(), sample=20)
