"""How many samples to run at a time, by the bytes they take. Driver and workers.

A count that suits small images fills the memory with large ones, so a count is only an upper bound.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from graceful.learners.batch import Batch, leaves
from graceful.tasks.base import Samples

MEMORY_LIMIT = 64 * 2**20
"""Bytes of raw items and batch together; a network's activations take several times as much."""


def portion(samples: Samples, collate: Callable[[Any, None], Batch], *, most: int) -> int:
    """Return how many samples may be read, collated and run at once, from 1 to `most`; the same in every process.

    The size of the first sample is taken for all.

    Args:
        samples: The samples of one split.
        collate: Of the learner of the version that runs on them.
        most: Upper bound, whatever the size of a sample.
    """
    if not len(samples):
        return most
    items = samples.read(np.zeros(1, dtype=np.int64))
    batch_bytes = sum(tensor.nbytes for _, tensor in leaves(collate(items, None)))
    return max(1, min(most, MEMORY_LIMIT // max(_bytes_of(items) + batch_bytes, 1)))


def _bytes_of(items: Any) -> int:
    """Return the bytes of an array or a tensor, or of the items of a list or dictionary."""
    size = getattr(items, "nbytes", None)
    if isinstance(size, int):
        return size
    parts = items.values() if isinstance(items, dict) else items if isinstance(items, list | tuple) else ()
    return sum(_bytes_of(item) for item in parts)
