"""Interpolation after training: the latest predecessor's weights keep a share in the new version's. In the driver."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch import nn

from graceful.learners import Batch, learner_of, run
from graceful.models.interpolation import interpolated, recalibrate
from graceful.models.stored import StoredVersion
from graceful.models.weights import load_own, own_state
from graceful.spec import RefreshSpec
from graceful.tasks import view_numbers
from graceful.tasks.base import Task
from graceful.training.start import weights_of

MOST = 16_384
"""Training samples that the statistics of batch normalisation are measured on."""


def mix(network: nn.Module, start: StoredVersion, share: float, *, spec: RefreshSpec, task: Task) -> tuple[str, ...]:
    """Mix a predecessor's weights into a finished network, in place; random state is left as it was.

    Args:
        network: As it was trained, started at the predecessor's weights.
        start: The predecessor.
        share: The share of the predecessor's weights, in [0, 1); 0 changes nothing.
        spec: What was trained.
        task: Its task.

    Returns:
        What a reader of the report must know: nothing, or one sentence.
    """
    if not share:
        return ()
    old = weights_of(start, network, task=task)
    load_own(network, interpolated(own_state(network), old, share))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.train.seed)
        recalibrate(network, _batches(spec, task), run=partial(run, learner_of(task)))
    return note(share, start.name)


def note(share: float, name: str) -> tuple[str, ...]:
    """Return what a reader of the report must know of a mixture with a version of that name; nothing without one."""
    return (f"weights are {1.0 - share:g} x those of training + {share:g} x those of {name}",) if share else ()


def _batches(spec: RefreshSpec, task: Task) -> Iterator[Batch]:
    """Yield whole batches of training samples from all over the split, as the first epoch sees them."""
    train, size = task.samples("train"), spec.train.batch_size
    count = min(len(train), MOST)
    chosen = np.linspace(0, len(train) - 1, num=count).astype(np.int64)
    for begin in range(0, max(count - size, 0) + 1, size):
        positions = chosen[begin : begin + size]
        views = view_numbers(train.ids[positions], spec.train.seed, 0) if task.augments else None
        yield learner_of(task).collate(train.read(positions), views)
