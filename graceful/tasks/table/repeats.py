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
        if not _first([np.sort(hashes)]).all():
            pairs += _pairs(positions, hashes, same=same)
    return min(pairs, default=None)


def _pairs(
    positions: NDArray[np.int64], hashes: NDArray[np.uint64], *, same: Callable[[int, int], bool]
) -> list[tuple[int, int]]:
    """Return the first row of a part that repeats another one, with that other, if there is one."""
    order = np.argsort(hashes, kind="stable")
    first = _first([hashes[order]])
    starts = np.maximum.accumulate(np.where(first, np.arange(len(order)), 0))
    again = np.flatnonzero(~first)
    for index in again[np.argsort(positions[order[again]])].tolist():
        pair = int(positions[order[index]]), int(positions[order[starts[index]]])
        if same(*pair):
            return [pair]
    return []


def also_in(column: Stored, count: int, *, splits: Stored, train: int, others: Sequence[int]) -> dict[int, int]:
    """Return how many rows of each other split have the key of a training row.

    Args:
        column: [N] keys.
        count: N.
        splits: [N] the number of each row's split.
        train: Number of the training split.
        others: Numbers of the others.
    """
    counts = dict.fromkeys(others, 0)
    for _, (keys, numbers) in parts([column, splits], count):
        known = np.sort(keys[numbers == train])
        for number in others if len(known) else ():
            wanted = np.sort(keys[numbers == number])  # in order, so that what is read next is near
            place = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
            counts[number] += int((known[place] == wanted).sum())
    return counts


def _first(columns: Sequence[NDArray[Any]]) -> NDArray[np.bool_]:
    """Return where sorted keys differ from those before them."""
    first = np.ones(len(columns[0]), dtype=np.bool_)
    if len(first):
        first[1:] = np.any([values[1:] != values[:-1] for values in columns], axis=0)
    return first
