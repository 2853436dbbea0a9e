"""Interpolation on the sphere. float64, NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from graceful.adapters.maps import unit
from graceful.errors import DataError

_STRAIGHT = 1e-7
"""Angle below which, or as near to a half turn, the chord replaces the arc."""


def slerp(first: NDArray[np.floating[Any]], second: NDArray[np.floating[Any]], share: float) -> NDArray[np.float32]:
    """Return the points on the great circles from one set of vectors to another.

    Args:
        first: [N, d], what share 0 returns, normalised.
        second: [N, d], what share 1 returns, normalised.
        share: The share of the angle, in [0, 1].

    Returns:
        [N, d] of length 1. Vectors that point the same way stay; opposite ones have no one circle, and the nearer of
        the two is returned.

    Raises:
        DataError: Different shapes, or a share outside [0, 1].

    Source: Shoemake 1985.
    """
    if first.shape != second.shape or not 0.0 <= share <= 1.0:
        raise DataError(
            f"slerp: needs vectors of one shape and a share in [0, 1], got {list(first.shape)}, {list(second.shape)}"
            f" and {share:g}"
        )
    a, b = unit(first), unit(second)
    angle = np.arccos(np.clip((a * b).sum(axis=1, keepdims=True), -1.0, 1.0))
    sine = np.sin(angle)
    curved = sine > _STRAIGHT
    safe = np.where(curved, sine, 1.0)
    from_first = np.where(curved, np.sin((1.0 - share) * angle) / safe, float(share < 0.5))
    from_second = np.where(curved, np.sin(share * angle) / safe, float(share >= 0.5))
    return unit(from_first * a + from_second * b).astype(np.float32)
