"""The task of a user's file: its errors get file and line, what it returns is checked. Driver and workers."""

from __future__ import annotations

import copy
import os
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from graceful.errors import DataError, GracefulError, SpecError
from graceful.learners import Batch, KeepsAssets, Learner
from graceful.learners.base import KEEPING, MEMBERS
from graceful.learners.batch import require_batch, size
from graceful.models.base import Network, Outputs
from graceful.tasks.base import MESSAGE_PREFIX, Samples, Split, Task

_MAY_BE_ABSENT = ("query", "gallery")
_NEEDED = ("train", "validation")


class UserTask:
    """The task that a user's file made, behind the same protocol.

    Attributes:
        own: What the file made.
        path: The file, for messages.
    """

    def __init__(self, own: Task, path: Path) -> None:
        self.own, self.path = own, path
        self.classes, self.augments = own.classes, own.augments
        learner: Learner | None = getattr(own, "learner", None)
        self.learner = None if learner is None else UserLearner(learner, path)

    def network(self, classes: tuple[str, ...]) -> nn.Module:
        """As `Task.network`.

        Raises:
            SpecError: An error in the file, or no network. Where the task has a learner, the network needs `classify`
                alone, for losses that read the frozen head.
        """
        with user_file_errors(self.path):
            built = self.own.network(classes)
        if self.learner is not None and isinstance(built, nn.Module) and hasattr(built, "classify"):
            return built
        if not (isinstance(built, nn.Module) and isinstance(built, Network)):
            lacks = "embed and classify; return graceful.models.base.Headed(body, head)"
            if self.learner is not None:
                lacks = "classify, which losses that read a predecessor's head call; add it"
            raise SpecError(f"{self.path}: network() returned a {type(built).__name__} without {lacks}")
        return built

    def restored(self, assets: Mapping[str, Any]) -> Self:
        """Return this task with the learner that has the assets of another version; this task stays as it is.

        Raises:
            SpecError: The learner takes none back, or an error in the file.
        """
        if self.learner is None:
            raise SpecError(
                f"{self.path}: the task has no learner, and this version was saved with one that kept files"
            )
        task = copy.copy(self)
        task.learner = self.learner.restored(assets)
        with user_file_errors(self.path):
            task.own = copy.copy(self.own)
            task.own.learner = task.learner.own  # type: ignore[attr-defined]
        return task

    def samples(self, split: Split) -> Samples:
        """As `Task.samples`.

        Raises:
            SpecError: An error in the file, or no Samples.
            DataError: An empty split that training needs, or classes in another order than the task's.
        """
        where = f"{self.path}: samples({split!r})"
        try:
            with user_file_errors(self.path, passing=(KeyError,) if split in _MAY_BE_ABSENT else ()):
                samples = self.own.samples(split)
        except DataError as e:
            if not e.message.startswith(MESSAGE_PREFIX):
                raise
            raise DataError(f"{where}: {e.message.removeprefix(MESSAGE_PREFIX)}") from e
        if not isinstance(samples, Samples):
            raise SpecError(f"{where} returned a {type(samples).__name__}; return Samples.of(items, labels, ...)")
        if split in _NEEDED and not len(samples):
            raise DataError(f"{where} is empty; training needs at least one sample in it")
        if split not in _MAY_BE_ABSENT and samples.classes != self.classes:
            raise DataError(
                f"{where} has classes {samples.classes!r:.60}, the task {self.classes!r:.60}; give the same"
            )
        return replace(samples, read=partial(self._read, samples.read))

    def transform(self, items: Any, views: NDArray[Any] | None) -> Batch:
        """As `Task.transform`.

        Raises:
            SpecError: An error in the file, no batch, or not one row for each item.
        """
        if self.learner is not None:
            return self.learner.collate(items, views)
        return _batch_of(self.path, self.own.transform, items, views, name="transform()")

    def _read(self, read: Callable[[NDArray[Any]], Any], positions: NDArray[Any]) -> Any:
        with user_file_errors(self.path):
            return read(positions)


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
        """As `Learner.collate`.

        Raises:
            SpecError: An error in the file, no batch, or not one row for each item.
        """
        return _batch_of(self.path, self.own.collate, items, views, name="collate() of the learner")

    def forward(self, network: nn.Module, batch: Batch, *, encoder: str) -> Outputs:
        """As `Learner.forward`.

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
        """As `Learner.task_loss`.

        Raises:
            SpecError: An error in the file, or not one value for each sample.
        """
        # On a GPU the same exceptions may be those of the device; whoever started the step decides.
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
        """As `KeepsAssets.assets`; empty for a learner that keeps none.

        Raises:
            SpecError: An error in the file.
        """
        if not isinstance(self.own, KeepsAssets):
            return {}
        with user_file_errors(self.path):
            return self.own.assets()

    def restored(self, assets: Mapping[str, Any]) -> UserLearner:
        """As `KeepsAssets.restored`.

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


def require_learner(path: Path, learner: object) -> None:
    """Refuse what is no learner.

    Raises:
        SpecError: A member is missing or of another type; which.
    """
    kind = type(learner).__name__
    for name in MEMBERS:
        if not callable(getattr(learner, name, None)):
            raise SpecError(
                f"{path}: the learner, a {kind}, lacks the method {name}; see graceful.learners.base.Learner"
            )
    given = [name for name in KEEPING if callable(getattr(learner, name, None))]
    if len(given) == 1:
        other = next(name for name in KEEPING if name not in given)
        raise SpecError(f"{path}: the learner, a {kind}, has {given[0]} without the method {other}; add it")
    encoders = getattr(learner, "encoders", None)
    if not isinstance(encoders, tuple) or not encoders or not all(isinstance(name, str) for name in encoders):
        raise SpecError(
            f"{path}: encoders of the learner, a {kind}, must be a tuple of names, got {encoders!r:.60}; write"
            " encoders = ('default',)"
        )


def _batch_of(path: Path, make: Callable[..., Batch], items: Any, views: NDArray[Any] | None, *, name: str) -> Batch:
    with user_file_errors(path):
        batch = make(items, views)
    rows = len(items) if hasattr(items, "__len__") and not isinstance(items, Mapping) else None
    require_batch(batch, rows=rows, who=f"{path}: {name}")
    return batch


@contextmanager
def user_file_errors(path: Path, *, passing: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Turn whatever a user's file raises into one line: the file, its deepest line on the way, the exception.

    Args:
        path: The file.
        passing: Exceptions that mean something to the caller.
    """
    try:
        yield
    except (Exception, SystemExit) as e:
        if isinstance(e, (GracefulError, *passing)):
            raise
        raise SpecError(_error_line(path, e)) from e


def _error_line(path: Path, error: BaseException) -> str:
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}: {type(error).__name__}: {error.msg}; correct the file"
    own_filename = str(path.resolve())
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == own_filename]
    place = f"{path}:{lines[-1]}" if lines else str(path)
    reason = " ".join(str(error).split())
    return f"{place}: {type(error).__name__}: {reason}; {_remedy(error)}"


def _remedy(error: BaseException) -> str:
    """Return the remedy of a message; a relative path among the options gets one of its own."""
    name = error.filename if isinstance(error, FileNotFoundError) else None
    if not isinstance(name, str) or os.path.isabs(name):
        return "correct the file"
    return (
        f"relative paths in task.options are looked up in the working directory, {os.getcwd()}; write an absolute one,"
        " or have the file join it to Path(__file__).parent"
    )
