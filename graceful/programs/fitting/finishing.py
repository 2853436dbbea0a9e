"""Make a version on disk from trained weights: a new network, mixed weights, the bundle. Runs in the driver."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from graceful.chain.contract import Contract
from graceful.errors import SpecError
from graceful.models import bundle
from graceful.models.base import CODE_FAULTS
from graceful.models.bundle_files import LinearisedDescription
from graceful.models.stored import StoredVersion
from graceful.models.weights import difference, load_own, own_state
from graceful.programs.fitting.weight_mixing import mix
from graceful.spec import RefreshSpec
from graceful.tasks.base import Task
from graceful.training.driver import TrainingResult


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A new version on disk.

    Attributes:
        folder: Its bundle.
        digest: SHA-256 of the bundle.
        result: How training went.
        data: Digest of the training samples.
        notes: What a reader of the report must know of the data, and of the predecessors' outputs it was trained with.
        contract: What it had promised its predecessors, where they have budgets.
    """

    folder: Path
    digest: str
    result: TrainingResult
    data: str
    notes: tuple[str, ...] = ()
    contract: Contract | None = None


def finish(
    spec: RefreshSpec,
    task: Task,
    *,
    weights: Path,
    folder: Path,
    start: StoredVersion | None = None,
    linearised: Mapping[str, Any] | None = None,
) -> tuple[str, tuple[str, ...]]:
    """Write the bundle of a version whose training has ended.

    Args:
        spec: What was trained.
        task: Its task.
        weights: What training wrote; stays.
        folder: The folder of the bundle.
        start: The version at whose weights training started; None: at random.
        linearised: Measurements of a linearised version from training; None: it is not one.

    Returns:
        Digest of the bundle, and what a reader of the report must know of its weights.

    Raises:
        SpecError: `network()` does not make the network that was trained, or that network cannot be saved.
    """
    with _translated(weights):
        network, state = task.network(task.classes), load_file(weights)
        description = None if linearised is None else LinearisedDescription.model_validate(linearised)
        if description is not None:
            network = bundle.linearised_as(network, description)
        problem = difference(own_state(network), state)
        if problem:
            raise SpecError(
                f"task: network() does not make again the network that was trained: {problem}; its shape must follow"
                " from the classes and the options alone"
            )
        load_own(network, state)
        share = spec.compatibility.interpolation
        notes = mix(network, start, share, spec=spec, task=task) if start is not None else ()
        digest = bundle.save(
            folder,
            network=network,
            spec=spec,
            classes=task.classes,
            task=task,
            linearised=description,
            beside=weights.parent,
        )
        return digest, notes


@contextmanager
def _translated(weights: Path) -> Iterator[None]:
    """Turn what the code of a network raises into one line about the weights."""
    try:
        yield
    except CODE_FAULTS as e:
        reason = f"{type(e).__name__}: {' '.join(str(e).split())}"
        raise SpecError(
            f"task: the network of {weights} cannot be saved as a version ({reason}); correct network()"
        ) from e
