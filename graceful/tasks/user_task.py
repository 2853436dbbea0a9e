"""The task of a user's file: its errors get file and line, what it returns is checked. Driver and workers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Self

from numpy.typing import NDArray
from torch import nn

from graceful.errors import DataError, SpecError
from graceful.learners import Batch, Learner
from graceful.models.base import Network
from graceful.tasks.base import MESSAGE_PREFIX, Samples, Split, Task
from graceful.tasks.streams import Stream
from graceful.tasks.user_errors import user_file_errors
from graceful.tasks.user_learner import UserLearner, batch_of, require_network

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
        self.classes, self.augments = own.classes, bool(getattr(own, "augments", False))
        learner: Learner | None = getattr(own, "learner", None)
        self.learner = None if learner is None else UserLearner(learner, path)

    def network(self, classes: tuple[str, ...]) -> nn.Module:
        """Implement `Task.network`.

        Raises:
            SpecError: An error in the file, or no network. Where the task has a learner, the network needs `classify`
                alone, for losses that read the frozen head.
        """
        with user_file_errors(self.path):
            built = self.own.network(classes)
        if self.learner is not None:
            return require_network(self.path, built)
        if not (isinstance(built, nn.Module) and isinstance(built, Network)):
            lacks = "embed and classify; return graceful.models.base.Headed(body, head)"
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
        """Implement `Task.samples`.

        Raises:
            SpecError: An error in the file, or no Samples.
            DataError: An empty split that training needs, or classes in another order than the task's.
        """
        where = f"{self.path}: samples({split!r})"
        try:
            with user_file_errors(self.path, passing=(KeyError,) if split in _MAY_BE_ABSENT else ()):
                samples: Any = self.own.samples(split)
            if isinstance(samples, Stream):
                samples = _of_stream(replace(samples, path=self.path), split)
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
        """Implement `Task.transform`.

        Raises:
            SpecError: An error in the file, no batch, or not one row for each item.
        """
        if self.learner is not None:
            return self.learner.collate(items, views)
        return batch_of(self.path, self.own.transform, items, views, name="transform()")

    def _read(self, read: Callable[[NDArray[Any]], Any], positions: NDArray[Any]) -> Any:
        with user_file_errors(self.path):
            return read(positions)


def _of_stream(stream: Stream, split: Split) -> Samples:
    """Return the samples of a stream: in memory as a whole, but for the training split."""
    if split == "train":
        return Samples.of_stream(stream)
    return replace(Samples.of_stream(stream, most=stream.length), stream=None)
