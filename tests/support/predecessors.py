"""Predecessors with random weights, for tests of their cached outputs."""

from __future__ import annotations

import torch

from graceful import spec, tasks
from graceful.chain import Predecessor, freeze
from graceful.learners import Classifier


def digits_version(section: spec.DigitsTask, seed: int) -> Predecessor:
    """Return a version of the task `digits` whose weights follow from the seed."""
    torch.manual_seed(seed)
    task = tasks.build(section)
    return Predecessor(
        name=f"v{seed}",
        model_id=f"digits-v{seed}",
        digest=f"{seed:064d}",
        classes=task.classes,
        embedding_size=64,
        network=freeze(task.network(task.classes)),
        learner=Classifier(task.transform),
        transform_digest=tasks.transform_digest(section),
    )
