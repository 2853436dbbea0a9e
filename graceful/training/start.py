"""Where training starts: at random weights, at those of the latest predecessor, or at its head. Driver and workers."""

from __future__ import annotations

import torch
from torch import nn

from graceful.chain import Completeness
from graceful.errors import SpecError
from graceful.lqf.network import Linearised
from graceful.models import assets, bundle, bundle_files
from graceful.models.interpolation import State, inherited_head, inherited_state
from graceful.models.stored import StoredVersion
from graceful.models.weights import own_state
from graceful.spec import RefreshSpec
from graceful.tasks.base import Task


def weights_of(
    start: StoredVersion, network: nn.Module, *, task: Task, head: bool = False, linearised: bool = False
) -> State:
    """Return a predecessor's weights in the shape of this version's network; torch's random state is left as it was.

    Args:
        start: The predecessor.
        network: The network of this version; its weights stand in for what the predecessor has none for.
        task: The task of this version.
        head: Take the head alone, which must be left of the predecessor; the rest stays this version's own.
        linearised: This version is linearised too, so that the starting weights of a linearised predecessor are meant.

    Raises:
        DataError, IntegrityError: The bundle is not whole or damaged.
        SpecError: The networks differ in more than their classes, or what the learners keep beside weights differs.
    """
    if head:
        old, inherited = start.open(at_least=Completeness.HEAD), inherited_head
    else:
        _require_same_files(start, task)
        old, inherited = start.whole(), inherited_state
    old_network = old.network
    if isinstance(old_network, Linearised):
        if not linearised:
            raise SpecError(
                f"train.start: {old.name} is linearised, and weights with its delta added are another model; write"
                " train.method: lqf with start: latest, or start: random"
            )
        old_network = old_network.network
    return inherited(
        own_state(network), own_state(old_network), classes=task.classes, old_classes=old.classes, name=old.name
    )


def _require_same_files(start: StoredVersion, task: Task) -> None:
    """Refuse weights that belong to another vocabulary, say: rows of equal shape would mean other words."""
    described, own = start.description, assets.digests(bundle.files_of(task))
    for name in sorted({*described.assets, *own}):
        if described.assets.get(name) != own.get(name):
            raise SpecError(
                f"train.start: the weights of {described.name} belong to the {name} that its learner had, and this"
                " version's differs; keep that file as it was, or write random"
            )


def require_start(spec: RefreshSpec, start: StoredVersion | None, *, task: Task) -> StoredVersion | None:
    """Refuse a start that cannot be had, before anything is trained.

    Args:
        spec: What is to be trained.
        start: The latest predecessor; None: there is none.
        task: Its task.

    Returns:
        The version at whose weights training starts; None: it starts at random.

    Raises:
        SpecError: No predecessor, its weights are gone, or its network is another one.
    """
    if spec.train.start == "random":
        return None
    kind = spec.train.start
    if start is None:
        raise SpecError(
            f"train.start: {kind} needs a predecessor, {spec.model} has none yet; write random for the first"
        )
    head = kind == "head"
    files = (bundle_files.HEAD, bundle_files.WEIGHTS) if head else (bundle_files.WEIGHTS,)
    if not any((start.folder / name).is_file() for name in files):
        raise SpecError(
            f"train.start: {kind} needs the weights of {start.name}, which are gone from {start.folder};"
            " restore them from a backup, or write random"
        )
    with torch.random.fork_rng(devices=[]):
        network = task.network(task.classes)
    weights_of(start, network, task=task, head=head, linearised=spec.train.method.kind == "lqf")
    return start
