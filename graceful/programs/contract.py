"""Make the contract of a run: ask predecessors and the unconstrained run about the constraint split. In the driver."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from graceful import spec
from graceful.chain import Predecessor, budgets
from graceful.chain.contract import Contract, flips_between
from graceful.errors import DataError
from graceful.tasks.base import Samples, Task


@dataclass(frozen=True, kw_only=True)
class Unconstrained:
    """A run of the same recipe that owed nobody anything.

    Attributes:
        version: The trained network.
        errors: Its validation error after each epoch.
    """

    version: Predecessor
    errors: tuple[float, ...]


def contract(
    weighting: spec.Adaptive,
    task: Task,
    chain: Sequence[Predecessor],
    *,
    references: Sequence[Unconstrained],
    batch_size: int,
) -> Contract:
    """Measure what budgets rest on, and plan them.

    Args:
        weighting: What was asked for.
        task: Whose constraint split is used.
        chain: The predecessors in training, nearest first.
        references: Unconstrained runs; may be empty where `weighting.reference_error` is given.
        batch_size: Samples per forward pass.

    Raises:
        DataError: The constraint split is empty.
        SpecError: A budget is infeasible and `weighting.infeasible` is refuse, or a bound names no predecessor.
    """
    samples = task.samples("constraint")
    if not len(samples):
        raise DataError("task: the constraint split is empty; adaptive weighting needs samples in it")
    names = np.asarray(samples.classes)[samples.labels]
    known = np.array([np.isin(names, version.classes) for version in chain])
    right = np.array([_right(version, samples, names, batch_size) for version in chain])
    free = [_right(one.version, samples, names, batch_size) for one in references]
    given = weighting.reference_error

    def reference_error(ids: NDArray[np.bool_]) -> float:
        if given is not None or not ids.any():
            return given or 0.0
        return math.fsum(1.0 - float(one[ids].mean()) for one in free) / len(free)

    standings = [
        budgets.Standing(
            name=version.name,
            n=int(ids.sum()),
            error=1.0 - float(ok[ids].mean()) if ids.any() else 1.0,
            reference_error=reference_error(ids),
        )
        for version, ids, ok in zip(chain, known, right, strict=True)
    ]
    upper = {(chain[near].name, chain[far].name): rate for (near, far), rate in flips_between(right, known).items()}
    return Contract(
        budgets=_planned(weighting, standings, upper),
        right=right,
        known=known,
        reference_error=reference_error(np.ones(len(samples), dtype=np.bool_)),
        pace=_pace([one.errors for one in references]),
        data=samples.digest,
    )


def _planned(
    weighting: spec.Adaptive, standings: Sequence[budgets.Standing], upper: Mapping[tuple[str, str], float]
) -> tuple[budgets.Budget, ...]:
    found = budgets.plan(
        standings, relative=weighting.relative, growth=weighting.growth, bounds=weighting.bounds, upper=upper
    )
    if weighting.infeasible == "refuse":
        budgets.require_feasible(found)
    return found


def _right(version: Predecessor, samples: Samples, names: NDArray[np.str_], batch_size: int) -> NDArray[np.bool_]:
    """[N] whether a version is right, on the clean view."""
    found = []
    for start in range(0, len(samples), batch_size):
        rows = np.arange(start, min(start + batch_size, len(samples)), dtype=np.int64)
        logits = version(samples.read(rows)).logits.cpu()
        sound = logits.isfinite().all(1).numpy()
        found.append(sound & (np.asarray(version.classes)[logits.argmax(1).numpy()] == names[rows]))
    return np.concatenate(found)


def _pace(runs: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """Mean error of each epoch over the final one, never below 1; empty without runs or where the final error is 0."""
    if not runs or not all(errors and errors[-1] > 0.0 for errors in runs):
        return ()
    ratios = [[error / errors[-1] for error in errors] for errors in runs]
    return tuple(max(1.0, math.fsum(epoch) / len(epoch)) for epoch in zip(*ratios, strict=True))
