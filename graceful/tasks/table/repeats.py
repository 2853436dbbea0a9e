"""Rows that repeat: found in parts by the first bits of their keys, so that memory does not grow with the table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graceful.tasks.table.stored import Stored

PART = 2**22
"""Rows that are sorted together."""
AT_ONCE = 2**20
"""Rows that are read together."""


def parts(
    columns: Sequence[Stored], count: int, *, kept: Stored | None = None
) -> Iterator[tuple[NDArray[np.int64], list[NDArray[Any]]]]:
    """Yield rows with their values, those with the same hash together.

    Args:
        columns: Arrays of N values, the first of hashes, whose first bits decide in which part a row is.
        count: N.
        kept: [N] whether a row counts; None: every row does.

    Yields:
        Positions in their order, and the values at them.
    """
    bits = np.uint64(max(0, -(-count // PART) - 1).bit_length())
    for part in range(2 ** int(bits)):
        positions, found = [], [[] for _ in columns]  # type: ignore[var-annotated]
        flags = kept.blocks(AT_ONCE) if kept is not None else None
        start = 0
        for blocks in zip(*(column.blocks(AT_ONCE) for column in columns), strict=True):
            chosen = np.ones(len(blocks[0]), dtype=np.bool_) if flags is None else next(flags)
            if bits:
                chosen = chosen & (blocks[0] >> (np.uint64(64) - bits) == part)
            rows = np.flatnonzero(chosen)
            positions.append(start + rows)
            for values, block in zip(found, blocks, strict=True):
                values.append(block[rows])
            start += len(blocks[0])
        yield np.concatenate(positions), [np.concatenate(values) for values in found]


def copies(columns: Sequence[Stored], count: int, *, into: NDArray[np.uint32]) -> None:
    """Write for each row the how many-th it is with its keys, from 1."""
    for positions, found in parts(columns, count):
        order = np.lexsort(found[::-1])  # stable: rows with the same keys stay in their order
        first = _first([values[order] for values in found])
        starts = np.maximum.accumulate(np.where(first, np.arange(len(order)), 0))
        into[positions[order]] = np.arange(len(order)) - starts + 1


def repeated(column: Stored, kept: Stored, count: int, *, same: Callable[[int, int], bool]) -> tuple[int, int] | None:
    """Return the first row, among those that count, that repeats another one, and that other; None: all differ.

    Args:
        column: [N] hashes.
        kept: [N] whether a row counts.
        count: N.
        same: Whether two rows with the same hash are the same.
    """
    pairs = []
    for positions, (hashes,) in parts([column], count, kept=kept):
        order = np.argsort(hashes, kind="stable")
        first = _first([hashes[order]])
        starts = np.maximum.accumulate(np.where(first, np.arange(len(order)), 0))
        again = np.flatnonzero(~first)
        again = again[np.argsort(positions[order[again]])]
        for index in again.tolist():
            pair = int(positions[order[index]]), int(positions[order[starts[index]]])
            if same(*pair):
                pairs.append(pair)
                break
    return min(pairs, default=None)


def also_in(
    columns: Sequence[Stored], count: int, *, splits: Stored, train: int, others: Sequence[int]
) -> dict[int, int]:
    """Return how many rows of each other split have the keys of a training row.

    Args:
        columns: Two arrays of N keys.
        count: N.
        splits: [N] the number of each row's split.
        train: Number of the training split.
        others: Numbers of the others.
    """
    counts = dict.fromkeys(others, 0)
    for _, (first, second, numbers) in parts([*columns, splits], count):
        training, held_out = numbers == train, np.isin(numbers, others)
        order = np.argsort(first[training], kind="stable")
        known_first, known_second = first[training][order], second[training][order]
        if not len(known_first):
            continue
        place = np.minimum(np.searchsorted(known_first, first[held_out]), len(known_first) - 1)
        hits = (known_first[place] == first[held_out]) & (known_second[place] == second[held_out])
        for number, hit in zip(*np.unique(numbers[held_out][hits], return_counts=True), strict=True):
            counts[int(number)] += int(hit)
    return counts


def _first(columns: Sequence[NDArray[np.uint64]]) -> NDArray[np.bool_]:
    """Return where sorted keys differ from those before them."""
    first = np.ones(len(columns[0]), dtype=np.bool_)
    if len(first):
        first[1:] = np.any([values[1:] != values[:-1] for values in columns], axis=0)
    return first
