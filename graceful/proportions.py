"""The interval of a proportion and what it takes to show a bound: floats only. Runs in every process.

Both the metrics, which measure, and the gate, which re-computes wider intervals, use these functions: equal inputs give
equal bits on both sides.
"""

from __future__ import annotations

import math
from statistics import NormalDist

CONFIDENCE = 0.95
SMALLEST_BOUND = 1e-9


def quantile(family_size: int = 1) -> float:
    """Return the two-sided normal quantile at which `family_size` intervals hold jointly at 95 % (Bonferroni); 1.96 for
    one."""
    return NormalDist().inv_cdf(1.0 - (1.0 - CONFIDENCE) / (2.0 * family_size))


def wilson(count: float, n: float, z: float | None = None) -> tuple[float, float]:
    """Return the Wilson score interval of `count` out of `n`.

    Args:
        count: In [0, n]; need not be whole (effective counts).
        n: Above 0.
        z: Normal quantile; None: 95 %.

    Returns:
        Lower and upper end, fractions in [0, 1]; exactly 0 at count 0 and exactly 1 at count n.

    Raises:
        ValueError: n <= 0 or count outside [0, n].

    Source: Wilson 1927.
    """
    if not n > 0 or not 0 <= count <= n:
        raise ValueError(f"count must be in [0, n] with n > 0, got {count} of {n}")
    z2 = (quantile() if z is None else z) ** 2
    centre = (count + z2 / 2.0) / (n + z2)
    half = math.sqrt(z2 * (count * (n - count) / n + z2 / 4.0)) / (n + z2)
    lower = 0.0 if count == 0 else max(0.0, centre - half)
    upper = 1.0 if count == n else min(1.0, centre + half)
    return lower, upper


def minimum_n(bound: float, z: float | None = None) -> int | None:
    """Return the smallest number of ids with which zero events show that a proportion is at most `bound`; 381 for one
    percent.

    Returns:
        n >= z^2 (1/bound - 1); 1 where the bound is 1 or more, None where no number will do (bound under 1e-9).
    """
    if bound < SMALLEST_BOUND:
        return None
    if bound >= 1.0:
        return 1
    z2 = (quantile() if z is None else z) ** 2
    n = max(1, math.ceil(z2 * (1.0 / bound - 1.0)))
    while wilson(0, n, z)[1] > bound:
        n += 1
    return n
