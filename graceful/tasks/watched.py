"""A user's task, watched: its errors get file and line, its answers are checked on entry. Driver and workers."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from torch import Tensor, nn

from graceful.errors import DataError, GracefulError, SpecError
from graceful.models.base import Network
from graceful.tasks.base import WHAT, Samples, Split, Task

_MAY_BE_ABSENT = ("query", "gallery")
_NEEDED = ("train", "validation")


class Watched:
    """The task that a user's file made, behind the same protocol.

    Attributes:
        own: What the file made.
        path: The file, for messages.
    """

    def __init__(self, own: Task, path: Path) -> None:
        self.own, self.path = own, path
        self.classes, self.augments = own.classes, own.augments

    def network(self, classes: tuple[str, ...]) -> nn.Module:
        """As `Task.network`.

        Raises:
            SpecError: An error in the file, or no network.
        """
        with blamed(self.path):
            built = self.own.network(classes)
        if not (isinstance(built, nn.Module) and isinstance(built, Network)):
            raise SpecError(
                f"{self.path}: network() returned a {type(built).__name__} without embed and classify; return"
                " graceful.models.base.Headed(body, head)"
            )
        return built

    def samples(self, split: Split) -> Samples:
        """As `Task.samples`.

        Raises:
            SpecError: An error in the file, or no Samples.
            DataError: An empty split that training needs, or classes in another order than the task's.
        """
        where = f"{self.path}: samples({split!r})"
        try:
            with blamed(self.path, passing=(KeyError,) if split in _MAY_BE_ABSENT else ()):
                found = self.own.samples(split)
        except DataError as e:
            if not e.message.startswith(WHAT):
                raise
            raise DataError(f"{where}: {e.message.removeprefix(WHAT)}") from e
        if not isinstance(found, Samples):
            raise SpecError(f"{where} returned a {type(found).__name__}; return Samples.of(items, labels, ...)")
        if split in _NEEDED and not len(found):
            raise DataError(f"{where} is empty; training needs at least one sample in it")
        if split not in _MAY_BE_ABSENT and found.classes != self.classes:
            raise DataError(f"{where} has classes {found.classes!r:.60}, the task {self.classes!r:.60}; give the same")
        return replace(found, read=partial(self._read, found.read))

    def transform(self, items: Any, views: NDArray[Any] | None) -> Tensor:
        """As `Task.transform`.

        Raises:
            SpecError: An error in the file, no tensor, or not one row for each item.
        """
        with blamed(self.path):
            found = self.own.transform(items, views)
        if not isinstance(found, Tensor):
            raise SpecError(f"{self.path}: transform() returned a {type(found).__name__}; return a torch.Tensor")
        if hasattr(items, "__len__") and found.shape[:1] != (len(items),):
            raise SpecError(
                f"{self.path}: transform() made {list(found.shape)} of {len(items)} items; return one row for each"
            )
        return found

    def _read(self, read: Callable[[NDArray[Any]], Any], positions: NDArray[Any]) -> Any:
        with blamed(self.path):
            return read(positions)


@contextmanager
def blamed(path: Path, *, passing: tuple[type[Exception], ...] = ()) -> Iterator[None]:
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
        raise SpecError(_blame(path, e)) from e


def _blame(path: Path, error: BaseException) -> str:
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}: {type(error).__name__}: {error.msg}; correct the file"
    ours = str(path.resolve())
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == ours]
    where = f"{path}:{lines[-1]}" if lines else str(path)
    reason = " ".join(str(error).split())
    return f"{where}: {type(error).__name__}: {reason}; correct the file"
