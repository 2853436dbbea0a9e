"""Refuse data on which a verdict would mean nothing, before any training. Runs in the driver."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from graceful.errors import DataError, SpecError
from graceful.tasks.base import Samples, Split, Task

_HELD_OUT: tuple[Split, ...] = ("validation", "constraint", "test")


def require_sound(task: Task, train: Samples) -> None:
    """Refuse a task with one class, or with splits that share ids.

    Raises:
        DataError: With the classes or an id.
    """
    if len(task.classes) < 2:
        raise DataError(f"task: one class, {task.classes[0]!r}, leaves nothing to tell apart; give at least two")
    ids = {"train": train.ids, **{name: _ids(task, name) for name in _HELD_OUT}}
    for one, other in itertools.combinations(ids, 2):
        shared = np.intersect1d(ids[one], ids[other])
        if len(shared):
            raise DataError(f"task: {len(shared)} ids are in {one} and in {other}, e.g. {shared[0]}; keep them apart")


def _ids(task: Task, split: Split) -> NDArray[np.str_]:
    """Of a split; of a constraint split that cannot be opened none: only budgets need one, and they say so."""
    try:
        return task.samples(split).ids
    except (DataError, SpecError, KeyError):
        if split != "constraint":
            raise
        return np.empty(0, dtype=np.str_)
