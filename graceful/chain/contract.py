"""The budgets of a run and the predecessors' correctness on the constraint split. Made by the driver."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graceful.chain.budgets import Budget
from graceful.proportions import wilson


@dataclass(frozen=True, kw_only=True, eq=False)
class Contract:
    """Budgets, and the predecessors' correctness on the constraint split.

    Attributes:
        budgets: One for each predecessor in training, in its order.
        right: [k, N] bool, the predecessor is right; False where it does not know the class.
        known: [k, N] bool, it knows the class.
        reference_error: Error of the unconstrained run over all N ids.
        pace: For each epoch its error then over its final one, at least 1; empty: 1 throughout.
        data: Digest of the constraint split.
    """

    budgets: tuple[Budget, ...]
    right: NDArray[np.bool_]
    known: NDArray[np.bool_]
    reference_error: float
    pace: tuple[float, ...] = ()
    data: str = ""

    def pace_of(self, epoch: int) -> float:
        """Return the pace of an epoch, counted from 0; the last one's for later epochs."""
        return self.pace[min(epoch, len(self.pace) - 1)] if self.pace else 1.0

    def document(self) -> dict[str, Any]:
        """Return the contract as JSON values, without the masks."""
        return {
            "reference_error": self.reference_error,
            "pace": list(self.pace),
            "ids": self.right.shape[1],
            "data": self.data,
            "budgets": [budget.document() for budget in self.budgets],
        }

    def identity(self) -> dict[str, Any]:
        """Return what it was made from, as JSON values; a resumed run must have the same.

        Bounds and pace follow from this, from the spec and from the predecessors. They are measured, so that another
        machine may find one id more or less: no reason to refuse to resume there.
        """
        return {"data": self.data}


def flips_between(right: NDArray[np.bool_], known: NDArray[np.bool_]) -> dict[tuple[int, int], float]:
    """Return the upper ends of NFR(k, j) for each pair of predecessors, k nearer than j.

    Args:
        right: [k, N] bool, nearest first.
        known: [k, N] bool.

    Returns:
        (k, j) -> upper end of the 95 % interval; pairs where k does not know every id of j are missing.
    """
    upper_ends = {}
    for nearer in range(len(right)):
        for farther in range(nearer + 1, len(right)):
            ids = known[farther]
            if ids.any() and known[nearer][ids].all():
                flipped = int((right[farther] & ~right[nearer] & ids).sum())
                upper_ends[nearer, farther] = wilson(flipped, int(ids.sum()))[1]
    return upper_ends
