"""`Vectors` with ids and payload columns, and the checks before they are stored in an index. Driver, NumPy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from graceful.errors import DataError

PAYLOAD_KINDS = {"U": "text", "i": "integer", "f": "number", "b": "boolean"}
LONGEST_ID = 1024
ROWS = 65536
"""The number of rows that are normalised at a time in double precision, which bounds the memory."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Vectors:
    """Vectors of one space.

    Attributes:
        ids: [N] ids, as texts.
        vectors: [N, d] vectors in float32.
        payload: For each column, [N] texts, integers, numbers or booleans.
    """

    ids: NDArray[np.str_]
    vectors: NDArray[np.float32]
    payload: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def dimension(self) -> int:
        """The number of components of a vector."""
        return int(self.vectors.shape[1])

    def take(self, rows: NDArray[Any]) -> Self:
        """Return the rows at some positions or in a mask."""
        payload = {name: column[rows] for name, column in self.payload.items()}
        return type(self)(ids=self.ids[rows], vectors=self.vectors[rows], payload=payload)

    @classmethod
    def joined(cls, parts: Sequence[Vectors], *, dimension: int) -> Self:
        """Concatenate vectors; all must have the payload columns of the first."""
        if not parts:
            return cls(ids=np.zeros(0, dtype="U1"), vectors=np.zeros((0, dimension), dtype=np.float32))
        payload = {name: np.concatenate([part.payload[name] for part in parts]) for name in parts[0].payload}
        return cls(
            ids=np.concatenate([part.ids for part in parts]),
            vectors=np.concatenate([part.vectors for part in parts]),
            payload=payload,
        )

    def checked(self, *, dimension: int, where: str) -> Self:
        """Check every vector and id, and return the vectors with unit length.

        Args:
            dimension: The dimension of the space.
            where: The origin of the vectors, for messages.

        Raises:
            DataError: The dimension differs, an id repeats or is not valid, a vector is not finite or has length zero,
                or an index cannot store a payload column.
        """
        require_matrix(self.vectors, rows=len(self.ids), dimension=dimension, where=where)
        require_ids(self.ids, where=where)
        payload = {name: _column(name, column, len(self), where) for name, column in self.payload.items()}
        vectors = unit_length(self.vectors, names=self.ids, where=where)
        return type(self)(ids=self.ids.astype(np.str_, copy=False), vectors=vectors, payload=payload)


def require_matrix(vectors: NDArray[Any], *, rows: int, dimension: int, where: str) -> None:
    """Refuse anything but a matrix of floating-point numbers with one row for each id.

    Raises:
        DataError: The type or the shape is another.
    """
    if vectors.ndim != 2 or vectors.dtype.kind != "f" or len(vectors) != rows:
        raise DataError(
            f"{where}: vectors must be floating-point numbers [N, d] with N = {rows} ids, got {vectors.dtype}"
            f" {list(vectors.shape)}"
        )
    if vectors.shape[1] != dimension:
        raise DataError(
            f"{where}: vectors of {vectors.shape[1]} numbers, the space has {dimension}; they are of another model"
        )


def require_ids(ids: NDArray[Any], *, where: str) -> None:
    """Refuse ids that repeat or are not valid.

    Raises:
        DataError: The message names the first such id.
    """
    if ids.ndim != 1 or ids.dtype.kind != "U":
        raise DataError(f"{where}: ids must be texts [N], got {ids.dtype} {list(ids.shape)}")
    names = ids.tolist()
    if len(set(names)) < len(names):
        seen: set[str] = set()
        repeated = next(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise DataError(
            f"{where}: {len(names) - len(set(names))} ids repeat, e.g. {repeated!a}; an id has one vector, drop others"
        )
    for name in names:
        if not name or len(name) > LONGEST_ID or "\0" in name:
            raise DataError(f"{where}: id {name[:60]!a} must have 1 to {LONGEST_ID} characters and no NUL")
    try:
        "".join(names).encode()
    except UnicodeEncodeError as e:
        raise DataError(f"{where}: an id is not text that UTF-8 can hold ({e.object[e.start]!a}); rename it") from e


def unit_length(vectors: NDArray[Any], *, names: NDArray[Any] | None = None, where: str) -> NDArray[np.float32]:
    """Return vectors with unit length in float32.

    Args:
        vectors: [N, d] vectors of any length.
        names: [N] names of the rows, for messages; None takes their numbers.
        where: The origin of the vectors, for messages.

    Raises:
        DataError: A vector is not finite or has length zero.
    """
    scaled = np.empty(vectors.shape, dtype=np.float32)
    for start in range(0, len(vectors), ROWS):
        part = vectors[start : start + ROWS].astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            length = np.sqrt((part**2).sum(axis=1))
        bad = np.flatnonzero(~np.isfinite(length) | (length == 0.0))
        if len(bad):
            row = start + int(bad[0])
            what = "is all zeros" if length[bad[0]] == 0.0 else "holds NaN or infinity"
            name = f"row {row}" if names is None else f"id {str(names[row])[:60]!a}"
            raise DataError(f"{where}: the vector of {name} {what}; it has no direction, leave it out")
        scaled[start : start + ROWS] = part / length[:, None]
    return scaled


def _column(name: str, column: NDArray[Any], rows: int, where: str) -> NDArray[Any]:
    """Convert a payload column to a type that an index stores."""
    values = np.asarray(column)
    if values.dtype.hasobject:
        if not all(isinstance(value, str) for value in values.tolist()):
            raise DataError(f"{where}: payload column {name} holds other things than texts; convert it")
        values = values.astype(np.str_)
    if values.dtype.kind == "u":
        values = values.astype(np.int64)
    if values.shape != (rows,) or values.dtype.kind not in PAYLOAD_KINDS:
        kinds = ", ".join(PAYLOAD_KINDS.values())
        raise DataError(
            f"{where}: payload column {name} must have {rows} values ({kinds}), got {values.dtype} {list(values.shape)}"
        )
    wide = {"i": np.int64, "f": np.float64}.get(values.dtype.kind)
    return values if wide is None else values.astype(wide)
