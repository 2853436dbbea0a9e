"""How many samples to run at a time, by the bytes they take. Driver and workers.

A count that suits small images fills the memory with large ones, so a count is only an upper bound.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from graceful.tasks.base import Samples

ROOM = 64 * 2**20
"""Bytes of raw items and inputs together; a network's activations take several times as much."""


def portion(samples: Samples, transform: Callable[[Any, None], Tensor], *, most: int) -> int:
    """How many samples may be read, transformed and run at once, from 1 to `most`; every process gets the same number.

    The first sample stands for all.

    Args:
        samples: Which.
        transform: That of the version that runs on them.
        most: Whatever their size.
    """
    if not len(samples):
        return most
    items = samples.read(np.zeros(1, dtype=np.int64))
    inputs = transform(items, None)
    return max(1, min(most, ROOM // max(_bytes_of(items) + inputs.nbytes, 1)))


def _bytes_of(items: Any) -> int:
    """Of an array or a tensor, or of the items of a list that say theirs."""
    size = getattr(items, "nbytes", None)
    if isinstance(size, int):
        return size
    return sum(_bytes_of(item) for item in items) if isinstance(items, list | tuple) else 0
