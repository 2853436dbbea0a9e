"""Where training starts: at random weights, or at those of the latest predecessor. Driver and workers."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from graceful.errors import SpecError
from graceful.models import bundle, bundle_files
from graceful.models.interpolation import State, inherited
from graceful.spec import RefreshSpec
from graceful.tasks.base import Task


def weights_of(start: Path, network: nn.Module, *, spec: RefreshSpec, task: Task) -> State:
    """A predecessor's weights in the shape of this version's network; torch's random state is left as it was.

    Args:
        start: Its bundle.
        network: Of this version; its weights stand in for what the predecessor has none for.
        spec: Of this version.
        task: Its task.

    Raises:
        DataError, IntegrityError: The bundle is not whole or damaged.
        SpecError: The networks differ in more than their classes.
    """
    old = bundle.load(start, augment_like=spec.task, trusted=spec.trust.code_digests)
    return inherited(
        network.state_dict(), old.network.state_dict(), classes=task.classes, old_classes=old.classes, name=old.name
    )


def require_start(spec: RefreshSpec, start: Path | None, *, task: Task) -> Path | None:
    """Refuse a start that cannot be had, before anything is trained.

    Args:
        spec: What is to be trained.
        start: Bundle of the latest predecessor; None: there is none.
        task: Its task.

    Returns:
        The bundle at whose weights training starts; None: it starts at random.

    Raises:
        SpecError: No predecessor, its weights are gone, or its network is another one.
    """
    if spec.train.start == "random":
        return None
    if start is None:
        raise SpecError(
            f"train.start: latest needs a predecessor, {spec.model} has none yet; write random for the first"
        )
    if not (start / bundle_files.WEIGHTS).is_file():
        raise SpecError(
            f"train.start: latest needs the weights of {bundle.describe(start).name}, which are gone from {start};"
            " restore them from a backup, or write random"
        )
    with torch.random.fork_rng(devices=[]):
        network = task.network(task.classes)
    weights_of(start, network, spec=spec, task=task)
    return start
