"""Permutations of so many numbers that no array of them fits memory: each place is computed alone. Runs in workers.

A Feistel network permutes the numbers of b bits; a result that is not a place is permuted again until it is one ("cycle
walking"), which keeps it a permutation of the places.

Source: Black and Rogaway, "Ciphers with arbitrary finite domains", 2002.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from graceful.tasks.hashing import splitmix64

ROUNDS = 8


def permuted(places: NDArray[np.int64], *, count: int, key: Sequence[int]) -> NDArray[np.int64]:
    """Return what stands at some places of a permutation of 0 .. count - 1.

    Args:
        places: [B], each in [0, count).
        count: At least 2.
        key: Whole numbers that choose the permutation.
    """
    seeds = np.random.SeedSequence([number & 0xFFFFFFFFFFFFFFFF for number in key])
    keys = seeds.generate_state(ROUNDS, np.uint64).astype(np.uint64)
    bits = (count - 1).bit_length()
    numbers = _network(places.astype(np.uint64), bits=bits, keys=keys)
    while (outside := numbers >= np.uint64(count)).any():
        numbers[outside] = _network(numbers[outside], bits=bits, keys=keys)
    return numbers.astype(np.int64)


def _network(numbers: NDArray[np.uint64], *, bits: int, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Permute the numbers of so many bits; the halves differ by one bit where the count is odd."""
    low_bits = np.uint64(bits // 2)
    high_bits = np.uint64(bits) - low_bits
    high, low = numbers >> low_bits, numbers & _mask(low_bits)
    for round_number, key in enumerate(keys):
        if round_number % 2 == 0:
            high = high ^ (splitmix64(low ^ key) & _mask(high_bits))
        else:
            low = low ^ (splitmix64(high ^ key) & _mask(low_bits))
    return (high << low_bits) | low


def _mask(bits: np.uint64) -> np.uint64:
    return (np.uint64(1) << bits) - np.uint64(1)
