"""The loop without Ray on a tiny task: it learns, resumes, refuses and stops where it must."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from graceful import spec, targets, tasks
from graceful.errors import (
    CollapsedError,
    DataError,
    IntegrityError,
    NonFiniteError,
    SpecError,
    StorageError,
    TrainingError,
)
from graceful.models import bundle
from graceful.tasks.base import Task
from graceful.training import batches, trace
from graceful.training.collapse import HeldOut
from graceful.training.driver import TrainingJob, TrainingResult, train
from graceful.training.engine import TorchEngine
from graceful.training.job import claim
from graceful.training.sampler import Sampler
from graceful.training.stops import require_finite
from tests.support import training as support
from tests.support import training_task
from tests.support.runs import job_of

TASK = training_task.__file__


class StoppedError(Exception):
    """What a test raises in the middle of a run."""


def parse(
    *, options: dict[str, Any] | None = None, compatibility: dict[str, Any] | None = None, **train: Any
) -> spec.RefreshSpec:
    recipe = {
        "epochs": 3,
        "batch_size": 24,
        "optimizer": {"kind": "adamw", "lr": 0.02},
        "engine": {"kind": "torch"},
        "num_workers": 0,
    }
    return spec.parse(
        {
            "model": "blobs",
            "name": "v2",
            "task": {"kind": "python", "file": TASK, "options": options or {}},
            "train": {**recipe, **train},
            "compatibility": compatibility or {},
        }
    )


def losses(run_dir: Path) -> list[tuple[int, float]]:
    return [(row["step"], row["loss"]) for row in trace.read(run_dir / trace.FILE) if row["event"] == "step"]


def stop_at(step: int) -> Any:
    def progress(row: Mapping[str, object]) -> None:
        if row["event"] == "step" and row["step"] == step:
            raise StoppedError

    return progress


def test_training_learns_and_records_how(tmp_path: Path) -> None:
    rows: list[Mapping[str, object]] = []
    result = train(TrainingJob(spec=parse(), run_dir=tmp_path), progress=rows.append)
    assert result.validation_error < 0.2
    assert result.steps == 30
    assert [row["epoch"] for row in result.history] == [1, 2, 3]
    assert [row["event"] for row in rows].count("step") == 30
    assert rows[0]["batch"] == "1 ranks x 1 slices x 24 = 24"
    network = training_task.BlobNet(3)
    network.load_state_dict(load_file(result.weights))


def test_a_disk_that_is_full_when_a_checkpoint_is_written_is_said_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(self: TorchEngine, folder: Path) -> None:
        raise RuntimeError("unexpected pos 576 vs 534")

    monkeypatch.setattr(TorchEngine, "save", save)
    with pytest.raises(RuntimeError, match="unexpected pos"):
        train(TrainingJob(spec=parse(epochs=1), run_dir=tmp_path))
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=0))
    with pytest.raises(StorageError, match="cannot write a checkpoint, the disk is full; free some space"):
        train(TrainingJob(spec=parse(epochs=1), run_dir=tmp_path))


def test_a_loss_that_is_not_finite_of_finite_inputs_is_answered_by_a_lower_rate() -> None:
    with pytest.raises(NonFiniteError, match=r"step 5, epoch 1: loss task is inf, must be finite; lower train\.opt"):
        require_finite({"total": float("inf"), "task": float("inf")}, step=4, epoch=0)


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    job = TrainingJob(spec=parse(epochs=1), run_dir=tmp_path)
    first = train(job)
    assert train(job, progress=stop_at(1)) == first
    first.weights.write_bytes(b"other")
    with pytest.raises(IntegrityError, match=r"model\.safetensors: missing or changed since training ended"):
        train(job)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_run_that_stops_anywhere_ends_as_if_it_had_not(tmp_path: Path, accumulation: int) -> None:
    document = parse(checkpoint_every=4, accumulation=accumulation)
    whole = train(TrainingJob(spec=document, run_dir=tmp_path / "whole"))
    job = TrainingJob(spec=document, run_dir=tmp_path / "parts")
    for step in (2, 11, 19):
        with pytest.raises(StoppedError):
            train(job, progress=stop_at(step))
    last = train(job)
    assert last.resumed_from == 16
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert [row["validation_error"] for row in last.history] == [row["validation_error"] for row in whole.history]
    assert [row["train_error"] for row in last.history] == [row["train_error"] for row in whole.history]
    assert last.history[-1]["train_error"] < 0.3, "every slice counts"
    left, right = load_file(whole.weights), load_file(last.weights)
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_seeds_differ(tmp_path: Path) -> None:
    for seed in (0, 1):
        train(TrainingJob(spec=parse(epochs=1), run_dir=tmp_path / str(seed), seed=seed))
    assert losses(tmp_path / "0") != losses(tmp_path / "1")


def damage(run_dir: Path, step: int) -> None:
    path = run_dir / "checkpoints" / f"step-{step:09d}" / "engine.pt"
    path.write_bytes(path.read_bytes()[:-10])


def test_a_damaged_checkpoint_is_passed_over_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = train(TrainingJob(spec=parse(), run_dir=tmp_path / "whole"))
    job = TrainingJob(spec=parse(), run_dir=tmp_path / "parts")
    with pytest.raises(StoppedError):
        train(job, progress=stop_at(25))
    damage(job.run_dir, 20)
    with pytest.raises(StoppedError):
        train(job, progress=stop_at(15))
    assert re.fullmatch(
        r"checkpoint file .*step-000000020/engine\.pt has not the SHA-256 .{12}\.\.\. of its manifest;"
        r" going on from step-000000010, the steps since are trained again",
        caplog.messages[0],
    )
    result = train(job)
    assert result.resumed_from == 10
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert result.validation_error == whole.validation_error
    assert sorted(path.name for path in job.run_dir.glob("checkpoints/*")) == ["step-000000020", "step-000000030"]


@pytest.mark.parametrize(
    "engine", [{"kind": "torch"}, {"kind": "deepspeed", "zero_stage": 2}], ids=["torch", "deepspeed"]
)
def test_code_in_a_checkpoint_whose_manifest_was_made_anew_does_not_run(tmp_path: Path, engine: dict[str, Any]) -> None:
    job = TrainingJob(spec=parse(engine=engine), run_dir=tmp_path / "run")
    with pytest.raises(StoppedError):
        train(job, progress=stop_at(12))
    for path in (tmp_path / "run" / "checkpoints").rglob("*.pt"):
        support.plant(path, marker=tmp_path / "ran")
    with pytest.raises(IntegrityError, match=r"\.pt holds code \(posix\.system\), which is not run; delete the run's"):
        train(job)
    assert not (tmp_path / "ran").exists()


def test_checkpoints_that_are_all_damaged_end_the_run_with_the_newest_ones_name(tmp_path: Path) -> None:
    job = TrainingJob(spec=parse(), run_dir=tmp_path)
    with pytest.raises(StoppedError):
        train(job, progress=stop_at(25))
    damage(tmp_path, 10)
    damage(tmp_path, 20)
    with pytest.raises(
        IntegrityError, match=r"step-000000020/engine\.pt has not the SHA-256 .*; delete the run's folder"
    ):
        train(job)


def test_a_checkpoint_of_another_spec_is_refused_even_if_the_folder_forgot_whose_it_is(tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        train(TrainingJob(spec=parse(), run_dir=tmp_path), progress=stop_at(15))
    (tmp_path / "spec.json").unlink()
    with pytest.raises(SpecError, match="checkpoint of another spec; choose another name"):
        train(TrainingJob(spec=parse(epochs=4), run_dir=tmp_path))


def test_a_loss_that_is_not_finite_stops_before_its_step(tmp_path: Path) -> None:
    document = parse(options={"poison": 5})
    poisoned = Sampler(samples=240, batch_size=24, accumulation=1, world_size=1, seed=0).epoch(0)[4, 0, 0, 0]
    with pytest.raises(NonFiniteError) as caught:
        train(TrainingJob(spec=document, run_dir=tmp_path))
    assert caught.value.message == (
        f"step 5, epoch 1: loss task is nan: sample 'train/{poisoned:03d}' of train holds NaN or infinity after"
        " transform(); correct the data, or transform()"
    )
    assert caught.value.facts["step"] == 5
    assert len(losses(tmp_path)) == 4
    assert not (tmp_path / "training.json").exists()


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Task]:
    """The task with so many validation samples that chance can be told from bad luck."""
    monkeypatch.setitem(training_task.SIZES, "validation", 600)
    return training_task.task


GUESSING = {"kind": "sgd", "lr": 1e-9, "momentum": 0.0, "nesterov": False}


def test_a_run_at_chance_is_a_collapse(tmp_path: Path, many: Callable[[int], Task]) -> None:
    document = parse(options={"classes": 40}, optimizer=GUESSING, epochs=5)
    said = r"epoch 3: validation error is 0\.9\d+ \(5\d\d of 600\), twice in a row at least 0\.926, where chance begins"
    with pytest.raises(CollapsedError, match=said):
        train(TrainingJob(spec=document, run_dir=tmp_path, task=many(40)))
    assert [row["epoch"] for row in trace.read(tmp_path / trace.FILE) if row["event"] == "epoch"] == [1, 2, 3]


def test_sixty_validation_samples_of_four_classes_are_too_few_to_show_a_collapse(tmp_path: Path) -> None:
    result = train(TrainingJob(spec=parse(options={"classes": 4}, optimizer=GUESSING), run_dir=tmp_path))
    assert result.steps == 30
    assert [row["validation_error"] for row in result.history] == [0.75, 0.75, 0.75]


def test_a_slow_start_is_no_collapse(tmp_path: Path, many: Callable[[int], Task]) -> None:
    slow = {"kind": "sgd", "lr": 0.004, "momentum": 0.9}
    document = parse(options={"classes": 30}, optimizer=slow, epochs=12)
    result = train(TrainingJob(spec=document, run_dir=tmp_path, task=many(30)))
    errors = [row["validation_error"] for row in result.history]
    assert all(HeldOut(wrong=round(600 * error), n=600, classes=30).at_chance for error in errors[1:3])
    assert result.validation_error < 0.9


def test_data_smaller_than_a_batch_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"at most the 240 training samples, got 300"):
        train(TrainingJob(spec=parse(batch_size=300), run_dir=tmp_path))


def test_a_run_out_of_time_says_so_and_resumes(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"train\.timeout: not done after 1e-06 seconds; raise it"):
        train(TrainingJob(spec=parse(epochs=1, timeout=1e-6), run_dir=tmp_path))
    assert train(TrainingJob(spec=parse(epochs=1), run_dir=tmp_path)).steps == 10


def test_training_inline_imports_neither_ray_nor_deepspeed(tmp_path: Path) -> None:
    before = {name for name in ("ray", "deepspeed") if name in sys.modules}
    train(TrainingJob(spec=parse(epochs=1), run_dir=tmp_path))
    assert {name for name in ("ray", "deepspeed") if name in sys.modules} == before


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("old")
    document = parse(epochs=1).model_copy(update={"name": "v1"})
    result = train(TrainingJob(spec=document, run_dir=folder))
    network = training_task.BlobNet(3)
    network.load_state_dict(load_file(result.weights))
    bundle.save(folder / "model", network=network, spec=document, classes=("blob-0", "blob-1", "blob-2"))
    return folder / "model"


def test_a_folder_with_other_predecessors_or_references_is_refused(tmp_path: Path, old: Path) -> None:
    first = TrainingJob(spec=parse(), run_dir=tmp_path)
    claim(first)
    with pytest.raises(SpecError, match=r"predecessors: run .* was started with \[\], now it is"):
        claim(job_of(first.spec, tmp_path, [old]))
    with pytest.raises(SpecError, match=r"references: run .* was started with \[\], now it is"):
        claim(replace(first, references=(tmp_path / "cache",)))


LOSSES = [
    {"kind": "focal_distillation"},
    {"kind": "focal_distillation", "focus": "negative_flip"},
    {"kind": "influence"},
    {"kind": "embedding_regression"},
    {"kind": "logit_displacement"},
    {"kind": "reweighting"},
]


def cached(document: spec.RefreshSpec, folder: Path, root: Path) -> Path:
    train_samples = tasks.build(document.task).samples("train")
    views = targets.key_views(train_samples.ids, seed=document.train.seed, count=document.compatibility.targets.views)
    predecessor = bundle.load(folder, augment_like=document.task)
    return targets.build(predecessor, train_samples, views=views, root=root).folder


def constrained(document: spec.RefreshSpec, run_dir: Path, old: Path, cache: Path | None) -> TrainingResult:
    return train(job_of(document, run_dir, (old,), (cache,)))


def test_every_loss_trains_against_a_cached_predecessor(tmp_path: Path, old: Path) -> None:
    document = parse(compatibility={"losses": LOSSES, "targets": {"views": 2}})
    result = constrained(document, tmp_path / "run", old, cached(document, old, tmp_path / "targets"))
    assert result.validation_error < 0.3
    parts = {
        name for row in trace.read(tmp_path / "run" / trace.FILE) if row["event"] == "step" for name in row["parts"]
    }
    assert parts == {
        "task",
        "focal_distillation/v1",
        "focal_distillation-2/v1",
        "influence/v1",
        "embedding_regression/v1",
        "logit_displacement/v1",
    }


def test_a_resumed_run_keeps_the_running_mean_of_a_focus_that_follows_it(tmp_path: Path, old: Path) -> None:
    focal = {"kind": "focal_distillation", "focus": "negative_flip", "weight": 3.0}
    document = parse(compatibility={"losses": [focal], "targets": {"mode": "live"}}, checkpoint_every=4)
    constrained(document, tmp_path / "whole", old, None)
    job = job_of(document, tmp_path / "parts", (old,), (None,))
    with pytest.raises(StoppedError):
        train(job, progress=stop_at(14))
    assert train(job).resumed_from == 12
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


def test_cached_and_live_predecessors_give_the_same_run(tmp_path: Path, old: Path) -> None:
    section = {"losses": [{"kind": "focal_distillation", "weight": 5.0, "focus": "all"}], "targets": {"views": 3}}
    document = parse(compatibility=section)
    constrained(document, tmp_path / "cached", old, cached(document, old, tmp_path / "targets"))
    live = parse(compatibility={**section, "targets": {"views": 3, "mode": "live"}})
    constrained(live, tmp_path / "live", old, None)
    left, right = losses(tmp_path / "cached"), losses(tmp_path / "live")
    np.testing.assert_allclose([loss for _, loss in left], [loss for _, loss in right], rtol=2e-3)
    free = train(job_of(document, tmp_path / "free", (old,), constrained=False))
    assert free.steps == 30
    assert losses(tmp_path / "free") != left


def second(folder: Path, old: Path) -> Path:
    """Another version, of other weights and another order of classes."""
    torch.manual_seed(5)
    document = parse().model_copy(update={"name": "v0"})
    classes = ("blob-2", "blob-0", "blob-1")
    bundle.save(folder / "v0", network=training_task.BlobNet(3), spec=document, classes=classes)
    return folder / "v0"


def test_cached_predecessors_merge_into_one_term_and_train_as_live_ones(tmp_path: Path, old: Path) -> None:
    section = {"losses": [{"kind": "focal_distillation", "weight": 5.0}], "targets": {"views": 2}}
    document = parse(compatibility=section)
    chain = (old, second(tmp_path, old))
    caches = tuple(cached(document, folder, tmp_path / "targets") for folder in chain)
    train(job_of(document, tmp_path / "cached", chain, caches))
    live = parse(compatibility={**section, "targets": {"views": 2, "mode": "live"}})
    train(job_of(live, tmp_path / "live", chain, (None, None)))
    rows = [
        [row for row in trace.read(tmp_path / name / trace.FILE) if row["event"] == "step"]
        for name in ("cached", "live")
    ]
    assert set(rows[0][0]["parts"]) == {"task", "focal_distillation/chain"}
    assert set(rows[1][0]["parts"]) == {"task", "focal_distillation/v1", "focal_distillation/v0"}
    cached_norms, live_norms = ([row["grad_norm"] for row in every[:10]] for every in rows)
    np.testing.assert_allclose(cached_norms, live_norms, rtol=5e-3)


def test_the_weights_of_a_cached_predecessor_may_be_gone(tmp_path: Path, old: Path) -> None:
    section = {"losses": [{"kind": "focal_distillation"}], "targets": {"views": 2}}
    document = parse(compatibility=section, epochs=1)
    chain = (old, second(tmp_path, old))
    caches = tuple(cached(document, folder, tmp_path / "targets") for folder in chain)
    (chain[1] / "model.safetensors").unlink()
    train(job_of(document, tmp_path / "run", chain, caches))
    with_head = parse(compatibility={**section, "losses": [{"kind": "influence"}]}, epochs=1)
    (chain[1] / "head.safetensors").unlink()
    with pytest.raises(DataError, match="cannot be run, its weights are gone"):
        train(job_of(with_head, tmp_path / "head", chain, caches))


def test_reference_runs_join_the_loss(tmp_path: Path, old: Path) -> None:
    document = parse(compatibility={"reference": {"runs": 1}, "targets": {"views": 2}})
    cache = cached(document, old, tmp_path / "targets")
    train(TrainingJob(spec=document, run_dir=tmp_path / "run", references=(cache,)))
    row = next(row for row in trace.read(tmp_path / "run" / trace.FILE) if row["event"] == "step")
    assert set(row["parts"]) == {"task", "reference"}


def test_epochs_see_new_views_and_keyed_runs_cycle_through_them(tmp_path: Path, old: Path) -> None:
    document = parse(compatibility={"losses": [{"kind": "focal_distillation"}], "targets": {"views": 2}})
    cache = cached(document, old, tmp_path)
    task = tasks.build(document.task)
    positions = np.arange(5)

    keyed_job = job_of(document, tmp_path, (old,), (cache,))
    keyed = batches.gather(keyed_job, task, device=torch.device("cpu"))
    inputs = [keyed.slice(positions, epoch=epoch).batch for epoch in range(4)]
    assert torch.equal(inputs[0], inputs[2])
    assert torch.equal(inputs[1], inputs[3])
    assert not torch.equal(inputs[0], inputs[1])

    free = batches.gather(TrainingJob(spec=parse(), run_dir=tmp_path), task, device=torch.device("cpu"))
    inputs = [free.slice(positions, epoch=epoch).batch for epoch in range(4)]
    assert not any(torch.equal(inputs[0], other) for other in inputs[1:])
