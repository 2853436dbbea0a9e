"""What a run of linear-quadratic fine-tuning is made of: fixed batches, targets of a chain, the section of the spec."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from graceful import learners, spec, tasks
from graceful.chain import OldOutputs
from graceful.errors import SpecError
from graceful.lqf.operators import Batched
from graceful.models.base import Headed, outputs_of
from graceful.models.stored import StoredVersion
from graceful.programs.fitting.finishing import finish
from graceful.programs.fitting.rehearsal import rehearse
from graceful.programs.tuning import program as tune
from graceful.programs.tuning import space
from graceful.training import trace
from graceful.training.chain_targets import _pull
from graceful.training.driver import train
from graceful.training.fixed_batches import data_digest, fixed_batches
from graceful.training.linear_start import prepared
from graceful.training.objective import OldVersion
from tests.support.lqf_rank import job

BASE = {"model": "m", "name": "v2", "task": {"kind": "digits"}}


@pytest.mark.parametrize(
    ("train", "compatibility", "message"),
    [
        ({"precision": "bf16"}, {}, "must be fp32 with train.method lqf, got bf16"),
        ({}, {"losses": [{"kind": "focal_distillation"}]}, "focal_distillation is not quadratic"),
        ({}, {"losses": [{"kind": "influence"}]}, "influence is not quadratic"),
        (
            {},
            {"losses": [{"kind": "focal_distillation", "form": "lm", "focus": "new_incorrect"}]},
            "with focus all or old_correct",
        ),
        ({}, {"reference": {}}, "has no part in train.method lqf"),
        ({"method": {"kind": "lqf", "amplitud": 1}}, {}, "amplitud"),
        ({"method": "newton"}, {}, "train.method"),
        ({"method": {"kind": "lqf", "drift": 1.0}}, {}, "train.method.drift multiplies weights"),
        ({"method": {"kind": "lqf", "solver": "pcg", "protect": {"ids": ["a"]}}}, {}, "protect needs the exact solver"),
        (
            {"method": {"kind": "lqf", "solver": "sgd_kfac"}, "engine": {"zero_stage": 3}},
            {},
            "must keep parameters whole",
        ),
        ({"method": {"kind": "combination", "versions": {}}}, {}, "train.method.versions"),
        (
            {"method": {"kind": "combination", "versions": {"v1": 1}}},
            {"losses": [{"kind": "focal_distillation"}]},
            "compatibility.losses has no part in train.method combination",
        ),
    ],
)
def test_refused_specs(train, compatibility, message):
    document = {**BASE, "train": {"method": "lqf", **train}, "compatibility": compatibility}
    with pytest.raises(SpecError) as refused:
        spec.parse(document, where="v2.yaml")
    assert message in refused.value.message
    assert "\n" not in refused.value.message


def test_specs_without_a_method_keep_their_digest():
    assert "method" not in spec.parse(BASE, where="v2.yaml").dump()["train"]
    written = spec.parse({**BASE, "train": {"method": "lqf"}}, where="v2.yaml")
    assert spec.parse(written.dump(), where="again").digest() == written.digest()


def test_order_of_samples_changes_neither_batches_nor_their_digest() -> None:
    task = tasks.build(spec.DigitsTask(share=0.1))
    samples = task.samples("train")
    order = np.random.default_rng(0).permutation(len(samples))
    shuffled = dataclasses.replace(
        samples,
        ids=samples.ids[order],
        groups=samples.groups[order],
        labels=samples.labels[order],
        read=lambda positions: samples.read(order[positions]),
    )
    both = [
        fixed_batches(each, learners.learner_of(task), size=32, device=torch.device("cpu"))
        for each in (samples, shuffled)
    ]
    for first, second in zip(*both, strict=True):
        assert torch.equal(first, second)
    weights = np.linspace(0.5, 1.5, len(samples))
    digests = [data_digest(each, weights, rank=0, world_size=1) for each in both]
    assert digests[0] == digests[1] != data_digest(both[0], None, rank=0, world_size=1)
    assert both[0].some(10).rows.tolist() == [order[row] for row in both[1].some(10).rows.tolist()]


def test_an_interrupted_run_ends_in_the_same_bits(tmp_path):
    """Stopped after 12 iterations, taken up at the checkpoint of the tenth; weights and trace are those undisturbed."""
    undisturbed = train(job(tmp_path / "whole"))

    def stop(row):
        if row.get("step") == 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(job(tmp_path / "stopped"), progress=stop)
    resumed = train(job(tmp_path / "stopped"))
    assert resumed.resumed_from == 10
    assert resumed.weights.read_bytes() == undisturbed.weights.read_bytes()
    first, second = (result.linearised["certificate"] for result in (undisturbed, resumed))
    assert first == second
    assert first["order_independent"]
    steps = [row["step"] for row in trace.read(tmp_path / "stopped" / trace.FILE) if row["event"] == "step"]
    assert steps == list(range(1, first["iterations"] + 1))


def test_unfinished_iterations_are_not_called_order_independent(tmp_path):
    result = train(job(tmp_path, iterations=2))
    assert not result.linearised["certificate"]["order_independent"]
    assert any("may depend on the order of its data" in note for note in result.notes)


def test_what_cannot_be_solved_is_refused_by_the_rehearsal(tmp_path):
    """Before predecessors are asked or a folder is claimed."""
    task = tasks.build(job(tmp_path).spec.task)
    for method, message in (
        ({"solver": "exact", "memory_gib": 0.001}, r"exact needs [\d.]+ GiB for \d+ samples x classes"),
        ({"solver": "auto", "protect": {"ids": ["nobody"]}}, "'nobody' is not a training sample"),
        ({"memory": {"kind": "low_rank"}, "memory_gib": 0.001}, "solver: pcg, fewer samples"),
        ({"scope": ["nothing"]}, "nothing is the name of no trained parameter or module"),
    ):
        with pytest.raises(SpecError, match=message):
            rehearse(job(tmp_path, **method).spec, task, task.samples("train"))


class Part:
    """A task with some of its training samples."""

    def __init__(self, task, low, high):
        self.task, self.low, self.high = task, low, high

    def __getattr__(self, name):
        return getattr(self.task, name)

    def samples(self, split):
        whole = self.task.samples(split)
        if split == "test":
            return whole
        rows = np.flatnonzero((whole.labels >= self.low) & (whole.labels < self.high))
        names = {name: getattr(whole, name)[rows] for name in ("ids", "groups", "labels")}
        return dataclasses.replace(whole, **names, read=lambda positions: whole.read(rows[positions]))


def test_a_memory_keeps_what_was_learnt(tmp_path):
    """Digits 0 to 4, then 5 to 9 alone: with the memory of the first, they are not forgotten."""
    task = tasks.build(job(tmp_path).spec.task)

    def trained(name, part, *, start=None, **method):
        made = job(tmp_path / name, **{"tolerance": 1e-3, **method})
        train_section = made.spec.train.model_copy(update={"start": "random" if start is None else "latest"})
        made = dataclasses.replace(
            made, spec=made.spec.model_copy(update={"name": name, "train": train_section}), task=part, start=start
        )
        result = train(made)
        finish(made.spec, part, weights=result.weights, folder=tmp_path / name / "model", linearised=result.linearised)
        return StoredVersion(folder=tmp_path / name / "model")

    def error(version):
        samples = Part(task, 0, 5).samples("validation")
        predicted = version.whole()(samples.read(np.arange(len(samples)))).logits.argmax(1).numpy()
        return float((predicted != samples.labels).mean())

    low, high, remembers = Part(task, 0, 5), Part(task, 5, 10), {"kind": "kfac", "multiplier": 30.0}
    first = trained("v1", low, memory={"kind": "kfac"})
    assert "memory.safetensors" in first.description.linearised.files
    kept, forgot = trained("v2", high, start=first, memory=remembers), trained("v3", high, start=first)
    assert error(kept) < error(forgot) - 0.2
    everything = {"tolerance": 1e-6, "memory": {"kind": "low_rank", "rank": 1000}}
    whole = trained("v6", low, **everything)
    exactly, joint = trained("v7", high, start=whole, **everything), trained("v8", Part(task, 0, 10), tolerance=1e-6)
    near, delta = (torch.cat([d.reshape(-1) for d in v.whole().network.deltas().values()]) for v in (exactly, joint))
    assert float((near - delta).norm()) < 0.02 * float(delta.norm())
    with pytest.raises(SpecError, match="training samples are those of v1, whose memory counts them already"):
        trained("v4", low, start=first, memory=remembers)
    with pytest.raises(SpecError, match="v3 keeps no memory"):
        trained("v5", low, start=forgot, memory=remembers)


def test_the_search_keeps_the_objective_quadratic(tmp_path):
    """Trials vary the weight of logit matching and the penalty, and nothing that lqf refuses."""
    section = job(tmp_path, penalty=None).spec
    searched = tune.run_of(section).spec
    parameters = space.parameters(searched)
    assert [parameter.name for parameter in parameters] == [
        "compare",
        "distillation",
        "focus_share",
        "temperature",
        "runs",
        "penalty",
    ]
    point = {**space.known_points(searched, parameters)[-1], "penalty": 3.0}
    point = space.within(point, parameters)
    changed = section.train.model_copy(update={"method": space.method(searched, point)})
    trial = section.model_copy(update={"train": changed, "compatibility": space.compatibility(searched, point)})
    assert spec.parse(trial.dump(), where="a trial").train.method.penalty_factor == 3.0
    assert space.shares(searched) == ()
    combination = {**BASE, "train": {"method": {"kind": "combination", "versions": {"v1": 1.0}}}}
    with pytest.raises(SpecError, match="a combination trains nothing that could be searched"):
        tune.run_of(spec.parse(combination, where="v2.yaml"))


def test_kernels_are_made_once(tmp_path, monkeypatch):
    """A second fit with other weights reads the kernel of the first; a damaged file is made again."""
    made = []
    kernel = Batched.kernel
    monkeypatch.setattr(Batched, "kernel", lambda *given, **named: made.append(1) or kernel(*given, **named))
    results = []
    for name, penalty in (("one", 0.1), ("two", 0.3), ("three", 0.1)):
        fit = dataclasses.replace(job(tmp_path / name, solver="exact", penalty=penalty), home=tmp_path / "home")
        if name == "three":
            (file,) = (tmp_path / "home" / "linearised").iterdir()
            file.write_bytes(b"damaged")
        results.append(train(fit).weights.read_bytes())
    assert len(made) == 2
    assert results[0] == results[2] != results[1]


def test_a_zero_head_is_detected(tmp_path, monkeypatch):
    """Nothing below a head of zeros has a derivative, so lqf would be a linear probe."""
    task = tasks.build(job(tmp_path).spec.task)
    network = task.network(task.classes)
    torch.nn.init.zeros_(network.head.weight)
    batch = learners.learner_of(task).collate(task.samples("train").read(np.arange(8)), None)
    method = job(tmp_path).spec.train.method
    with pytest.raises(SpecError, match="the head of the starting weights is zero"):
        prepared(method, network, [batch], run=outputs_of, source="zeros", unseen=True, fresh=True)


def test_statistics_of_normalisation_are_measured_before_a_network_is_linearised(tmp_path):
    """`refresh_norms`: the mean over the training batches; deltas of a linearised predecessor keep its statistics."""
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten())
    network = Headed(layers, torch.nn.Linear(16, 3))
    batches = [3 * torch.randn(8, 1, 4, 4) + 1 for _ in range(2)]
    method = job(tmp_path).spec.train.method.model_copy(update={"refresh_norms": True})
    options = {"run": outputs_of, "source": "a checkpoint", "unseen": True}
    kept = prepared(method, network, batches, fresh=False, **options)
    assert layers[1].running_mean.abs().max() == 0
    measured = prepared(method, network, batches, fresh=True, **options)
    with torch.no_grad():
        means = torch.stack([layers[0](batch).mean((0, 2, 3)) for batch in batches]).mean(0)
    torch.testing.assert_close(layers[1].running_mean, means)
    assert measured.digest != kept.digest
    assert any("stay those of the predecessor" in note for note in kept.notes)


def test_a_predecessor_pulls_targets_of_the_classes_it_knows():
    """Targets move between label and scaled output by the strength; classes and samples it does not know stay."""
    labels = torch.tensor([0, 1, 2])
    known = torch.tensor([[2.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    version = OldVersion(name="v1", classes=("b", "a"), embedding_size=2, correct_share=0.5)
    opened = SimpleNamespace(version=version)
    stored = SimpleNamespace(description=SimpleNamespace(linearised=None))
    pull = _pull(
        spec.parse(
            {**BASE, "compatibility": {"losses": [{"kind": "focal_distillation", "form": "lm"}]}}, where="x"
        ).compatibility.losses[0],
        opened,
        SimpleNamespace(stored=stored),
        old=OldOutputs(known, known, torch.tensor([True, True, True])),
        labels=labels,
        classes=("a", "b", "c"),
        amplitude=10.0,
    )
    assert not pull.strength[:, 2].any()  # class c
    assert not pull.strength[2].any()  # a sample of class c
    assert pull.strength[0, 0] == pull.strength[1, 0]  # wrong in both, so in focus nowhere
    torch.testing.assert_close(
        pull.outputs[:2, :2], torch.full((2, 2), 5.0, dtype=torch.float64)
    )  # wrong everywhere: its scale is 0
    torch.testing.assert_close(pull.outputs[:, 2], torch.zeros(3, dtype=torch.float64))


def test_steps_come_near_the_exact_minimum(tmp_path):
    """Preconditioned steps of the ordinary loop end near the minimum of the same data, and say how near."""
    section = job(tmp_path).spec
    steps = section.train.model_copy(
        update={
            "method": section.train.method.model_copy(update={"solver": "sgd_kfac"}),
            "optimizer": section.train.optimizer.model_copy(update={"lr": 1.0}),
            "engine": spec.TorchEngine(),
            "epochs": 40,
            "batch_size": 45,
            "clip": 0.0,
        }
    )
    stepped = train(dataclasses.replace(job(tmp_path / "stepped"), spec=section.model_copy(update={"train": steps})))
    certificate = stepped.linearised["certificate"]
    assert certificate["solver"] == "sgd_kfac"
    assert certificate["relative_gradient"] < 0.02
