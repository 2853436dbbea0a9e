"""Look at the items of every split before a run begins: can they be read, do they fit, are they finite? In the driver.

A few of each split are always looked at, from its beginning to its end; all of them where that takes seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from graceful.chain import Predecessor
from graceful.errors import DataError, SpecError
from graceful.learners import Role, roles, run
from graceful.learners.batch import Batch, described, finite_rows, shape, take
from graceful.models.base import CODE_FAULTS
from graceful.tasks.base import Samples, Task

FIRST = 8
"""Samples of each split that are looked at however long it takes."""
SECONDS = 5.0
"""Seconds for the other samples of all splits together."""
_CHUNK = 32
Positions = NDArray[np.int64]
Shape = tuple[tuple[str, tuple[int, ...]], ...]


def require_readable(
    task: Task,
    splits: Mapping[str, Samples],
    version: Predecessor,
    *,
    seconds: float = SECONDS,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Read, transform and, where they look new, answer the samples of all splits.

    Args:
        task: Built.
        splits: Its splits by name.
        version: An untrained version of the run, which must be able to answer.
        seconds: For what is looked at beyond the first few.
        clock: Seconds.

    Raises:
        DataError: With split and id of the first sample that cannot be read, does not fit the others or the network, or
            is NaN or infinite where the network makes NaN of it.
    """
    looks = [_Look(task, name, samples, version) for name, samples in splits.items() if len(samples)]
    for look in looks:
        look.at(np.unique(np.linspace(0, len(look.samples) - 1, num=FIRST).astype(np.int64)))
    until = clock() + seconds
    for look in looks:
        for positions in _chunks(len(look.samples)):
            if clock() >= until:
                return
            look.at(positions)


def require_answers(versions: Sequence[Predecessor], samples: Samples, *, split: str) -> None:
    """Ask each version that can be run about the first sample of a split on which all of them will be measured.

    Raises:
        DataError: One cannot answer it; which, and why.
    """
    for version in versions:
        if version.unrunnable_reason or not len(samples):
            continue
        try:
            for role in roles(version.learner):
                version(samples.read(np.zeros(1, dtype=np.int64)), role=role)
        except (SpecError, DataError) as e:
            reason = e.message.removeprefix(f"{version.name}: ")
            raise DataError(
                f"{version.name} cannot answer sample {str(samples.ids[0])!r} of {split}, on which every version is"
                f" measured: {reason}; give samples that its transform and network take, or start another model"
            ) from e


def _chunks(count: int) -> Iterator[Positions]:
    for start in range(0, count, _CHUNK):
        yield np.arange(start, min(start + _CHUNK, count), dtype=np.int64)


class _Look:
    """One split, and the shapes of samples that the network has answered."""

    def __init__(self, task: Task, name: str, samples: Samples, version: Predecessor) -> None:
        self.task, self.name, self.samples, self.version = task, name, samples, version
        self._answered: set[Shape] = set()
        self._role: Role = "gallery" if name == "gallery" else "query"

    def at(self, positions: Positions) -> None:
        try:
            batch = self._batch(positions)
        except (SpecError, DataError, *CODE_FAULTS) as e:
            raise DataError(f"{self._first_misfit(positions)}: {_reason(e)}") from e
        self._require_finite(batch, positions)
        if shape(batch) not in self._answered:
            self._logits(take(batch, slice(1)), positions)
            self._answered.add(shape(batch))

    def _batch(self, positions: Positions) -> Batch:
        items = self.samples.read(positions)
        if hasattr(items, "__len__") and not isinstance(items, Mapping) and len(items) != len(positions):
            raise DataError(f"read() gave {len(items)} items for {len(positions)} positions; give one for each")
        return self.version.learner.collate(items, None)

    def _first_misfit(self, positions: Positions) -> str:
        """Return the sample that cannot be read alone, else the first that cannot be read with the one before it."""
        for count in (1, 2):
            for start in range(len(positions) - count + 1):
                few = positions[start : start + count]
                try:
                    self._batch(few)
                except (SpecError, DataError, *CODE_FAULTS):
                    return self._names(few)
        return self._names(positions)

    def _names(self, positions: Positions) -> str:
        names = [repr(str(name)) for name in self.samples.ids[positions]]
        if len(names) == 1:
            return f"task: sample {names[0]} of {self.name} cannot be read"
        which = f"{names[0]} and {names[1]}" if len(names) == 2 else f"{names[0]} to {names[-1]}"
        return f"task: samples {which} of {self.name} do not fit together"

    def _require_finite(self, batch: Batch, positions: Positions) -> None:
        bad = ~finite_rows(batch)
        if not bool(bad.any()):
            return
        logits = self._logits(take(batch, bad), positions)
        unanswered = ~logits.isfinite().all(1)
        if bool(unanswered.any()):
            which = positions[torch.nonzero(bad).flatten()[unanswered].numpy()]
            more = f" (and {len(which) - 1} more of the {len(positions)} looked at with it)" if len(which) > 1 else ""
            raise DataError(
                f"task: sample {str(self.samples.ids[which[0]])!r} of {self.name}{more} holds NaN or infinity after"
                " transform(), and the network makes NaN of it; leave it out, or fill it in"
            )

    def _logits(self, batch: Batch, positions: Positions) -> Tensor:
        try:
            with torch.no_grad():
                return run(self.version.learner, self.version.network, batch, role=self._role).logits
        except CODE_FAULTS as e:
            name = str(self.samples.ids[positions[0]])
            raise DataError(
                f"task: the network fails on sample {name!r} of {self.name}, {described(batch)}: {_reason(e)};"
                " give all samples a shape that it takes"
            ) from e


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, (SpecError, DataError)) else f"{type(error).__name__}: {text}"
