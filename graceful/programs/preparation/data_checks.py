"""Refuse data on which a verdict would have no meaning, before any training. Runs in the driver."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from graceful.errors import DataError, SpecError
from graceful.tasks.base import Samples, Split, Task
from graceful.tasks.names import AT_ONCE, shared

_HELD_OUT: tuple[Split, ...] = ("validation", "constraint", "test")
_RETRIEVAL: tuple[Split, ...] = ("query", "gallery")


def require_sound(task: Task, train: Samples, *, retrieval: bool = False) -> dict[str, Samples]:
    """Refuse a task with one class, and splits that are empty, have one label or share ids.

    Args:
        task: Built.
        train: Its training split.
        retrieval: Whether query and gallery will be read, where the task has them.

    Returns:
        Every split that the run will read, by name; see `inspection` for what is in them.

    Raises:
        DataError: With the classes, the split or an id.
    """
    if len(task.classes) < 2:
        raise DataError(f"task: one class, {task.classes[0]!r}, leaves nothing to tell apart; give at least two")
    splits = {"train": train, **_opened(task, _HELD_OUT, absent="constraint")}
    read_splits = {**splits, **(_opened(task, _RETRIEVAL) if retrieval else {})}
    for name, samples in read_splits.items():
        if not len(samples) and name != "constraint":
            raise DataError(f"task: the {name} split is empty; give at least one sample in it")
    if _all_the_same(train.labels):
        label = train.classes[train.labels[0]]
        raise DataError(f"task: every sample of the train split is labelled {label!r}; give samples of other classes")
    _require_apart(splits)
    return read_splits


def _opened(task: Task, names: tuple[Split, ...], *, absent: str = "") -> dict[str, Samples]:
    """Open splits. Query and gallery may be absent, for test stands in for them; the constraint split may also be one
    that cannot be opened: only budgets need it, and they say so."""
    opened = {}
    for name in names:
        try:
            opened[str(name)] = task.samples(name)
        except KeyError:
            if name not in (*_RETRIEVAL, absent):
                raise
        except (DataError, SpecError):
            if name != absent:
                raise
    return opened


def _require_apart(splits: Mapping[str, Samples]) -> None:
    for split, other in itertools.combinations(splits, 2):
        both = shared(splits[split].ids, splits[other].ids)
        if len(both):
            raise DataError(f"task: {len(both)} ids are in {split} and in {other}, e.g. {both[0]}; keep them apart")


def _all_the_same(labels: NDArray[np.int64]) -> bool:
    return all((labels[start : start + AT_ONCE] == labels[0]).all() for start in range(0, len(labels), AT_ONCE))
