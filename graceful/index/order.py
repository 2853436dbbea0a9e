"""The orders in which a backfill replaces vectors. Driver, NumPy.

Every order is a function of the ids, their old vectors and a seed, so an interrupted backfill keeps its order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from graceful.errors import SpecError
from graceful.index.vectors import Vectors

Order = Literal["random", "distance", "uncertainty", "traffic"]
ORDERS: tuple[Order, ...] = get_args(Order)
NEIGHBOURS = 10
LABEL = "label"
AT_ONCE = 4096


def priority(
    how: Order,
    vectors: Vectors,
    *,
    seed: int = 0,
    pairs: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None,
    traffic: Mapping[str, float] | None = None,
) -> NDArray[np.float64]:
    """Return the [N] priorities of ids; the id with the largest is replaced first.

    Args:
        how: The order. `random` draws it. `distance` begins with vectors far from the mean of their label, or from the
            mean of all vectors if there is no column `label`. `uncertainty` begins with vectors for which a linear map
            from the old space to the new one is expected to be most wrong. `traffic` begins with the ids that are found
            most often.
        vectors: The ids with their vectors in the old space.
        seed: The seed of the random order, which also orders ids of equal priority.
        pairs: [M, d] old and [M, e] new vectors of some ids, which `uncertainty` needs.
        traffic: How often each id was found, which `traffic` needs; ids that are missing count as 0.

    Raises:
        SpecError: There is no such order, or `pairs` or `traffic` is missing.
    """
    random = _random(vectors.ids, seed)
    if how == "random":
        return random
    if how == "distance":
        first = _distance(vectors)
    elif how == "traffic":
        if traffic is None:
            raise SpecError("order traffic: needs how often each id was found; write --traffic FILE")
        first = np.asarray([traffic.get(name, 0.0) for name in vectors.ids.tolist()], dtype=np.float64)
    elif how == "uncertainty":
        if pairs is None:
            raise SpecError("order uncertainty: needs vectors of both models for some ids")
        first = _uncertainty(vectors.vectors, *pairs)
    else:
        raise SpecError(f"order {how!r}: must be one of {', '.join(ORDERS)}")
    return first + 1e-9 * random


def _random(ids: NDArray[np.str_], seed: int) -> NDArray[np.float64]:
    """Return a number in [0, 1) for each id that depends only on the id and the seed."""
    salt = str(seed).encode()
    digests = [hashlib.blake2b(name.encode(), digest_size=6, salt=salt[:16]).digest() for name in ids.tolist()]
    return np.asarray([int.from_bytes(digest) for digest in digests], dtype=np.float64) / 2**48


def _distance(vectors: Vectors) -> NDArray[np.float64]:
    """Return the cosine distance of each vector from the mean of its label."""
    labels = vectors.payload.get(LABEL)
    groups = np.zeros(len(vectors), dtype=np.int64)
    if labels is not None:
        groups = np.unique(labels, return_inverse=True)[1].reshape(-1)
    sums = np.zeros((int(groups.max(initial=0)) + 1, vectors.dimension))
    np.add.at(sums, groups, vectors.vectors)
    means = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
    return np.asarray(1.0 - np.einsum("nd,nd->n", vectors.vectors, means[groups]))


def _uncertainty(
    vectors: NDArray[np.float32], old: NDArray[np.float32], new: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Return the expected error of a linear map for each vector: its mean error for the nearest known pairs."""
    wide, target = old.astype(np.float64), new.astype(np.float64)
    ridge = 0.1 * np.eye(wide.shape[1]) * len(wide) / wide.shape[1]
    mapped = wide @ np.linalg.solve(wide.T @ wide + ridge, wide.T @ target)
    mapped /= np.maximum(np.linalg.norm(mapped, axis=1, keepdims=True), 1e-12)
    wrong = 1.0 - np.einsum("nd,nd->n", mapped, target)
    expected = np.empty(len(vectors))
    count = min(NEIGHBOURS, len(old))
    for start in range(0, len(vectors), AT_ONCE):
        scores = vectors[start : start + AT_ONCE] @ old.T
        nearest = np.argpartition(-scores, count - 1, axis=1)[:, :count]
        expected[start : start + AT_ONCE] = wrong[nearest].mean(axis=1)
    return expected
