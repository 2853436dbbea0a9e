"""Schedule, sampler, trace, checkpoints, identity of a run: the parts of training that need no network."""

from __future__ import annotations

import json
import pickle
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graceful import spec, tasks
from graceful.chain import on_device
from graceful.errors import IntegrityError, SpecError
from graceful.models import bundle
from graceful.storage import write_text
from graceful.training import checkpoint, job, trace
from graceful.training import sampler as sampler_module
from graceful.training.permutation import permuted
from graceful.training.sampler import Sampler, shard
from graceful.training.schedule import learning_rate
from tests.support.runs import predecessors


def rates(total: int, **options: object) -> list[float]:
    return [learning_rate(step, total=total, base=1.0, **options) for step in range(total)]  # type: ignore[arg-type]


def test_learning_rate_rises_then_falls_along_a_cosine() -> None:
    found = rates(10, warmup=0.2)
    assert found[:3] == [0.5, 1.0, 1.0]
    assert found[6] == pytest.approx(0.5)
    assert found[9] == pytest.approx(0.5 * (1.0 + np.cos(np.pi * 7 / 8)))


def test_learning_rate_is_constant_after_the_warm_up() -> None:
    assert rates(4, warmup=0.5, schedule="constant") == [0.5, 1.0, 1.0, 1.0]


@given(st.integers(1, 300), st.floats(0.0, 1.0), st.sampled_from(["cosine", "constant"]))
def test_every_step_has_a_rate_above_zero_and_at_most_the_base(total: int, warmup: float, schedule: str) -> None:
    found = rates(total, warmup=warmup, schedule=schedule)
    assert all(0.0 < rate <= 1.0 for rate in found)


def test_there_is_no_rate_after_the_last_step() -> None:
    with pytest.raises(ValueError, match=r"step must be in \[0, 5\), got 5"):
        learning_rate(5, total=5, base=1.0, warmup=0.0)


def sampler(**changes: int) -> Sampler:
    values = {"samples": 100, "batch_size": 24, "accumulation": 2, "world_size": 3, "seed": 1, **changes}
    return Sampler(**values)  # type: ignore[arg-type]


def test_an_epoch_draws_every_sample_at_most_once_and_leaves_out_less_than_a_batch() -> None:
    order = sampler().epoch(0)
    assert order.shape == (4, 2, 3, 4)
    assert len(np.unique(order)) == 96
    assert order.min() >= 0
    assert order.max() < 100


def test_the_same_samples_meet_in_a_step_however_they_are_cut() -> None:
    whole = sampler(accumulation=1, world_size=1).epoch(3).reshape(4, -1)
    cut = sampler().epoch(3).reshape(4, -1)
    np.testing.assert_array_equal(whole, cut)


def test_epochs_and_seeds_differ_and_repeat() -> None:
    first = sampler().epoch(0)
    np.testing.assert_array_equal(first, sampler().epoch(0))
    assert not np.array_equal(first, sampler().epoch(1))
    assert not np.array_equal(first, sampler(seed=2).epoch(0))


def test_a_batch_larger_than_the_data_is_refused_with_the_bound() -> None:
    with pytest.raises(SpecError, match=r"train\.batch_size must be at most the 20 training samples, got 24"):
        sampler(samples=20)


def test_a_batch_that_does_not_divide_is_refused_with_a_remedy() -> None:
    with pytest.raises(SpecError, match=r"must divide by workers x accumulation = 6, got 25; write 24"):
        sampler(batch_size=25)


@given(st.integers(0, 200), st.integers(1, 5), st.integers(1, 40))
def test_shards_cover_everything_once_in_equally_many_batches(count: int, world_size: int, size: int) -> None:
    shards = [shard(count, rank=rank, world_size=world_size, size=size) for rank in range(world_size)]
    assert len({len(one) for one in shards}) == 1
    every = [position for one in shards for batch in one for position in batch]
    assert sorted(every) == list(range(count))
    assert all(len(batch) <= size for one in shards for batch in one)


def step(number: int) -> dict[str, object]:
    return {"event": "step", "step": number, "loss": 0.5}


def start(number: int) -> dict[str, object]:
    return {"event": "start", "step": number, "pids": [1]}


def write(path: Path, *, at: int, rows: list[dict[str, object]]) -> None:
    writer = trace.Trace(path, step=at)
    for row in rows:
        writer.write(row)
    writer.close()


def test_a_resumed_trace_is_cut_at_its_step(tmp_path: Path) -> None:
    path = tmp_path / trace.FILE
    write(path, at=0, rows=[start(0), step(1), step(2), step(3)])
    write(path, at=2, rows=[start(2), step(3)])
    assert trace.read(path) == [start(0), step(1), step(2), start(2), step(3)]
    write(path, at=0, rows=[start(0)])
    assert trace.read(path) == [start(0)]


def test_a_half_written_row_is_left_out(tmp_path: Path) -> None:
    path = write_text(tmp_path / trace.FILE, json.dumps(step(1)) + '\n{"event": "st')
    assert trace.read(path) == [step(1)]


def test_a_follower_reports_new_rows_once_and_restarts_from_their_start(tmp_path: Path) -> None:
    path = tmp_path / trace.FILE
    follower = trace.Follower(path)
    assert list(follower.rows()) == []
    write(path, at=0, rows=[start(0), step(1)])
    assert list(follower.rows()) == [start(0), step(1)]
    assert list(follower.rows()) == []
    with path.open("a") as file:
        file.write(json.dumps(step(2)) + "\n" + '{"event"')
    assert list(follower.rows()) == [step(2)]
    write(path, at=1, rows=[start(1), step(2)])
    assert list(follower.rows()) == [start(1), step(2)]


def test_a_follower_does_not_repeat_what_an_earlier_run_wrote(tmp_path: Path) -> None:
    path = tmp_path / trace.FILE
    write(path, at=0, rows=[start(0), step(1)])
    assert list(trace.Follower(path).rows()) == []


def sealed(folder: Path) -> Path:
    for rank in range(2):
        part = folder / f"part{rank}"
        part.mkdir(parents=True)
        (part / f"shard{rank}.pt").write_bytes(bytes([rank]) * 100)
        checkpoint.seal(part, state={"step": 3}, rank=rank, world_size=2)
    merged = folder / "merged"
    merged.mkdir()
    for path in folder.glob("part*/*"):
        path.rename(merged / path.name)
    return merged


def test_a_whole_checkpoint_verifies_to_its_state(tmp_path: Path) -> None:
    assert checkpoint.verify(sealed(tmp_path)) == {"step": 3}


@pytest.mark.parametrize("name", ["shard0.pt", "shard1.pt", "state.json", "manifest-00001.json"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "flipped"])
def test_a_damaged_checkpoint_is_refused_by_name(tmp_path: Path, name: str, damage: str) -> None:
    folder = sealed(tmp_path)
    path = folder / name
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(data[:-7] if damage == "truncated" else bytes([data[0] ^ 1]) + data[1:])
    with pytest.raises(IntegrityError, match=rf"checkpoint file .*{name} .*; delete the run's folder"):
        checkpoint.verify(folder)


def publish(root: Path, *steps: int) -> None:
    for step in steps:
        part = root / ".part"
        part.mkdir()
        checkpoint.seal(part, state={"step": step}, rank=0, world_size=1)
        checkpoint.publish(part, root=root, step=step)


def steps(root: Path) -> list[str]:
    return [path.name for path in sorted(root.glob("step-*"))]


def test_published_checkpoints_replace_their_step_and_drop_the_oldest(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path) is None
    publish(tmp_path, 5, 10, 10, 20)
    assert steps(tmp_path) == ["step-000000010", "step-000000020"]
    assert checkpoint.latest(tmp_path) == tmp_path / "step-000000020"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"world_size": 0, "files": {}}', '{"world_size": 1, "files": []}'])
def test_the_newest_whole_checkpoint_is_the_latest(tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str) -> None:
    publish(tmp_path, 10, 20)
    (tmp_path / "step-000000020" / "manifest-00000.json").write_text(text, encoding="utf-8")
    assert checkpoint.latest(tmp_path) == tmp_path / "step-000000010"
    (said,) = caplog.messages
    assert said.startswith(f"checkpoint file {tmp_path}/step-000000020/manifest-00000.json ")
    assert said.endswith("; going on from step-000000010, the steps since are trained again")


def test_without_any_whole_checkpoint_the_newest_ones_damage_is_told(tmp_path: Path) -> None:
    publish(tmp_path, 10, 20)
    for path in tmp_path.glob("step-*/state.json"):
        path.unlink()
    with pytest.raises(IntegrityError, match=r"step-000000020/state\.json is missing; delete the run's folder"):
        checkpoint.latest(tmp_path)


def test_a_damaged_checkpoint_goes_when_the_run_has_passed_the_one_before_it(tmp_path: Path) -> None:
    publish(tmp_path, 10, 20, 15)
    assert steps(tmp_path) == ["step-000000010", "step-000000015"]


def training_job(folder: Path, **train: object) -> job.TrainingJob:
    document = {"model": "m", "name": "v1", "task": {"kind": "digits"}, "train": train}
    return job.TrainingJob(spec=spec.parse(document), run_dir=folder)


def test_a_folder_belongs_to_the_job_that_claimed_it(tmp_path: Path) -> None:
    digest = job.claim(training_job(tmp_path))
    assert job.claim(training_job(tmp_path, timeout=5.0, max_failures=0)) == digest
    with pytest.raises(SpecError, match=r"train\.optimizer\.lr: run .* was started with 0\.05, now it is 0\.1; choose"):
        job.claim(training_job(tmp_path, optimizer={"lr": 0.1}))


def test_a_job_sent_to_a_worker_arrives_with_closed_versions_that_are_still_one(tmp_path: Path) -> None:
    plain = training_job(tmp_path / "run")
    task = tasks.build(plain.spec.task)
    bundle.save(tmp_path / "v0", network=task.network(task.classes), spec=plain.spec, classes=task.classes)
    (old,) = predecessors(plain.spec, [tmp_path / "v0"], [tmp_path / "cache"])
    here = old.stored.open()
    assert here is old.stored.whole()
    assert next(on_device(here, torch.device("meta")).network.parameters()).is_meta
    assert not next(here.network.parameters()).is_meta, "a copy moves, not what evaluation will use"
    sent = replace(plain, predecessors=(old,), start=old.stored, task=task).portable()
    arrived = pickle.loads(pickle.dumps(sent))  # noqa: S301  our own bytes
    assert arrived.start is arrived.predecessors[0].stored
    assert arrived.identity() == sent.identity()
    assert arrived.start.open() is not here
    assert arrived.start.open().digest == here.digest


def test_a_seed_of_its_own_makes_another_job(tmp_path: Path) -> None:
    plain = training_job(tmp_path)
    job.claim(plain)
    other = job.TrainingJob(spec=plain.spec, run_dir=tmp_path, seed=3)
    with pytest.raises(SpecError, match=r"train\.seed: run .* was started with 0, now it is 3"):
        job.claim(other)


def test_a_finished_run_whose_weights_changed_is_refused(tmp_path: Path) -> None:
    done = training_job(tmp_path)
    assert job.finished(done) is None
    (tmp_path / job.WEIGHTS).write_bytes(b"weights")
    outcome = {"steps": 4, "validation_error": 0.5, "resumed_from": None}
    digest = "48f6b8e1b0b1a7c0"
    with pytest.raises(IntegrityError):
        job.record(done, {**outcome, "weights_sha256": digest}, seconds=1.0)


@pytest.mark.parametrize("count", [2, 3, 17, 1000, 4097])
def test_a_permutation_that_is_computed_place_by_place_is_one(count: int) -> None:
    order = permuted(np.arange(count), count=count, key=(0, 3))
    assert sorted(order.tolist()) == list(range(count))
    np.testing.assert_array_equal(permuted(np.arange(count)[::-1], count=count, key=(0, 3)), order[::-1])
    if count > 100:
        moved = np.abs(np.corrcoef(order, np.arange(count))[0, 1])
        assert moved < 4 / np.sqrt(count)
        assert (permuted(np.arange(count), count=count, key=(0, 4)) == order).mean() < 0.05


def test_slices_are_those_of_the_epoch_and_cost_no_memory_for_many_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    for most in (sampler_module.IN_MEMORY, 10):  # as an array, and place by place
        monkeypatch.setattr(sampler_module, "IN_MEMORY", most)
        for rank in range(2):
            order = sampler().slices(3, first_step=1, rank=rank)
            expected = sampler().epoch(3)[1:, :, rank].reshape(-1, sampler().slice_size)
            np.testing.assert_array_equal(np.stack(list(order)), expected)
    many = Sampler(samples=10**8, batch_size=1000, accumulation=1, world_size=1, seed=0)
    tracemalloc.start()
    try:
        order = many.slices(0, first_step=50_000, rank=0)
        last = order[len(order) - 1]
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    assert len(order) == 50_000
    assert len(set(last.tolist())) == 1000
