"""The budgets of a run and the predecessors' correctness on the constraint split. Made by the driver."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graceful.chain.budgets import Budget, Standing
from graceful.proportions import wilson


@dataclass(frozen=True, kw_only=True, eq=False)
class Correctness:
    """What one predecessor gets right on the constraint split.

    Attributes:
        name: The name of the version.
        right: [N] bool, it is right; False where it does not know the class.
        known: [N] bool, it knows the class.
    """

    name: str
    right: NDArray[np.bool_]
    known: NDArray[np.bool_]

    def standing(self, reference_error: float) -> Standing:
        """Return the predecessor on its ids, beside the error of the unconstrained runs there."""
        ids = self.known
        error = 1.0 - float(self.right[ids].mean()) if ids.any() else 1.0
        return Standing(name=self.name, n=int(ids.sum()), error=error, reference_error=reference_error)


@dataclass(frozen=True, kw_only=True, eq=False)
class Promise:
    """What may flip against one predecessor, and what there is to flip.

    Attributes:
        budget: What may.
        correctness: What it gets right.
    """

    budget: Budget
    correctness: Correctness


@dataclass(frozen=True, kw_only=True, eq=False)
class Contract:
    """What a run has promised its predecessors in training.

    Attributes:
        promises: One for each of them, nearest first.
        reference_error: Error of the unconstrained run over all N ids.
        pace: For each epoch its error then over its final one, at least 1; empty: 1 throughout.
        data: Digest of the constraint split.
    """

    promises: tuple[Promise, ...]
    reference_error: float
    pace: tuple[float, ...] = ()
    data: str = ""

    @property
    def budgets(self) -> tuple[Budget, ...]:
        """Return what may flip, nearest predecessor first."""
        return tuple(promise.budget for promise in self.promises)

    def pace_of(self, epoch: int) -> float:
        """Return the pace of an epoch, counted from 0; the last one's for later epochs."""
        return self.pace[min(epoch, len(self.pace) - 1)] if self.pace else 1.0

    def document(self) -> dict[str, Any]:
        """Return the contract as JSON values, without the masks."""
        return {
            "reference_error": self.reference_error,
            "pace": list(self.pace),
            "ids": max((len(promise.correctness.right) for promise in self.promises), default=0),
            "data": self.data,
            "budgets": [budget.document() for budget in self.budgets],
        }

    def identity(self) -> dict[str, Any]:
        """Return what it was made from, as JSON values; a resumed run must have the same.

        Bounds and pace follow from this, from the spec and from the predecessors. They are measured, so that another
        machine may find one id more or less: no reason to refuse to resume there.
        """
        return {"data": self.data}


def flips_between(chain: Sequence[Correctness]) -> dict[tuple[str, str], float]:
    """Return the upper ends of NFR(k, j) for each pair of predecessors, k nearer than j.

    Args:
        chain: Nearest first.

    Returns:
        (k, j) by name -> upper end of the 95 % interval; pairs where k does not know every id of j are missing.
    """
    upper_ends = {}
    for nearer, farther in itertools.combinations(chain, 2):
        ids = farther.known
        if ids.any() and nearer.known[ids].all():
            flipped = int((farther.right & ~nearer.right & ids).sum())
            upper_ends[nearer.name, farther.name] = wilson(flipped, int(ids.sum()))[1]
    return upper_ends
