"""Names of samples that stay in their table until they are read. Driver and workers; numpy only.

A hundred million ids take 10 GB as an array of strings. Training needs the positions of samples, and their ids for
messages alone; evaluation needs the ids of the splits it measures on, which `np.asarray` gives.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

AT_ONCE = 16_384
"""Names that are read together."""


class Names:
    """Names of N samples, read from where they lie: what `Samples.ids` and `Samples.groups` may be instead of an array.

    Indexed with one position, with positions, a slice or a mask; `np.asarray` reads all of them. Who makes one answers
    for what `Samples` checks of arrays: that ids are unique, and texts that UTF-8 can hold.

    Args:
        count: N.
        read: Positions [B] -> [B] strings.
        digest: `ids_digest` of all names, so that caches of outputs are found without reading them; None: it
            is computed.
        source: What data are divided into splits, and which split this is; ids of two splits of the same data are known
            to differ. None: nothing is known.
    """

    def __init__(
        self,
        count: int,
        read: Callable[[NDArray[np.int64]], NDArray[np.str_]],
        *,
        digest: str | None = None,
        source: tuple[str, str] | None = None,
    ) -> None:
        self._count, self._read, self.digest, self.source = count, read, digest, source

    def __len__(self) -> int:
        return self._count

    @property
    def shape(self) -> tuple[int]:
        """Return (N,), like an array."""
        return (self._count,)

    @overload
    def __getitem__(self, index: int | np.integer[Any]) -> np.str_: ...
    @overload
    def __getitem__(self, index: slice | NDArray[Any]) -> NDArray[np.str_]: ...
    def __getitem__(self, index: int | np.integer[Any] | slice | NDArray[Any]) -> np.str_ | NDArray[np.str_]:
        """Read some names."""
        if isinstance(index, int | np.integer):
            position = int(index) + (self._count if index < 0 else 0)
            if not 0 <= position < self._count:
                raise IndexError(f"position {index} of {self._count} names")
            return np.str_(self._read(np.asarray([position], dtype=np.int64))[0])
        if isinstance(index, slice):
            return self._read(np.arange(*index.indices(self._count), dtype=np.int64))
        positions = np.flatnonzero(index) if index.dtype == np.bool_ else index.astype(np.int64)
        return self._read(np.where(positions < 0, positions + self._count, positions))

    def __iter__(self) -> Iterator[np.str_]:
        for block in blocks(self):
            yield from block

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """Read all names into an array of strings."""
        parts = list(blocks(self))
        names = np.concatenate(parts) if parts else np.zeros(0, dtype=np.str_)
        return names if dtype is None else names.astype(dtype)

    def tolist(self) -> list[str]:
        """Read all names into a list."""
        return [name for block in blocks(self) for name in block.tolist()]


Column = NDArray[np.str_] | Names
"""Names of N samples: an array of strings, or one that is read lazily."""


def blocks(names: Column | NDArray[np.bytes_], *, size: int = AT_ONCE) -> Iterator[NDArray[Any]]:
    """Yield names in their order, at most `size` at a time."""
    for start in range(0, len(names), size):
        yield names[start : start + size]


def positions_of(wanted: Column | NDArray[np.bytes_], names: Column | NDArray[np.bytes_]) -> NDArray[np.int64]:
    """Return where each wanted name is among others, -1 where it is not; [N'] -> [N'].

    The wanted names are read into memory, the others are read block by block.
    """
    distinct, inverse = np.unique(np.asarray(wanted), return_inverse=True)
    places, start = np.full(len(distinct), -1, dtype=np.int64), 0
    for block in blocks(names) if len(distinct) else ():
        index = np.minimum(np.searchsorted(distinct, block), len(distinct) - 1)
        hits = np.flatnonzero((distinct[index] == block) & (places[index] < 0))[::-1]
        places[index[hits]] = start + hits  # of a name that repeats, the first place is written last
        start += len(block)
    return places[inverse]


def shared(first: Column, second: Column) -> NDArray[np.str_]:
    """Return the names that are in both columns, sorted; the shorter one is read into memory."""
    if not (isinstance(first, Names) or isinstance(second, Names)):
        return np.intersect1d(first, second)
    (data, split), (other_data, other_split) = (
        (isinstance(names, Names) and names.source) or ("", "") for names in (first, second)
    )
    if data and data == other_data and split != other_split:
        return np.zeros(0, dtype=np.str_)
    shorter, longer = sorted((first, second), key=len)
    wanted = np.asarray(shorter)
    return np.unique(wanted[positions_of(wanted, longer) >= 0])


def encode_ids(ids: NDArray[np.str_] | Sequence[str]) -> NDArray[np.bytes_]:
    """Return ids as fixed-width UTF-8, which a .npy file holds without pickle."""
    text = np.asarray(ids, dtype=np.str_)
    try:
        ascii_text = text.astype(np.bytes_)
    except UnicodeEncodeError:
        return np.asarray(np.char.encode(text, "utf-8"), dtype=np.bytes_)
    return ascii_text.astype(f"S{max(int(np.char.str_len(text).max(initial=0)), 1)}")


def encoded_blocks(ids: Column) -> tuple[np.dtype[Any], Iterator[NDArray[np.bytes_]]]:
    """Return the type of `encode_ids(ids)`, and its rows in blocks; ids that are read lazily are read twice."""
    if not isinstance(ids, Names):
        encoded = encode_ids(ids)
        return encoded.dtype, iter([encoded])
    width = max((encode_ids(block).dtype.itemsize for block in blocks(ids)), default=1)
    dtype = np.dtype(f"S{width}")
    return dtype, (encode_ids(block).astype(dtype) for block in blocks(ids))


def ids_digest(ids: Column) -> str:
    """Return `array_digest(encode_ids(ids))`."""
    if isinstance(ids, Names) and ids.digest is not None:
        return ids.digest
    dtype, encoded = encoded_blocks(ids)
    digest = hashlib.sha256(f"{dtype.str}{(len(ids),)}".encode())
    for block in encoded:
        digest.update(np.ascontiguousarray(block).data if block.size else b"")
    return digest.hexdigest()
