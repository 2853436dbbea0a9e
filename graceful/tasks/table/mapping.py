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

    Args:
        maps: The files.
    """

    def __init__(self, maps: Sequence[mmap.mmap]) -> None:
        self._maps = [mapped for mapped in maps if len(mapped)]
        self._large = sum(map(len, self._maps)) > SMALL and hasattr(mmap, "MADV_DONTNEED")
        self._rows = 0

    def read(self, rows: int) -> None:
        """Note that so many rows were read; now and then, give pages back. What they hold is read again when needed."""
        self._rows += rows
        if self._large and self._rows >= ROWS:
            self._rows = 0
            for mapped in self._maps:
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
