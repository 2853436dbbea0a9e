"""Which ids the search sees, and which it does not: search, held back, test. Runs in the driver and in trials.

validation     the search
constraint     the final selection; where it is taken already (multipliers of adaptive weighting, thresholds of
               verification), validation is halved by group instead
test           once, at the end
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from graceful.errors import DataError
from graceful.spec import RefreshSpec
from graceful.tasks.base import Samples, Task
from graceful.tasks.hashing import fractions
from graceful.tasks.names import Column

Part = Literal["search", "held_back", "test"]
SALT = 77
LEAST = 100
"""Ids below which a rate of a few percent cannot be estimated."""


def part(task: Task, spec: RefreshSpec, name: Part) -> Samples:
    """Open one of the three parts.

    Raises:
        DataError: It has fewer than 100 ids.
    """
    samples = _part(task, spec, name)
    if len(samples) < LEAST:
        raise DataError(
            f"tune: {len(samples)} ids are left for {name.replace('_', ' ')}, need at least {LEAST};"
            " give the task larger validation and constraint splits"
        )
    return samples


def _part(task: Task, spec: RefreshSpec, name: Part) -> Samples:
    if name == "test":
        return task.samples("test")
    constraint_used = spec.compatibility.weighting.kind == "adaptive" or (
        spec.tune is not None and spec.tune.far is not None
    )
    if not constraint_used:
        return task.samples("validation" if name == "search" else "constraint")
    validation = task.samples("validation")
    in_search = fractions(np.asarray(validation.groups), salt=SALT) < 0.5
    return validation.at(np.flatnonzero(in_search if name == "search" else ~in_search))


def numbered(groups: Column) -> NDArray[np.int64]:
    """Return groups as whole numbers from 0."""
    return np.unique(np.asarray(groups), return_inverse=True)[1].astype(np.int64)


def described(task: Task, spec: RefreshSpec) -> Mapping[str, str]:
    """Return what each part consists of, for people."""
    descriptions = {}
    for name in get_args(Part):
        samples = _part(task, spec, name)
        descriptions[name] = f"{len(samples)} ids in {len(np.unique(np.asarray(samples.groups)))} groups"
    return descriptions
