"""Functions that the backends with a server share: its address, the lock of writers, and conversions. Driver."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from graceful import locks
from graceful.environment import INDEX_ADDRESS_VARIABLE
from graceful.errors import InfrastructureError, SpecError
from graceful.index import exact
from graceful.index.base import NOTHING, Hits
from graceful.index.manifest import Manifest
from graceful.index.vectors import Vectors

WAITING = 600.0
"""The most seconds that a writer waits for another one."""
TYPES = {"text": np.str_, "integer": np.int64, "number": np.float64, "boolean": np.bool_}
T = TypeVar("T")
Row = tuple[str, Sequence[float], Mapping[str, Any]]
"""The id, the vector and the payload of a stored vector."""
Candidate = tuple[int, str, Sequence[float]]
"""The number of a query, and the id and the vector of a result from the server."""


def address(kind: str, *, example: str) -> str:
    """Return the address of the server from the environment; it is no option because it may hold a password.

    Args:
        kind: The kind of the backend, for the message.
        example: An address, for the message.

    Raises:
        SpecError: The variable is not set.
    """
    found = os.environ.get(INDEX_ADDRESS_VARIABLE, "")
    if not found:
        raise SpecError(f"index backend {kind}: ${INDEX_ADDRESS_VARIABLE} must hold the address, e.g. {example}")
    return found


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Lock an index against other writers until a commit is made or given up.

    Raises:
        InfrastructureError: Another writer held the lock for longer than `WAITING`.
    """
    try:
        with locks.exclusive(folder / "write.lock", seconds=WAITING):
            yield
    except BlockingIOError:
        raise InfrastructureError(f"{folder}: another writer holds its lock; run the same command again") from None


def vectors(rows: Sequence[Row], *, manifest: Manifest, space: str) -> Vectors:
    """Convert the rows of a space to vectors, sorted by id."""
    rows = sorted(rows, key=lambda row: row[0])
    payload: dict[str, NDArray[Any]] = {
        name: np.asarray([row[2][name] for row in rows], dtype=TYPES[kind]) for name, kind in manifest.payload.items()
    }
    dimension = manifest.spaces[space].dimension
    matrix = np.asarray([row[1] for row in rows], dtype=np.float32).reshape(len(rows), dimension)
    return Vectors(ids=texts([row[0] for row in rows]), vectors=matrix, payload=payload)


def batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Yield batches of `size` items; the last may be shorter."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def texts(names: Sequence[str]) -> NDArray[np.str_]:
    """Convert texts to an array, also if there are none."""
    return np.asarray(names, dtype=np.str_) if len(names) else np.zeros(0, dtype="U1")


def best(found: Sequence[Candidate], queries: NDArray[np.float32], *, k: int) -> Hits:
    """Return the k best candidates of each query, scored again in double precision.

    Args:
        found: The candidates, ordered by the number of the query.
        queries: [Q, d] vectors of unit length.
        k: The number of results for each query.
    """
    names = texts([name for _, name, _ in found])
    ids = np.full((len(queries), k), NOTHING, dtype=names.dtype)
    scores = np.full((len(queries), k), -np.inf)
    exact.fill(
        found_ids=ids,
        found_scores=scores,
        rows=np.asarray([number for number, _, _ in found], dtype=np.int64),
        columns=np.arange(len(found)),
        queries=queries,
        vectors=np.asarray([vector for _, _, vector in found], dtype=np.float32).reshape(len(found), queries.shape[1]),
        ids=names,
    )
    return Hits(ids=ids, scores=scores)
