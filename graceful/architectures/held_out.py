"""The samples that a search sees, and the task that trains its supernet: three sets of identities. Driver and actors.

The supernet is trained on some of the classes, paths are compared on validation samples of the others, and the query
and gallery splits of the task stay for the versions that are trained from scratch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from graceful.errors import DataError
from graceful.storage import sha256_json
from graceful.tasks.base import Samples, Split, Task
from graceful.tasks.hashing import fractions

SALT = 1616
LEAST = 20
"""Queries below which the order of paths would be chance."""


@dataclass(frozen=True)
class Sides:
    """What paths are measured on.

    Attributes:
        query: Samples of some groups.
        gallery: Samples of the same classes in the other groups.
    """

    query: Samples
    gallery: Samples


def held_out_classes(classes: tuple[str, ...], share: float) -> tuple[str, ...]:
    """Return the classes that the supernet is not trained on, chosen by their names; at least two unless share is 0."""
    if share == 0.0:
        return ()
    order = np.argsort(fractions(np.asarray(classes), salt=SALT), kind="stable")
    return tuple(classes[index] for index in order[: max(2, round(share * len(classes)))])


class SupernetTask:
    """A task whose network is a supernet, without the held-out classes in training and validation.

    Args:
        data: The spec's task.
        make: Returns the supernet for a number of classes.
        held_out: Names of classes.

    Raises:
        DataError: No class is left to train on, or training data are streamed and some are to be held out.
    """

    def __init__(self, data: Task, make: Callable[[int], nn.Module], *, held_out: tuple[str, ...]) -> None:
        self._data, self._make, self._held_out = data, make, held_out
        self.classes, self.augments = data.classes, data.augments
        if hasattr(data, "learner"):
            self.learner = data.learner
        if len(held_out) > len(data.classes) - 2:
            raise DataError(
                f"architectures.held_out: holds {len(held_out)} of {len(data.classes)} classes out, 2 must be left to"
                " train on; write held_out: 0 for so few"
            )
        if held_out and data.samples("train").stream is not None:
            raise DataError(
                "architectures.held_out: classes of streamed training data cannot be held out; write held_out: 0"
            )

    def network(self, classes: tuple[str, ...]) -> nn.Module:
        """Build the supernet."""
        return self._make(len(classes))

    def samples(self, split: Split) -> Samples:
        """Implement `Task.samples`, of training and validation without held-out classes."""
        samples = self._data.samples(split)
        return without(samples, self._held_out) if split in ("train", "validation") else samples

    def transform(self, items: Any, views: NDArray[Any] | None) -> Any:
        """Implement `Task.transform`."""
        return self._data.transform(items, views)


def without(samples: Samples, classes: tuple[str, ...]) -> Samples:
    """Return the samples of all other classes; the class names stay, and so do labels."""
    if not classes:
        return samples
    left = ~np.isin(np.asarray(samples.classes)[samples.labels], classes)
    return some(samples, np.flatnonzero(left), what=["without", *sorted(classes)])


def sides_of(task: Task, held_out: tuple[str, ...], *, images: int) -> Sides:
    """Return the validation samples that paths are compared on: half of the groups are queries, the others gallery.

    Args:
        task: The spec's task.
        held_out: Only these classes; empty: all.
        images: How many at most.

    Raises:
        DataError: Too few.
    """
    samples = task.samples("validation")
    names = np.asarray(samples.classes)[samples.labels]
    positions = np.flatnonzero(np.isin(names, held_out)) if held_out else np.arange(len(samples), dtype=np.int64)
    groups = np.asarray(samples.groups)[positions]
    first = np.isin(groups, np.unique(groups)[0::2])
    sides = [_evenly(positions[rows], most=images // 2) for rows in (first, ~first)]
    if min(map(len, sides)) < LEAST:
        raise DataError(
            f"architectures: {len(sides[0])} queries and {len(sides[1])} gallery samples are left to compare networks"
            f" on, need {LEAST} each; raise architectures.held_out or images, or give the task more validation samples"
        )
    query, gallery = (some(samples, rows, what=["side", *held_out, str(images)]) for rows in sides)
    return Sides(query=query, gallery=gallery)


def _evenly(positions: NDArray[np.int64], *, most: int) -> NDArray[np.int64]:
    if len(positions) <= most:
        return positions
    return positions[np.linspace(0, len(positions) - 1, most).astype(np.int64)]


def some(samples: Samples, positions: NDArray[np.int64], *, what: list[str]) -> Samples:
    """Return some of the samples, in their order, with a digest of their own."""
    digest = sha256_json([samples.digest, *what, len(positions), int(positions.sum())])
    return replace(samples.at(positions, digest=digest), judgments=None)
