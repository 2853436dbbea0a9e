"""Adaptive training, inline on a tiny task: multipliers move, resume to the bit, and the best checkpoint is kept."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from graceful import spec, targets, tasks
from graceful.chain.contract import Contract
from graceful.errors import DataError, SpecError
from graceful.models import bundle, bundle_files
from graceful.models.base import Forward
from graceful.programs.preparation.contract import Unconstrained, ask, contract, near_chance
from graceful.storage import sha256_file
from graceful.training import batches, trace
from graceful.training.budget_multipliers import BudgetMultipliers
from graceful.training.driver import TrainingJob, train
from graceful.training.job import claim
from tests.support import runs, training_task
from tests.support.runs import contract_of
from tests.support.runs import train as train_version

TASK = training_task.__file__
WEIGHTING = {
    "kind": "adaptive",
    "reference_error": 0.2,
    "bounds": {"v1": 0.18, "v0": 0.15},
    "infeasible": "skip",
    "start": 1.0,
    "step": 0.5,
    "error_margin": 0.03,
}


class StoppedError(Exception):
    """What a test raises in the middle of a run."""


def parse(name: str = "v2", weighting: dict[str, Any] | None = None, **train: Any) -> spec.RefreshSpec:
    recipe = {
        "epochs": 4,
        "batch_size": 24,
        "optimizer": {"kind": "adamw", "lr": 0.02},
        "engine": {"kind": "torch"},
        "num_workers": 0,
    }
    compatibility = {
        "against": "all",
        "losses": [{"kind": "focal_distillation", "weight": 3.0}],
        "targets": {"views": 2},
        "weighting": weighting or WEIGHTING,
    }
    document = {"model": "blobs", "name": name, "task": {"kind": "python", "file": TASK}}
    return spec.parse({**document, "train": {**recipe, **train}, "compatibility": compatibility})


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    """v1, trained for one epoch, and v0, random."""
    folder = tmp_path_factory.mktemp("chain")
    free = parse("v1", epochs=1)
    weights = train(TrainingJob(spec=free, run_dir=folder / "run", constrained=False)).weights
    torch.manual_seed(5)
    trained, random = training_task.BlobNet(3), training_task.BlobNet(3)
    trained.load_state_dict(load_file(weights))
    classes = ("blob-0", "blob-1", "blob-2")
    bundle.save(folder / "v1", network=trained, spec=free, classes=classes)
    bundle.save(folder / "v0", network=random, spec=parse("v0"), classes=classes)
    return folder / "v1", folder / "v0"


def job(document: spec.RefreshSpec, run_dir: Path, chain: tuple[Path, ...], root: Path) -> TrainingJob:
    task = tasks.build(document.task)
    versions = [bundle.load(folder, augment_like=document.task) for folder in chain]
    samples = task.samples("train")
    views = targets.key_views(samples.ids, seed=document.train.seed, count=2)
    weighting = document.compatibility.weighting
    assert isinstance(weighting, spec.Adaptive)
    return TrainingJob(
        spec=document,
        run_dir=run_dir,
        predecessors=runs.predecessors(
            document, chain, [targets.build(one, samples, views=views, root=root).folder for one in versions]
        ),
        contract=contract(weighting, ask(task, versions, batch_size=64), references=()),
    )


def epochs(run_dir: Path) -> list[dict[str, Any]]:
    return [row for row in trace.read(run_dir / trace.FILE) if row["event"] == "epoch"]


def test_every_epoch_says_what_it_measured_and_how_strongly_each_predecessor_pulls(tmp_path: Path, chain: Any) -> None:
    wanted = job(parse(), tmp_path / "run", chain, tmp_path)
    assert [str(budget.status) for budget in wanted.contract.budgets] == ["active", "active"]
    train(wanted)
    rows = epochs(tmp_path / "run")
    assert rows[0]["multipliers"] == {"v1": 1.0, "v0": 0.0}
    for before, after in pairwise(rows):
        assert before["next_multipliers"] == after["multipliers"]
    assert any(row["multipliers"] != rows[0]["multipliers"] for row in rows)
    assert set(rows[0]["conflict"]) == {"focal_distillation/chain"}
    constraint = tasks.build(parse().task).samples("constraint")
    assert all(round(row["constraint_error"] * len(constraint), 6).is_integer() for row in rows)


def test_the_conflict_of_an_epoch_is_that_of_the_multipliers_it_was_trained_with(tmp_path: Path, chain: Any) -> None:
    bounds = {"bounds": {"v1": 0.18, "v0": 0.08}}
    wanted = job(parse(weighting=WEIGHTING | bounds), tmp_path / "run", chain, tmp_path)
    train(wanted)
    rows = epochs(tmp_path / "run")
    materials = batches.gather(wanted, tasks.build(wanted.spec.task), device=torch.device("cpu"))
    for row in rows:
        materials.remix(row["multipliers"])
        assert row["conflict"] == pytest.approx(materials.conflicts())
    assert [row["epoch"] for row in rows if row["conflict"]["focal_distillation/chain"] > 0.01] == [2]


@pytest.mark.parametrize("checkpoint_every", [4, None])
def test_a_run_that_is_killed_has_the_same_multipliers_and_weights(
    tmp_path: Path, chain: Any, checkpoint_every: int | None
) -> None:
    document = parse(checkpoint_every=checkpoint_every)
    whole = train(job(document, tmp_path / "whole", chain, tmp_path))
    parts = job(document, tmp_path / "parts", chain, tmp_path)
    for step in (13, 27, 33):

        def stop(row: Any, step: int = step) -> None:
            if row["event"] == "step" and row["step"] == step:
                raise StoppedError

        with pytest.raises(StoppedError):
            train(parts, progress=stop)
    resumed = train(parts)
    volatile = {"seconds", "time_shares", "samples_per_second_per_worker", "tflops_per_second_per_worker"}
    left, right = (
        [{key: value for key, value in row.items() if key not in volatile} for row in epochs(tmp_path / name)]
        for name in ("whole", "parts")
    )
    assert left == right
    assert sha256_file(whole.weights) == sha256_file(resumed.weights)
    assert whole.validation_error == resumed.validation_error


def test_the_kept_weights_are_those_of_the_best_feasible_epoch(tmp_path: Path, chain: Any) -> None:
    wanted = job(parse(), tmp_path / "run", chain, tmp_path)
    result = train(wanted)
    rows = epochs(tmp_path / "run")
    feasible = [row for row in rows if row["nfr"]["v1"] <= 0.18 and row["nfr"]["v0"] <= 0.15]
    assert feasible
    assert result.validation_error == min(row["validation_error"] for row in feasible)


def test_a_run_is_held_to_the_constraint_data_it_began_with(tmp_path: Path, chain: Any) -> None:
    first = job(parse(), tmp_path / "run", chain, tmp_path)
    made = first.contract
    assert made is not None
    digest = claim(first)
    assert claim(first) == digest
    measured_elsewhere = replace(made, reference_error=made.reference_error + 1e-4, pace=(2.0,))
    assert claim(replace(first, contract=measured_elsewhere)) == digest
    with pytest.raises(SpecError, match=r"contract\.data: run run was started with"):
        claim(replace(first, contract=replace(made, data="0" * 64)))


class Relabelled(training_task.Blobs):
    """The same task after its constraint split was relabelled."""

    def samples(self, split: Any) -> Any:
        found = super().samples(split)
        if split != "constraint":
            return found
        return replace(found, labels=(found.labels + 1) % 3, digest=found.digest[::-1])


def test_other_constraint_data_leave_the_record_of_a_finished_run_alone(tmp_path: Path, chain: Any) -> None:
    document = parse(weighting={"kind": "adaptive", "bounds": {"v1": 0.9, "v0": 0.9}, "reference_error": 0.2}, epochs=1)
    train_version(document, run_dir=tmp_path / "run", home=tmp_path, ancestors=chain)
    before = (tmp_path / "run" / "contract.json").read_bytes()
    changed = Relabelled(classes=3, die_in_rank=0, die_at=None, marker=None, poison=None)
    with pytest.raises(SpecError, match=r"contract\.data: run run was started with"):
        train_version(document, run_dir=tmp_path / "run", home=tmp_path, ancestors=chain, task=changed)
    assert (tmp_path / "run" / "contract.json").read_bytes() == before


def fed(multipliers: BudgetMultipliers, flips: list[int], errors: int, *, validation: float) -> bool:
    counts = torch.tensor([*flips, errors])
    return multipliers.advance(counts, epoch=0, validation_error=validation)[1]


def test_counts_of_two_ranks_move_like_those_of_one(tmp_path: Path, chain: Any) -> None:
    wanted = job(parse(), tmp_path, chain, tmp_path)
    task = tasks.build(wanted.spec.task)
    samples, network = task.samples("constraint"), training_task.opened(chain[1])
    assert wanted.contract is not None
    multipliers = BudgetMultipliers(wanted.contract, wanted.spec.compatibility.weighting, samples)  # type: ignore[arg-type]

    forward = Forward(network.network)
    every = np.arange(len(samples))
    one = multipliers.count(task, [every], forward=forward, device=torch.device("cpu"))
    two = [multipliers.count(task, [every[rank::2]], forward=forward, device=torch.device("cpu")) for rank in (0, 1)]
    assert torch.equal(one, sum(two))
    assert one[1] == 0, "nobody flips against oneself"


def test_state_survives_a_checkpoint_and_another_chain_is_refused(tmp_path: Path, chain: Any) -> None:
    wanted = job(parse(), tmp_path, chain, tmp_path)
    samples = tasks.build(wanted.spec.task).samples("constraint")
    made: Contract | None = wanted.contract
    assert made is not None
    rule: Any = wanted.spec.compatibility.weighting
    first, second = BudgetMultipliers(made, rule, samples), BudgetMultipliers(made, rule, samples)
    assert fed(first, [30, 2], 20, validation=0.3)
    assert not fed(first, [30, 2], 20, validation=0.4)
    second.load_state_dict(first.state_dict())
    assert second.strengths == first.strengths
    assert second.state_dict() == first.state_dict()
    assert fed(first, [0, 0], 5, validation=0.9) == fed(second, [0, 0], 5, validation=0.9)
    renamed = contract_of([replace(one, name=f"{one.name}x") for one in made.budgets])
    with pytest.raises(SpecError, match="the checkpoint has multipliers of"):
        BudgetMultipliers(replace(renamed, data=made.data), rule, samples).load_state_dict(first.state_dict())
    with pytest.raises(DataError, match="constraint split: SHA-256 must be"):
        BudgetMultipliers(replace(made, data="0" * 64), rule, samples)


@pytest.mark.parametrize("known", [{"reference_error": 0.2}, {}], ids=["error given", "too few ids"])
def test_an_infeasible_budget_is_refused_before_anything_is_trained(tmp_path: Path, chain: Any, known: Any) -> None:
    weighting = {"kind": "adaptive", "bounds": {"v1": 0.01, "v0": 0.15}, **known}
    document = parse(weighting=weighting)
    reference = document.compatibility.model_copy(update={"reference": spec.Reference()})
    document = document.model_copy(update={"compatibility": reference})
    with pytest.raises(SpecError, match=r"v1: a budget of 1\.00 % "):
        train_version(document, run_dir=tmp_path / "run", home=tmp_path, ancestors=chain)
    assert list(tmp_path.iterdir()) == []


def test_every_budget_is_told_before_training(tmp_path: Path, chain: Any) -> None:
    document = parse(weighting={"kind": "adaptive", "bounds": {"v1": 0.9, "v0": 0.9}}, epochs=1)
    told: list[Any] = []
    train_version(document, run_dir=tmp_path / "run", home=tmp_path, ancestors=chain, progress=told.append)
    budgets = {row["version"]: row for row in told if row.get("stage") == "budget"}
    assert {name: (row["budget"], row["status"]) for name, row in budgets.items()} == {
        "v1": (0.9, "vacuous"),
        "v0": (0.9, "vacuous"),
    }


def test_budgets_are_measured_against_an_unconstrained_run_of_the_same_recipe(tmp_path: Path, chain: Any) -> None:
    slow = {"kind": "adamw", "lr": 0.0005}
    document = parse(weighting={"kind": "adaptive", "infeasible": "skip"}, epochs=2, optimizer=slow)
    trained = train_version(document, run_dir=tmp_path / "run", home=tmp_path, ancestors=chain)
    made = trained.contract
    assert made is not None
    assert len(made.pace) == 2
    assert made.pace[-1] == 1.0
    assert min(made.pace) >= 1.0
    assert len(list((tmp_path / "references").iterdir())) == 1
    assert made.document()["budgets"][0]["name"] == "v1"


def test_the_pace_is_the_mean_over_runs_and_absent_without_errors(chain: Any) -> None:
    document = parse()
    task, version = tasks.build(document.task), training_task.opened(chain[0])
    rule = spec.Adaptive(infeasible="skip")
    runs = [Unconstrained(version=version, errors=errors) for errors in ((0.4, 0.2), (0.1, 0.2))]
    assert contract(rule, ask(task, [version], batch_size=64), references=runs).pace == (1.25, 1.0)
    perfect = [Unconstrained(version=version, errors=(0.4, 0.0))]
    assert contract(rule, ask(task, [version], batch_size=64), references=perfect).pace == ()


def test_predecessors_near_chance_are_told_apart_on_the_constraint_split(chain: Any) -> None:
    document = parse()
    versions = [training_task.opened(folder) for folder in chain]
    found = near_chance(ask(tasks.build(document.task), versions, batch_size=64), factor=2.0)
    (sentence,) = found.values()
    assert list(found) == ["v0"]
    assert "times that of v1" in sentence
    perfect = ask(tasks.build(document.task), versions, batch_size=64)
    perfect.chain[0].right[:] = True
    perfect.chain[1].right[:] = np.arange(60) != 0
    assert near_chance(perfect, factor=2.0) == {}, "one error more than none is not twice as bad"
    assert near_chance(perfect, factor=0.5) == {
        "v0": "v0: its error 1.67 % is over 0.5 times that of v1, 0.00 %; it pulls only where it is right"
    }


@pytest.mark.parametrize(("factor", "noted"), [(2.0, True), (None, False)])
def test_a_predecessor_near_chance_pulls_elsewhere_and_is_noted(
    tmp_path: Path, chain: Any, factor: float | None, *, noted: bool
) -> None:
    document = parse(weighting={"kind": "equal"}, epochs=1)
    section = document.compatibility.model_copy(update={"near_chance": factor})
    document = document.model_copy(update={"compatibility": section})
    trained = train_version(document, run_dir=tmp_path / "run", home=tmp_path, ancestors=chain)
    assert bool(trained.notes) == noted
    claimed = json.loads((tmp_path / "run" / "spec.json").read_text())["job"]
    assert claimed["near_chance"] == (["v0"] if noted else [])


def test_weights_of_a_predecessor_near_chance_may_go_while_a_run_trains(tmp_path: Path, chain: Any) -> None:
    document = parse(weighting={"kind": "equal"}, epochs=1)
    v1, v0 = chain
    whole = train_version(document, run_dir=tmp_path / "run", home=tmp_path, ancestors=chain)
    bare = tmp_path / "bare"
    shutil.copytree(v0, bare)
    for name in (bundle_files.WEIGHTS, bundle_files.HEAD):
        (bare / name).unlink()
    resumed = train_version(document, run_dir=tmp_path / "run", home=tmp_path, ancestors=(v1, bare))
    assert sha256_file(resumed.result.weights) == sha256_file(whole.result.weights)
    assert "v0: was near chance when this run began; it pulls only where it is right" in resumed.notes
    fresh = train_version(document, run_dir=tmp_path / "other", home=tmp_path, ancestors=(v1, bare))
    assert "v0: not known whether it is near chance, the weights are gone" in fresh.notes


def test_a_constraint_that_never_weighs_a_sample_is_reported(tmp_path: Path, chain: Any) -> None:
    bundle.save(tmp_path / "v9", network=training_task.BlobNet(2), spec=parse("v9"), classes=("cat", "dog"))
    document = parse(weighting={"kind": "equal"}, epochs=1)
    found = train_version(document, run_dir=tmp_path / "run", home=tmp_path, ancestors=(chain[0], tmp_path / "v9"))
    assert found.notes == ("focal_distillation/v9: never weighed a sample, so it constrained nothing",)
