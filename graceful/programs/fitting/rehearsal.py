"""Rehearse the end of a run before its first step, with an untrained network. Runs in the driver.

One training step, saving, loading, freezing and answering, by the functions that the finished version will meet: what
cannot survive them is refused before hours of training, not after.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from graceful.chain import Predecessor
from graceful.errors import DataError, SpecError
from graceful.learners import Batch, Learner, Role, learner_of, roles, run
from graceful.learners.batch import described, finite_rows, size, take
from graceful.lqf.network import Linearised
from graceful.models import bundle
from graceful.models.base import CODE_FAULTS, Outputs, answers, filled
from graceful.models.weights import own_state, portable
from graceful.programs.fitting.finishing import finish
from graceful.spec import RefreshSpec, TorchEngine
from graceful.spec.methods import Lqf
from graceful.tasks import view_numbers
from graceful.tasks.base import Samples, Task
from graceful.training.batches import require_outputs, try_out
from graceful.training.job import WEIGHTS, write_weights
from graceful.training.linear_start import require_linear
from graceful.training.plain import unused_parameters
from graceful.training.rates import parameter_groups
from graceful.training.sampler import Sampler
from graceful.training.weights import sample_weights

FEW = 2
"""Samples of the rehearsed step: batch normalisation needs two, and more tell nothing else."""
_STEP = 1e-3
_RELATIVE = 1e-3
"""Largest difference of answers after saving and loading, as a share of the largest answer."""


def rehearse(spec: RefreshSpec, task: Task, train: Samples) -> Predecessor:
    """Take an untrained network all the way; torch's random state is left as it was.

    Args:
        spec: What is to be trained.
        task: Its task.
        train: The training split.

    Returns:
        The untrained version, loaded and frozen. Its folder is gone.

    Raises:
        SpecError: The batch size does not fit, or the network cannot be trained, saved, loaded or frozen; why.
    """
    workers = max(spec.train.num_workers, 1)
    lqf = spec.train.method if isinstance(spec.train.method, Lqf) else None
    slice_size = (
        FEW
        if lqf is not None
        else Sampler(
            samples=train.training_rows,
            batch_size=spec.train.batch_size,
            accumulation=spec.train.accumulation,
            world_size=workers,
            seed=spec.train.seed,
        ).slice_size
    )
    sample_weights(train, spec.train.class_weights)  # refuses weights of classes that the task does not have
    positions = np.unique(np.linspace(0, len(train) - 1, num=min(slice_size, FEW)).astype(np.int64))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.train.seed)
        network = task.network(task.classes)
        _require_trainable(network)
        parameter_groups(spec.train.optimizer, network)  # refuses rates of layers that the network does not have
        try_out(task, network, train)
        _step(spec, task, network, train, positions)
        if lqf is not None:
            few = learner_of(task).collate(train.read(positions), None)
            with _translated(network.eval(), "the linearised network", few):
                network = require_linear(lqf, task, network, few, train=train)
        torch.manual_seed(spec.train.seed + 1)  # what network() draws at random must not come out the same again
        with tempfile.TemporaryDirectory(prefix="graceful-rehearsal-") as folder:
            return _survived(spec, task, network, train.read(positions), Path(folder))


def _require_trainable(network: nn.Module) -> None:
    """Refuse layers without a shape and networks without anything to train."""
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        if is_lazy(tensor):
            layer = name.rpartition(".")[0]
            kind = type(network.get_submodule(layer)).__name__
            raise SpecError(
                f"task: layer {layer} of the network ({kind}) has no shape until data pass through it, so a saved"
                f" version could not be built again; write its input size, with {kind.removeprefix('Lazy')}"
            )
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise SpecError("task: the network has no parameter that requires a gradient, so nothing can be trained")


def _step(
    spec: RefreshSpec, task: Task, network: nn.Module, train: Samples, positions: np.typing.NDArray[np.int64]
) -> None:
    """Take a small training step, so that what is saved differs from what network() makes."""
    views = view_numbers(train.ids[positions], spec.train.seed, 0) if task.augments else None
    learner = learner_of(task)
    batch = learner.collate(train.read(positions), views)
    with _translated(network.train(), "a training step", batch):
        outputs = run(learner, network, batch)
        require_outputs(outputs, rows=len(positions), classes=len(task.classes), given=described(batch))
        labels = torch.from_numpy(train.labels[positions])
        exact = filled(Outputs(outputs.embedding.float(), outputs.logits.float(), outputs.mask), 0.0)
        losses = learner.task_loss(exact, batch, labels)
        _require_numbers(exact, losses, batch, ids=train.ids[positions])
        loss = losses.mean()
        if any(loss_section.reads - {"logits", "correctness"} for loss_section in spec.compatibility.losses):
            loss = loss + 0.0 * exact.embedding.sum()  # these losses reach the embedding, whatever the task's does
        loss.backward()  # type: ignore[no-untyped-call]
    if isinstance(spec.train.engine, TorchEngine) and spec.train.num_workers > 1:
        unused_parameters(network, allowed=spec.train.engine.find_unused_parameters)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.grad is not None and bool(parameter.grad.isfinite().all()):
                parameter.sub_(parameter.grad, alpha=_STEP)
    network.zero_grad(set_to_none=True)


def _require_numbers(outputs: Outputs, losses: Tensor, batch: Batch, *, ids: np.typing.NDArray[np.str_]) -> None:
    """Refuse NaN that an untrained network or its loss makes of a sample without NaN or infinity."""
    sound = finite_rows(batch)
    for name, values in (("embedding", outputs.embedding), ("logits", outputs.logits), ("loss", losses)):
        bad = sound & values.detach().reshape(len(values), -1).isnan().any(1)
        if bool(bad.any()):
            raise SpecError(
                f"task: the {name} of the untrained network is NaN for sample {str(ids[int(bad.nonzero()[0])])!r} of"
                " train, which holds finite numbers; correct network(), or forward() and task_loss() of the learner"
            )


def _survived(spec: RefreshSpec, task: Task, network: nn.Module, items: object, folder: Path) -> Predecessor:
    """Save and load the network; its outputs afterwards must be those before."""
    learner = learner_of(task)
    batch = learner.collate(items, None)
    outputs_before = {role: _stable_outputs(network, batch, learner, role) for role in roles(learner)}
    declared, actual = getattr(network, "embedding_size", None), outputs_before["query"].embedding.shape[1]
    if isinstance(declared, int) and declared != actual:
        raise SpecError(f"task: embedding_size of the network is {declared}, embed() makes {actual}; correct it")
    weights, saved = folder / WEIGHTS, folder / "model"
    write_weights(weights, portable(own_state(network)))
    finish(spec, task, weights=weights, folder=saved, linearised=_described(network))
    with _translated(network, "the network, loaded and frozen,", batch):
        version = bundle.load(saved, augment_like=spec.task, task=task)
        outputs_after = {role: version(items, role=role) for role in outputs_before}
    compared = [
        (name, outputs_before[role], outputs_after[role]) for role in outputs_before for name in ("embedding", "logits")
    ]
    for name, before, after in (
        (name, getattr(first, name), getattr(second, name)) for name, first, second in compared
    ):
        if not _same(before, after):
            raise SpecError(
                f"task: saved and loaded again, the network gives other outputs ({name} differs by"
                f" {float((before - after).abs().max()):.2g}): it uses what its state_dict does not hold; keep every"
                " tensor as a parameter or buffer, and draw nothing at random that is not one"
            )
    return version


def _described(network: nn.Module) -> dict[str, Any] | None:
    """Return the description of a linearised network that was not trained; None of any other."""
    if not isinstance(network, Linearised):
        return None
    facts = {"names": network.names, "slope": network.slope, "temperature": network.temperature, "amplitude": 1.0}
    return {**facts, "start_sha256": "0" * 64, "start_from": "rehearsal", "unseen": True, "certificate": {}}


def _stable_outputs(network: nn.Module, batch: Batch, learner: Learner, role: Role) -> Outputs:
    """Return the outputs of a network in eval mode, which must not change it and must be the same each time."""
    before = portable(network.eval().state_dict())
    with torch.no_grad(), _translated(network, f"the network in eval mode{_as(role)}", batch):
        first, second, alone = (
            answers(run(learner, network, rows, role=role)) for rows in (batch, batch, take(batch, slice(1)))
        )
    after = portable(network.state_dict())
    changed = [name for name in after if name not in before or not torch.equal(before[name], after[name])]
    changed = [name for name in changed if name not in before or not _same(before[name], after[name])]
    if changed:
        raise SpecError(
            f"task: {changed[0]} of the network changes while it answers in eval mode; a version must stay what it was"
            " measured as: change it only where self.training is true"
        )
    if not all(_same(*pair) for pair in zip(first[:2], second[:2], strict=True)):
        raise SpecError(
            "task: in eval mode the network gives other outputs for the same samples each time; a version must be a"
            " function of its weights: draw at random only where self.training is true"
        )
    if not all(_same(expected[:1], other) for expected, other in zip(first[:2], alone[:2], strict=True)):
        raise SpecError(
            "task: in eval mode the network gives other outputs for a sample alone than beside another; a version must"
            " answer each sample by itself: normalise with running statistics, not with those of the batch"
        )
    return first


def _as(role: Role) -> str:
    return " with the gallery encoder" if role == "gallery" else ""


def _same(expected: Tensor, actual: Tensor) -> bool:
    if expected.shape != actual.shape:
        return False
    expected, actual = expected.double(), actual.double()
    finite = expected[expected.isfinite()].abs()
    largest = float(finite.max()) if finite.numel() else 0.0
    return torch.allclose(expected, actual, rtol=_RELATIVE, atol=_RELATIVE * largest, equal_nan=True)


@contextmanager
def _translated(network: nn.Module, what: str, batch: Batch) -> Iterator[None]:
    """Turn what the code of a network raises into one line."""
    try:
        yield
    except DataError as e:  # of a bundle that was written a moment ago
        raise SpecError(f"task: {what} fails: {e.message}; correct network()") from e
    except CODE_FAULTS as e:
        reason = f"{type(e).__name__}: {' '.join(str(e).split())}"
        normalised = [name for name, module in network.named_modules() if isinstance(module, _BatchNorm)]
        if network.training and size(batch) == 1 and normalised:
            raise SpecError(
                f"train.batch_size: each worker sees one sample at a time (batch_size / workers / accumulation is 1),"
                f" and {what} fails on it: {reason}; batch normalisation ({normalised[0]}) needs two, raise batch_size"
            ) from e
        raise SpecError(f"task: {what} fails on {described(batch)}: {reason}; correct network()") from e
