"""Mapped files whose pages go back to the kernel, so that reading all of a file does not keep all of it resident.

The kernel maps sixteen pages for each that is touched. Samples that are read in a random order would soon hold the
whole table, which counts as the process's memory wherever limits are watched. What goes back stays in the kernel's
cache.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SMALL = 32 * 2**20
"""Bytes that stay mapped."""
ROWS = 512
"""Rows that are read before pages go back."""


class Mappings:
    """Files that are mapped read-only, and how many rows were read of them.

    Attributes:
        files: The files.
    """

    def __init__(self, files: Sequence[mmap.mmap]) -> None:
        self.files = [mapped for mapped in files if len(mapped)]
        self._large = sum(map(len, self.files)) > SMALL and hasattr(mmap, "MADV_DONTNEED")
        self._rows = 0

    def read(self, rows: int) -> None:
        """Note that so many rows were read; now and then, give pages back. What they hold is read again when needed."""
        self._rows += rows
        if self._large and self._rows >= ROWS:
            self._rows = 0
            for mapped in self.files:
                mapped.madvise(mmap.MADV_DONTNEED)


def mappings_of(arrays: Sequence[NDArray[Any] | None]) -> Mappings:
    """Return the files that arrays are mapped from."""
    bases: list[Any] = [array.base for array in arrays if isinstance(array, np.memmap)]
    return Mappings([base for base in bases if isinstance(base, mmap.mmap)])


def arrow_table(rows: Any) -> tuple[Any, Mappings]:
    """Return the rows of a dataset as a `pyarrow.Table` over files that are mapped here, and these.

    A dataset that is not what its files hold, or lies in memory, is returned as it has its rows.
    """
    import pyarrow as pa

    own: Any = rows.data.table
    paths = [Path(entry["filename"]) for entry in rows.cache_files]
    if not paths:
        return own, Mappings([])
    maps, tables = [], []
    for path in paths:
        with path.open("rb") as file:
            maps.append(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        tables.append(pa.ipc.open_stream(pa.py_buffer(maps[-1])).read_all())
    if any(not table.schema.equals(own.schema) for table in tables) or sum(map(len, tables)) != len(own):
        return own, Mappings([])
    mappings = Mappings(maps)
    mappings.read(ROWS)
    return pa.concat_tables(tables), mappings


class Numbers:
    """A column of numbers without nulls, read from mapped files in one step whatever the number of its chunks.

    Args:
        files: For each file its numbers from the first byte on.
        owners: [chunks] the file of each chunk.
        offsets: [chunks] where its first number is among those of the file.
        starts: [chunks] position of its first row.
    """

    def __init__(
        self,
        files: Sequence[NDArray[Any]],
        owners: NDArray[np.int64],
        offsets: NDArray[np.int64],
        starts: NDArray[np.int64],
    ) -> None:
        self._files, self._owners, self._offsets, self._starts = files, owners, offsets, starts

    @classmethod
    def of(cls, chunks: Sequence[Any], starts: NDArray[np.int64], mappings: Mappings) -> Numbers | None:
        """Return a column; None where it holds nulls or no plain numbers, or does not lie in these files."""
        import pyarrow as pa

        kind = chunks[0].type if len(chunks) else pa.null()
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)) or any(chunk.null_count for chunk in chunks):
            return None
        dtype = np.dtype(kind.to_pandas_dtype())
        files = [np.frombuffer(mapped, dtype=np.uint8) for mapped in mappings.files]
        addresses = np.asarray([chunk.buffers()[1].address + chunk.offset * dtype.itemsize for chunk in chunks])
        owners, offsets = np.full(len(chunks), -1), np.zeros(len(chunks), dtype=np.int64)
        for number, file in enumerate(files):
            distance = addresses - file.ctypes.data
            inside = (distance >= 0) & (distance < len(file)) & (distance % dtype.itemsize == 0)
            owners[inside], offsets[inside] = number, distance[inside] // dtype.itemsize
        if (owners < 0).any():
            return None
        whole = [file[: len(file) // dtype.itemsize * dtype.itemsize].view(dtype) for file in files]
        return cls(whole, owners, offsets, starts)

    def taken(self, positions: NDArray[np.int64]) -> NDArray[Any]:
        """Return the numbers of some rows, in the order of the positions."""
        chunks = np.searchsorted(self._starts, positions, side="right") - 1
        places, owners = self._offsets[chunks] + positions - self._starts[chunks], self._owners[chunks]
        numbers = np.empty(len(positions), dtype=self._files[0].dtype)
        for owner in np.unique(owners).tolist():
            chosen = owners == owner
            numbers[chosen] = self._files[owner][places[chosen]]
        return numbers
