"""The exact solver: a factorised system of samples x classes, its leave-one-out errors and the penalty they choose.

    delta = J' alpha,   alpha = (K + r W^-1)^-1 R,   K = J J',   r = N penalty

The system is factorised once (eigenvalues of W^1/2 K W^1/2); every penalty and every set of targets then costs
products of matrices alone. Leaving a sample out with r fixed changes its own error to (A^-1)_ii^-1 alpha_i, with A the
matrix above and _ii the block of its classes: exactly what training without it would give.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from graceful.errors import SpecError

MOST_ROWS = 2_000
"""Samples x classes up to which the factorisation is worth its time."""
MOST_PARTS = 8
"""Times that `auto` lets J be made, because it does not fit into memory as a whole."""
MATRICES, LEAST_ELEMENTS = 4, 1_024
"""Matrices [M, M] of the system in memory at once; elements of a row of J, below which it is made in too many parts."""
GRID = tuple(10.0 ** (half / 2.0) for half in range(-12, 7))
"""Ridges that leave-one-out tries, as a share of the mean eigenvalue of K."""


class DualSystem:
    """The factorised system of one kernel and one set of weights.

    Args:
        kernel: [M, M] float64, K.
        weights: [M] W; rows of weight 0 have no part.
        classes: C; rows of one sample are C neighbours.
    """

    def __init__(self, kernel: Tensor, weights: Tensor, *, classes: int) -> None:
        self._root = weights.double().sqrt()
        self._classes = classes
        self._values, self._vectors = torch.linalg.eigh(self._root[:, None] * kernel.double() * self._root)
        self._values = self._values.clamp(min=0.0)

    @property
    def mean_eigenvalue(self) -> float:
        """Return the mean eigenvalue, which is the scale of useful ridges."""
        return float(self._values.mean())

    def solve(self, residual: Tensor, ridge: float) -> Tensor:
        """Return alpha [M] for targets less starting outputs [M]."""
        alpha: Tensor = self._root * self._inverse_times(self._root * residual.double(), ridge)
        return alpha

    def smoothed(self, values: Tensor, ridge: float) -> Tensor:
        """Return `W^1/2 (W^1/2 K W^1/2 + ridge)^-1 W^1/2 values` for columns [M, n]."""
        root = self._root[:, None]
        result: Tensor = root * self._inverse_times(root * values.double(), ridge)
        return result

    def _inverse_times(self, right: Tensor, ridge: float) -> Tensor:
        scale = self._values + ridge
        product: Tensor = self._vectors @ ((self._vectors.T @ right) / (scale if right.ndim == 1 else scale[:, None]))
        return product

    def largest(self, rank: int) -> tuple[Tensor, Tensor]:
        """Return the largest eigenvalues [r] above zero, and W^1/2 times their eigenvectors, [M, r]."""
        order = self._values.argsort(descending=True)[:rank]
        order = order[self._values[order] > 1e-12 * self._values.max()]
        return self._values[order], self._root[:, None] * self._vectors[:, order]

    def left_out(self, residual: Tensor, ridge: float) -> Tensor:
        """Return [N, C], targets less predictions for each sample by the solution of all others.

        Rows of weight 0 get 0: they have no target.
        """
        blocks = self._vectors.reshape(-1, self._classes, len(self._values))
        inverse_blocks = torch.einsum("icm,idm->icd", blocks / (self._values + ridge), blocks)
        right = self._inverse_times(self._root * residual.double(), ridge).reshape(-1, self._classes)
        errors = torch.linalg.solve(inverse_blocks, right.unsqueeze(2)).squeeze(2)
        root = self._root.reshape(-1, self._classes)
        return torch.where(root > 0.0, errors / torch.where(root > 0.0, root, 1.0), 0.0)


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """A ridge and how it was found.

    Attributes:
        ridge: N x penalty.
        score: Mean squared error at it.
        edge: `smallest` or `largest` where it is at that end of the grid; empty: inside.
    """

    ridge: float
    score: float
    edge: str


def choose_ridge(
    system: DualSystem, residual: Tensor, labels_residual: Tensor, *, grid: Sequence[float] = GRID
) -> Chosen:
    """Return the ridge with the smallest leave-one-out error against the labels.

    Args:
        system: Factorised.
        residual: [M] targets less starting outputs: what is solved for.
        labels_residual: [M] label targets less starting outputs: what is predicted; the same without predecessors.
        grid: Ridges as a share of the mean eigenvalue.
    """
    scale = system.mean_eigenvalue
    gap = (labels_residual - residual).double()
    ridges = [share * scale for share in grid]
    scores = []
    for ridge in ridges:
        errors = system.left_out(residual, ridge)
        scores.append(float((errors + gap.reshape(errors.shape)).square().sum(1).mean()))
    best = min(range(len(scores)), key=lambda index: scores[index] if math.isfinite(scores[index]) else math.inf)
    edge = "smallest" if best == 0 else "largest" if best == len(scores) - 1 else ""
    return Chosen(ridge=ridges[best], score=scores[best], edge=edge)


def elements_at_once(rows: int, parameters: int, limit: int) -> int:
    """Return how many elements of each row of J fit into memory at once, at most all of them.

    Args:
        rows: M, samples x classes.
        parameters: P.
        limit: Bytes.

    Raises:
        SpecError: Fewer than a thousand beside the matrices of the system; nothing was allocated.
    """
    system = MATRICES * 8 * rows * rows
    elements = max(limit - system, 0) // (8 * max(rows, 1))
    if elements < min(parameters, LEAST_ELEMENTS):
        needed = system + 8 * rows * min(parameters, LEAST_ELEMENTS)
        raise SpecError(
            f"train.method.solver: exact needs {needed / 2**30:.3g} GiB for {rows} samples x classes, memory_gib allows"
            f" {limit / 2**30:.3g}; write solver: pcg, fewer samples, or a larger memory_gib"
        )
    return min(elements, parameters)


def fits(rows: int, parameters: int, limit: int) -> bool:
    """Return whether `auto` takes the exact solver: the factorisation is worth its time, and J is made in few parts."""
    if rows > MOST_ROWS or MATRICES * 8 * rows * rows > limit:
        return False
    elements = (limit - MATRICES * 8 * rows * rows) // (8 * max(rows, 1))
    return elements * MOST_PARTS >= parameters
