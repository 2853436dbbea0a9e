"""Blocks of samples for a forward pass of a predecessor, and a check of its outputs. Driver, or workers for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from graceful.chain import Predecessor
from graceful.errors import DataError
from graceful.models.base import Outputs
from graceful.tasks.base import Samples


class Block(NamedTuple):
    """Some samples in one view."""

    view: int
    start: int
    stop: int
    numbers: NDArray[np.uint64] | None
    """[stop - start] view numbers; None: clean."""


Compute = Callable[[Iterable[Block]], Iterator[Outputs]]
"""Blocks in, outputs out in the same order; it may look ahead."""


def blocks_of(rows: int, *, views: NDArray[np.uint64] | None, size: int, rows_done: int) -> Iterator[Block]:
    """Yield the blocks that remain after `rows_done` rows, view by view; a block never spans two views.

    Args:
        rows: Samples N.
        views: [V, N] view numbers; None: one clean view.
        size: Samples per block.
        rows_done: Rows of the V x N that are there.
    """
    while rows_done < rows * (1 if views is None else len(views)):
        view, start = divmod(rows_done, rows)
        stop = min(start + size, rows)
        yield Block(view, start, stop, None if views is None else views[view, start:stop])
        rows_done += stop - start


def run(predecessor: Predecessor, samples: Samples, block: Block) -> Outputs:
    """Run one forward pass of a predecessor.

    Raises:
        DataError: The samples cannot be read.
    """
    try:
        items = samples.read(np.arange(block.start, block.stop, dtype=np.int64))
    except OSError as e:
        where = f"targets of {predecessor.name}: samples {block.start} to {block.stop}"
        raise DataError(f"{where} cannot be read ({e})") from e
    with torch.inference_mode():
        return predecessor(items, block.numbers)


def check_shape(predecessor: Predecessor, outputs: Outputs, *, rows: int) -> None:
    """Compare outputs with what the predecessor's description promises.

    Raises:
        DataError: They differ.
    """
    expected = (len(predecessor.classes), predecessor.embedding_size)
    shape = (outputs.logits.shape[1], outputs.embedding.shape[1])
    if shape != expected or len(outputs.logits) != rows:
        raise DataError(
            f"targets of {predecessor.name}: {rows} samples must give (classes, embedding) {expected}, got"
            f" {len(outputs.logits)} of {shape}; the version's bundle and its task do not fit"
        )
