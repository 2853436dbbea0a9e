"""From trained weights to a version on disk: into a fresh network, mixed, written as a bundle. Runs in the driver."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import load_file

from graceful.errors import SpecError
from graceful.models import bundle
from graceful.models.base import CODE_FAULTS
from graceful.models.weights import difference
from graceful.programs.weight_mixing import mix
from graceful.spec import RefreshSpec
from graceful.tasks.base import Task


def finish(
    spec: RefreshSpec, task: Task, *, weights: Path, folder: Path, start: Path | None = None
) -> tuple[str, tuple[str, ...]]:
    """Write the bundle of a version whose training has ended.

    Args:
        spec: What was trained.
        task: Its task.
        weights: What training wrote; stays.
        folder: Of the bundle.
        start: Bundle of the version at whose weights training started; None: at random.

    Returns:
        Digest of the bundle, and what a reader of the report must know of its weights.

    Raises:
        SpecError: `network()` does not make the network that was trained, or that network cannot be saved.
    """
    with _translated(weights):
        network, state = task.network(task.classes), load_file(weights)
        problem = difference(network.state_dict(), state)
        if problem:
            raise SpecError(
                f"task: network() does not make again the network that was trained: {problem}; its shape must follow"
                " from the classes and the options alone"
            )
        network.load_state_dict(state)
        share = spec.compatibility.interpolation
        notes = mix(network, start, share, spec=spec, task=task) if start is not None else ()
        return bundle.save(folder, network=network, spec=spec, classes=task.classes, task=task), notes


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
