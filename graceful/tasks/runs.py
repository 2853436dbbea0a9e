"""Runs of neighbouring samples, which are cheap to read together. Driver and workers; numpy only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, eq=False)
class Runs:
    """A split as runs of neighbouring positions, for an order that reads one run after the other.

    Attributes:
        starts: [R + 1] int64, the first position of each run, and the number of samples.
        window: Runs whose samples are mixed; see `graceful.training.block_order`.
        fetch_ahead: Called with the runs of a window while the one before it is read; None: nothing is gained.
    """

    starts: NDArray[np.int64]
    window: int
    fetch_ahead: Callable[[NDArray[np.int64]], None] | None = None


def cut(bounds: NDArray[np.int64], *, run: int) -> NDArray[np.int64]:
    """Return the starts of runs of at most `run` positions, none of which passes a bound.

    Args:
        bounds: [S + 1] sorted, e.g. the first position of each file, and the number of samples.
        run: At least 1.
    """
    parts = [np.arange(start, stop, run) for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)]
    return np.asarray(np.concatenate([*parts, bounds[-1:]]), dtype=np.int64)
