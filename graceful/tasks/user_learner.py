"""The learner of a user's file or of another package: what it returns is checked. Driver and workers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from graceful.errors import SpecError
from graceful.learners import Batch, KeepsAssets, Learner
from graceful.learners.base import KEEPING, MEMBERS
from graceful.learners.batch import require_batch, size
from graceful.models.base import Outputs
from graceful.tasks.user_errors import user_file_errors


class UserLearner:
    """The learner that a user's file made, behind the same protocol.

    Args:
        own: What the file made.
        path: The file, for messages.
    """

    def __init__(self, own: Learner, path: Path) -> None:
        self.own, self.path = own, path
        self.encoders = own.encoders

    def collate(self, items: Any, views: NDArray[Any] | None) -> Batch:
        """Implement `Learner.collate`.

        Raises:
            SpecError: An error in the file, no batch, or not one row for each item.
        """
        return batch_of(self.path, self.own.collate, items, views, name="collate() of the learner")

    def forward(self, network: nn.Module, batch: Batch, *, encoder: str) -> Outputs:
        """Implement `Learner.forward`.

        Raises:
            SpecError: No outputs, or not one row for each sample. Errors of the network pass, since only the caller
                knows what it was asked.
        """
        outputs = self.own.forward(network, batch, encoder=encoder)
        if not isinstance(outputs, Outputs):
            raise SpecError(
                f"{self.path}: forward() of the learner returned a {type(outputs).__name__}; return"
                " graceful.models.base.Outputs(embedding, logits)"
            )
        rows = size(batch)
        for name, value in outputs._asdict().items():
            axes, wanted = (1, f"[{rows}] bool") if name == "mask" else (2, f"[{rows}, ...], one row for each sample")
            fits = isinstance(value, Tensor) and value.dim() == axes and len(value) == rows
            if name == "mask":
                fits = value is None or (fits and value.dtype == torch.bool)
            if not fits:
                raise SpecError(f"{self.path}: forward() of the learner made {name} {_shape(value)}; must be {wanted}")
        return outputs

    def task_loss(self, outputs: Outputs, batch: Batch, labels: Tensor) -> Tensor:
        """Implement `Learner.task_loss`.

        Raises:
            SpecError: An error in the file, or not one value for each sample.
        """
        # On a GPU the same exceptions may be those of the device; the caller that started the step decides.
        of_the_device = (RuntimeError,) if labels.device.type != "cpu" else (torch.OutOfMemoryError,)
        with user_file_errors(self.path, passing=of_the_device):
            losses = self.own.task_loss(outputs, batch, labels)
        if not isinstance(losses, Tensor) or losses.shape != labels.shape:
            raise SpecError(
                f"{self.path}: task_loss() of the learner returned {_shape(losses)}; must be one value for each sample,"
                f" {list(labels.shape)}"
            )
        return losses

    def assets(self) -> Mapping[str, Any]:
        """Implement `KeepsAssets.assets`; empty for a learner that keeps none.

        Raises:
            SpecError: An error in the file.
        """
        if not isinstance(self.own, KeepsAssets):
            return {}
        with user_file_errors(self.path):
            return self.own.assets()

    def restored(self, assets: Mapping[str, Any]) -> UserLearner:
        """Implement `KeepsAssets.restored`.

        Raises:
            SpecError: The learner takes nothing back, an error in the file, or no learner.
        """
        if not isinstance(self.own, KeepsAssets):
            names = ", ".join(assets)
            raise SpecError(
                f"{self.path}: the learner, a {type(self.own).__name__}, has no method restored, and this version was"
                f" saved with {names}; add assets and restored, or restore the file"
            )
        with user_file_errors(self.path):
            own = self.own.restored(assets)
        require_learner(self.path, own)
        if own is self.own:
            raise SpecError(
                f"{self.path}: restored() of the learner returned the learner itself; return a new one, because"
                " versions of a chain are open at the same time"
            )
        return UserLearner(own, self.path)


def _shape(value: object) -> str:
    """Say what a value is, for a message: shape and type of a tensor, the kind of anything else."""
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    return str(list(value.shape)) + ("" if value.is_floating_point() else f" {str(value.dtype)[6:]}")


def require_network(path: Path, built: object) -> nn.Module:
    """Return the network that a learner runs.

    Raises:
        SpecError: It is none, or has no `classify`.
    """
    if isinstance(built, nn.Module) and hasattr(built, "classify"):
        return built
    lacks = "classify, which losses that read a predecessor's head call; add it"
    raise SpecError(f"{path}: network() returned a {type(built).__name__} without {lacks}")


def require_learner(path: Path, learner: object) -> None:
    """Refuse what is not a learner.

    Raises:
        SpecError: A member is missing or of another type; which.
    """
    kind = type(learner).__name__
    for name in (*MEMBERS, *KEEPING):
        member = getattr(learner, name, None)
        if member is None and name in MEMBERS:
            raise SpecError(
                f"{path}: the learner, a {kind}, lacks the method {name}; see graceful.learners.base.Learner"
            )
        if member is not None and not callable(member):
            raise SpecError(
                f"{path}: {name} of the learner, a {kind}, is a {type(member).__name__} and must be a method; see"
                " graceful.learners.base"
            )
    given = [name for name in KEEPING if getattr(learner, name, None) is not None]
    if len(given) == 1:
        other = next(name for name in KEEPING if name not in given)
        raise SpecError(f"{path}: the learner, a {kind}, has {given[0]} without the method {other}; add it")
    encoders = getattr(learner, "encoders", None)
    if not isinstance(encoders, tuple) or not encoders or not all(isinstance(name, str) for name in encoders):
        raise SpecError(
            f"{path}: encoders of the learner, a {kind}, must be a tuple of names, got {encoders!r:.60}; write"
            " encoders = ('default',)"
        )


def batch_of(path: Path, make: Callable[..., Batch], items: Any, views: NDArray[Any] | None, *, name: str) -> Batch:
    """Return the batch that a function of a file makes of raw items.

    Raises:
        SpecError: An error in the file, no batch, or not one row for each item.
    """
    with user_file_errors(path):
        batch = make(items, views)
    rows = len(items) if hasattr(items, "__len__") and not isinstance(items, Mapping) else None
    require_batch(batch, rows=rows, who=f"{path}: {name}")
    return batch
