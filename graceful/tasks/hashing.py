"""Numbers that depend on an id alone: view numbers, hash splits, split digests. Driver and workers; numpy only.

Everything here is a pure function of the id's characters: no process seed, no position, no width of the array that
holds it. So a worker, a resumed run and the cache of a predecessor's outputs agree without talking to each other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graceful.tasks.names import AT_ONCE, Column, blocks

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def splitmix64(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble 64-bit numbers: a bijection whose output bits look independent. Any shape, same shape back.

    Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014 (the output function).
    """
    z = numbers + _GOLDEN
    z = (z ^ (z >> np.uint64(30))) * _MIX_1
    z = (z ^ (z >> np.uint64(27))) * _MIX_2
    return z ^ (z >> np.uint64(31))


def hash_ids(ids: NDArray[np.str_] | Sequence[str], *, salt: int = 0) -> NDArray[np.uint64]:
    """Hash [N] strings to [N] uint64, one vectorised pass per character position.

    Trailing NULs do not count, as in numpy's strings; the same id hashes alike in an array of any width.

    Args:
        ids: [N] strings.
        salt: Independent hashes for different purposes.
    """
    text = np.ascontiguousarray(np.asarray(ids, dtype=np.str_))
    if len(text) == 0 or text.itemsize == 0:
        return splitmix64(np.full(len(text), _number(salt), dtype=np.uint64))
    return hash_points(text.view(np.uint32).reshape(len(text), -1), salt=salt)


def hash_points(points: NDArray[np.unsignedinteger[Any]], *, salt: int = 0) -> NDArray[np.uint64]:
    """Do what `hash_ids` does, of the code points of N strings, [N, W]; 0 behind the end of a string."""
    hashes = np.full(len(points), _number(salt), dtype=np.uint64)
    for column in points.T:
        point = column.astype(np.uint64)
        hashes = np.where(point != 0, splitmix64(hashes ^ point), hashes)
    return splitmix64(hashes)


def view_numbers(ids: NDArray[np.str_] | Sequence[str], seed: int, epoch: int) -> NDArray[np.uint64]:
    """Return one number per sample that determines its augmentation in this epoch: a hash of (seed, epoch, id).

    Args:
        ids: [N] strings.
        seed: The run's seed; at least 0.
        epoch: The epoch, or its view when epochs cycle through cached views; at least 0.

    Returns:
        [N] uint64, independent of the order and of the other ids.
    """
    stream = splitmix64(np.asarray([_number(seed)], dtype=np.uint64))
    stream = splitmix64(stream ^ np.uint64(_number(epoch)))
    return splitmix64(hash_ids(ids) ^ stream)


def fractions(ids: NDArray[np.str_] | Sequence[str], *, salt: int) -> NDArray[np.float64]:
    """Return [N] numbers in [0, 1), uniform over ids: what hash splits and growth orders compare with their bounds."""
    return as_fractions(hash_ids(ids, salt=salt))


def as_fractions(hashes: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Return hashes as numbers in [0, 1)."""
    return (hashes >> np.uint64(11)).astype(np.float64) * 2.0**-53


SPLITS = {"train": (0.0, 0.5), "validation": (0.5, 0.6), "constraint": (0.6, 0.7), "test": (0.7, 1.0)}
"""Shares of ids for data that comes without splits of its own."""


def in_split(ids: NDArray[np.str_] | Sequence[str], split: str, *, seed: int = 0) -> NDArray[np.bool_]:
    """Return [N] bool: which ids belong to a split, by their hash; an id stays where it is when others come or go.

    Raises:
        KeyError: No such split; query and gallery need data of their own.
    """
    low, high = SPLITS[split]
    fraction = fractions(ids, salt=2 * seed)
    return np.asarray((fraction >= low) & (fraction < high))


def split_digest(ids: Column, labels: NDArray[np.int64], classes: Sequence[str], content: str | Sequence[str]) -> str:
    """Return the SHA-256 of a split: who is in it, what each is called, and what the bytes were.

    Args:
        ids: [N] strings.
        labels: [N] indices into `classes`.
        classes: Names of the labels.
        content: A digest of the data the split is taken from, or one tag per sample.
    """
    digest = hashlib.sha256()
    tags = [content] if isinstance(content, str) else content
    parts: Iterable[tuple[int, Iterable[Sequence[str]]]] = (
        (len(classes), (classes,)),
        (len(ids), (block.tolist() for block in blocks(ids))),
        (len(tags), (tags,)),
    )
    for count, texts in parts:
        digest.update(f"{count}\n".encode())
        for number, some in enumerate(texts):
            digest.update(("\0" if number else "").encode() + "\0".join(some).encode())
    for start in range(0, len(labels), AT_ONCE):
        digest.update(np.ascontiguousarray(labels[start : start + AT_ONCE], dtype="<i8").tobytes())
    return digest.hexdigest()


def _number(value: int) -> int:
    return int(value) & 0xFFFFFFFFFFFFFFFF
