"""What a run of linear-quadratic fine-tuning is made of: fixed batches, targets of a chain, the section of the spec."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from graceful import learners, spec, tasks
from graceful.errors import SpecError
from graceful.training.fixed_batches import data_digest, fixed_batches

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
