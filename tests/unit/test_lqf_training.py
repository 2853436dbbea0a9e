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
from graceful.models.base import outputs_of
from graceful.programs import tune
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


def test_a_search_is_refused(tmp_path):
    with pytest.raises(SpecError, match="lqf is not searched"):
        tune.run_of(job(tmp_path).spec)


def test_a_zero_head_is_detected(tmp_path, monkeypatch):
    """Nothing below a head of zeros has a derivative, so lqf would be a linear probe."""
    task = tasks.build(job(tmp_path).spec.task)
    network = task.network(task.classes)
    torch.nn.init.zeros_(network.head.weight)
    batch = learners.learner_of(task).collate(task.samples("train").read(np.arange(8)), None)
    method = job(tmp_path).spec.train.method
    with pytest.raises(SpecError, match="the head of the starting weights is zero"):
        prepared(method, network, [batch], run=outputs_of, source="zeros", unseen=True, fresh=True)


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
