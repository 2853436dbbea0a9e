"""Refuse data on which a verdict would mean nothing, before any training. Runs in the driver."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np

from graceful.errors import DataError, SpecError
from graceful.tasks.base import Samples, Split, Task

_HELD_OUT: tuple[Split, ...] = ("validation", "constraint", "test")
_TRIED = 8
"""Samples of each split that are read and transformed, spread evenly."""


def require_sound(task: Task, train: Samples) -> None:
    """Refuse a task with one class, and splits that are empty, have one label, share ids or cannot be read.

    Raises:
        DataError: With the classes, the split or an id.
        SpecError: A user's task fails on a sample.
    """
    if len(task.classes) < 2:
        raise DataError(f"task: one class, {task.classes[0]!r}, leaves nothing to tell apart; give at least two")
    splits = {"train": train, **_held_out(task)}
    for name, samples in splits.items():
        if not len(samples) and name != "constraint":
            raise DataError(f"task: the {name} split is empty; give at least one sample in it")
    if train.labels.min() == train.labels.max():
        label = train.classes[train.labels[0]]
        raise DataError(f"task: every sample of the train split is labelled {label!r}; give samples of other classes")
    _require_apart(splits)
    for samples in splits.values():
        _try_out(task, samples)


def _held_out(task: Task) -> dict[str, Samples]:
    """The other splits; without a constraint split that cannot be opened: only budgets need one, and they say so."""
    opened = {}
    for name in _HELD_OUT:
        try:
            opened[str(name)] = task.samples(name)
        except (DataError, SpecError, KeyError):
            if name != "constraint":
                raise
    return opened


def _require_apart(splits: Mapping[str, Samples]) -> None:
    for one, other in itertools.combinations(splits, 2):
        shared = np.intersect1d(splits[one].ids, splits[other].ids)
        if len(shared):
            raise DataError(f"task: {len(shared)} ids are in {one} and in {other}, e.g. {shared[0]}; keep them apart")


def _try_out(task: Task, samples: Samples) -> None:
    """Read and transform some samples: what fails here would fail after hours of training.

    Raises:
        DataError: Not one input for each.
        SpecError: A user's task fails.
    """
    rows = np.unique(np.linspace(0, len(samples) - 1, min(_TRIED, len(samples))).astype(np.int64))
    if len(rows):
        inputs = task.transform(samples.read(rows), None)
        if len(inputs) != len(rows):
            raise DataError(f"task: {len(rows)} samples became {len(inputs)} inputs; return one row for each")
