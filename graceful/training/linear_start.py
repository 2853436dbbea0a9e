"""The starting weights w0 of a linearised version: whose they are, which head, which activations. Runs in workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from graceful import learners
from graceful.errors import GracefulError, SpecError
from graceful.learners import Batch
from graceful.lqf import exact
from graceful.lqf.activations import make_leaky
from graceful.lqf.network import Linearised, names_of, start_digest
from graceful.lqf.protection import MOST_CONSTRAINTS
from graceful.lqf.tangent import Run, Tangent, require_derivative
from graceful.models.interpolation import recalibrate
from graceful.models.stored import StoredVersion
from graceful.models.weights import load_own
from graceful.spec.methods import Lqf, Protect
from graceful.tasks.base import Samples, Task
from graceful.tasks.names import positions_of, shared
from graceful.training.start import weights_of

HEAD = "head."


@dataclass(frozen=True, kw_only=True)
class LinearStart:
    """A network at w0, ready to be linearised.

    Attributes:
        network: In eval mode, with leaky activations.
        names: Parameters with a delta.
        digest: Of w0.
        source: Where the weights are from, in words.
        unseen: They were made without the labels of the training samples, so leave-one-out is valid.
        notes: What a reader of the report must know.
    """

    network: nn.Module
    names: tuple[str, ...]
    digest: str
    source: str
    unseen: bool
    notes: tuple[str, ...]


def starting_network(
    method: Lqf, task: Task, train: Samples, *, start: StoredVersion | None, seed: int
) -> tuple[nn.Module, str, bool]:
    """Return a network with its starting weights, where they are from, and whether they saw no label of `train`.

    Args:
        method: The section of the spec.
        task: The task of the new version.
        train: Its training samples.
        start: The predecessor whose weights (or whose w0) they are; None: the network as the task builds it.
        seed: The seed of what is drawn at random.

    Raises:
        SpecError: The head was trained on the same samples, or there is no head to initialise.
    """
    torch.manual_seed(seed)
    network = task.network(task.classes)
    if start is None:
        return network, "the network as it is built", True
    fresh = {name: tensor.clone() for name, tensor in network.state_dict().items() if name.startswith(HEAD)}
    old = start.whole()
    load_own(network, weights_of(start, network, task=task, linearised=True))
    described = start.description.linearised
    seen = 0 if described is not None and described.unseen else _seen(start, train)
    if described is not None:
        source = f"those of {old.name}, which are {described.start_from}"
        unseen, own_head = described.unseen, method.head != "random"
    else:
        source, unseen = f"the weights of {old.name}", seen == 0
        own_head = method.head == "start" or (
            method.head == "auto" and seen == 0 and tuple(old.classes) == tuple(task.classes)
        )
        if method.head == "start" and seen:
            raise SpecError(
                f"train.method.head: the head of {old.name} was trained on {seen} of the {len(train)} training samples,"
                " which leaves no residual to fit; write head: random"
            )
    if not own_head:
        _put_head(network, fresh)
        source += " with a random head"
    return network, source, unseen


def prepared(
    method: Lqf, network: nn.Module, batches: Sequence[Batch], *, run: Run, source: str, unseen: bool, fresh: bool
) -> LinearStart:
    """Return a network ready to be linearised: activations, statistics, scope; what cannot be is refused.

    Args:
        method: The section of the spec.
        network: With its starting weights.
        batches: Training samples, the same for all ranks.
        run: Network and batch -> outputs.
        source, unseen: What `starting_network` said.
        fresh: w0 is this version's own, so its statistics may be measured; false: it is a linearised predecessor's.

    Raises:
        SpecError: No derivative, a wrong one, or a head that makes a linear probe of the network.
    """
    notes = [f"LQF starts from {source}"]
    names = names_of(network, method.scope)
    network.eval()
    with torch.no_grad():
        before = run(network, batches[0]).embedding
        if make_leaky(network, method.slope):
            moved = (run(network, batches[0]).embedding - before).norm() / before.norm().clamp(min=1e-12)
            notes.append(
                f"LQF: activations with slope {method.slope:g} where they are off move the embedding at the start by"
                f" {100.0 * float(moved):.2g} %"
            )
    if method.refresh_norms and fresh:
        recalibrate(network, batches, run=run)
        network.eval()
    if method.refresh_norms and not fresh:
        notes.append("LQF: statistics of normalisation stay those of the predecessor, with which deltas combine")
    _require_moving(Tangent(network, run, names), learners.batch.take(batches[0], slice(8)))
    digest = start_digest(network, slope=method.slope)
    return LinearStart(network=network, names=names, digest=digest, source=source, unseen=unseen, notes=tuple(notes))


def require_linear(method: Lqf, task: Task, network: nn.Module, batch: Batch, *, train: Samples) -> Linearised:
    """Return an untrained network linearised, or refuse it before a run begins.

    Raises:
        SpecError: The data are augmented, a pattern chooses nothing, the network has no derivative, a system does not
            fit into memory, or a protected sample is not a training sample.
    """
    if task.augments:
        raise SpecError(
            "train.method: lqf fits one view of each sample, and the task augments its training samples; switch"
            " augmentation off"
        )
    names = names_of(network, method.scope)
    _require_room(method, network, names, rows=len(train) * len(task.classes))
    if method.protect is not None:
        require_protected(method.protect, train, classes=len(task.classes))
    linearised = Linearised(network, names, slope=method.slope)
    tangent = Tangent(network, partial(learners.run, learners.learner_of(task)), names)
    require_derivative(tangent, batch)
    generator = torch.Generator().manual_seed(0)
    linearised.put(
        {
            name: 0.01 * torch.randn(delta.shape, generator=generator).to(delta)
            for name, delta in linearised.deltas().items()
        }
    )
    return linearised


def _require_room(method: Lqf, network: nn.Module, names: Sequence[str], *, rows: int) -> None:
    """Refuse a matrix of samples x classes that does not fit into memory."""
    limits = method.drift is not None or method.protect is not None
    if method.solver == "exact" or limits or (method.memory is not None and method.memory.kind == "low_rank"):
        parameters = sum(parameter.numel() for name, parameter in network.named_parameters() if name in names)
        exact.elements_at_once(rows, parameters, int(method.memory_gib * 2**30))


def require_protected(section: Protect, train: Samples, *, classes: int) -> NDArray[np.int64]:
    """Return where protected samples are among the training samples, [n].

    Raises:
        SpecError: One is not a training sample, or there are too many.
    """
    if train.stream is not None:
        raise SpecError("train.method: lqf reads all training samples in every pass, which a stream cannot")
    places = positions_of(np.asarray(section.ids, dtype=np.str_), train.ids)
    missing = [name for name, place in zip(section.ids, places.tolist(), strict=True) if place < 0]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise SpecError(
            f"train.method.protect.ids: {missing[0]!r:.80}{more} is not a training sample; protected samples must be"
            " among them, leave others out or add them to the training data"
        )
    constraints = len(section.ids) * (classes - 1)
    if constraints > MOST_CONSTRAINTS:
        raise SpecError(
            f"train.method.protect.ids: {len(section.ids)} samples x {classes - 1} other classes are {constraints}"
            f" constraints, at most {MOST_CONSTRAINTS} are solved; protect fewer samples"
        )
    return places


def _seen(start: StoredVersion, train: Samples) -> int:
    """Return how many training samples a predecessor was trained on; all where this is not known."""
    training_ids = start.whole().training_ids
    if training_ids is None:
        return len(train)
    try:
        return len(shared(train.ids, training_ids()))
    except GracefulError:
        return len(train)


def _put_head(network: nn.Module, fresh: dict[str, Tensor]) -> None:
    if not fresh:
        raise SpecError("train.method.head: the network has no submodule `head` to initialise; write head: start")
    network.load_state_dict(fresh, strict=False)


def _require_moving(tangent: Tangent, batch: Batch) -> None:
    """Refuse a head of zeros: nothing below it would have a derivative, and the version would be a linear probe."""
    require_derivative(tangent, batch)
    logits = tangent.outputs(batch).logits
    gradients = tangent.pull(batch, torch.ones_like(logits) * torch.linspace(-1.0, 1.0, logits.shape[1]).to(logits))
    below = [name for name in gradients if not name.startswith(HEAD)]
    if below and not any(bool(gradients[name].any()) for name in below):
        raise SpecError(
            "train.method.head: the head of the starting weights is zero, so no layer below it has a derivative and"
            " lqf would fit a linear probe; write head: random"
        )
