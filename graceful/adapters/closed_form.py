"""Maps with a closed form: Procrustes, and affine maps of low rank. float64, NumPy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graceful.adapters.maps import Floats, Map, rounded, unit
from graceful.errors import DataError


def procrustes(source: NDArray[np.floating[Any]], target: NDArray[np.floating[Any]]) -> Map:
    """Return the translation, rotation and scale that bring one set of vectors nearest to another.

    Args:
        source: [N, a], normalised here.
        target: [N, b], the same samples in the other space, normalised here.

    Returns:
        x -> (x - mean) s R + mean of the target. R = U V' of the singular value decomposition of X'Y, both centred:
        where a <= b it keeps lengths and minimises the squared distance exactly; where a > b it is the projection
        onto b orthogonal directions with the largest covariance, and s is the best scale for it.

    Raises:
        DataError: No pairs, or sets of different length.

    Source: Schoenemann 1966; Gower and Dijksterhuis 2004.
    """
    x, y, x_mean, y_mean = _centred(source, target)
    left, singular, right = np.linalg.svd(x.T @ y, full_matrices=False)
    rotation = left @ right
    length = float(((x @ rotation) ** 2).sum())
    scale = float(singular.sum()) / length if length > 0.0 else 0.0
    bias = y_mean - scale * (x_mean @ rotation)
    return rounded("procrustes", weight=scale * rotation, bias=bias)


def low_rank(
    source: NDArray[np.floating[Any]], target: NDArray[np.floating[Any]], *, rank: int, ridge: float = 1e-3
) -> Map:
    """Return the affine map of limited rank with the smallest squared error and penalty.

    Args:
        source: [N, a], normalised here.
        target: [N, b], the same samples in the other space, normalised here.
        rank: Largest rank of the matrix.
        ridge: Penalty on the squared matrix, as a share of the mean squared length of a centred source vector.

    Returns:
        x -> x B V V' + bias: B is the ridge solution, V the first right singular vectors of what it predicts, the
        penalty counted in. No iteration, no seed.

    Raises:
        DataError: No pairs, or sets of different length.

    Source: Izenman 1975 (reduced-rank regression); Mukherjee and Zhu 2011 (with a ridge penalty).
    """
    return RidgePath.of(source, target, ridge=ridge).at(rank)


@dataclass(frozen=True, kw_only=True, eq=False)
class RidgePath:
    """A ridge solution from which the maps of every rank follow.

    Attributes:
        solution: B [a, b].
        directions: V [b, b], most important first.
        source_mean, target_mean: [a], [b].
    """

    solution: Floats
    directions: Floats
    source_mean: Floats
    target_mean: Floats

    @classmethod
    def of(cls, source: NDArray[np.floating[Any]], target: NDArray[np.floating[Any]], *, ridge: float) -> RidgePath:
        """Solve it once; arguments as of `low_rank`."""
        x, y, x_mean, y_mean = _centred(source, target)
        gram = x.T @ x
        gram[np.diag_indices_from(gram)] += max(ridge, 1e-12) * len(x) * float((x**2).sum() / len(x)) / x.shape[1]
        covariance = x.T @ y
        solution = np.asarray(np.linalg.solve(gram, covariance), dtype=np.float64)
        directions = np.asarray(np.linalg.eigh(solution.T @ gram @ solution)[1], dtype=np.float64)
        return cls(solution=solution, directions=directions[:, ::-1], source_mean=x_mean, target_mean=y_mean)

    def at(self, rank: int) -> Map:
        """Return the map of a rank."""
        chosen = self.directions[:, :rank]
        left = self.solution @ chosen
        bias = self.target_mean - self.source_mean @ left @ chosen.T
        return rounded("low_rank", left=left, right=chosen.T, bias=bias)


def _centred(
    source: NDArray[np.floating[Any]], target: NDArray[np.floating[Any]]
) -> tuple[Floats, Floats, Floats, Floats]:
    if len(source) != len(target) or not len(source):
        raise DataError(
            f"adapter: needs pairs of vectors, got {len(source)} of one model and {len(target)} of the other"
        )
    x, y = unit(source), unit(target)
    x_mean, y_mean = x.mean(axis=0), y.mean(axis=0)
    return x - x_mean, y - y_mean, x_mean, y_mean
