"""Folders of arrays that are written once on a node, block by block, and mapped into the memory of every rank.

A folder appears by one rename when it is complete; a lock file keeps others waiting meanwhile. One whose files do not
have their recorded sizes and digests is written again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from graceful import locks, storage
from graceful.errors import StorageError
from graceful.files import guarded, mark_used

META = "meta.json"
_CHUNKS, _CHUNK = 64, 2**16
"""Of each file so many chunks of so many bytes are compared, spread evenly: all of a file of up to 4 MiB."""


class Writer:
    """One array that grows row by row.

    Args:
        path: The `.npy` file.
        dtype: The dtype of the array.
        rows: That it will have.
    """

    def __init__(self, path: Path, dtype: str, rows: int) -> None:
        self._dtype, self._rows, self._written = np.dtype(dtype), rows, 0
        self._file = path.open("wb")
        npy.write_array_header_1_0(self._file, {"descr": self._dtype.str, "fortran_order": False, "shape": (rows,)})

    def append(self, block: NDArray[Any]) -> None:
        """Write the next rows."""
        self._file.write(np.ascontiguousarray(block, dtype=self._dtype).data if len(block) else b"")
        self._written += len(block)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Close the file, which must have all of its rows."""
        self._file.close()
        assert kind is not None or self._written == self._rows


class Stored:
    """One array of a folder, which is read block by block or mapped.

    Args:
        path: The `.npy` file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def mapped(self) -> NDArray[Any]:
        """Return the array, memory-mapped."""
        with self._path.open("rb") as file:
            rows, dtype = _header(file)
        return npy.open_memmap(self._path, mode="r") if rows else np.zeros(0, dtype=dtype)

    def blocks(self, size: int) -> Iterator[NDArray[Any]]:
        """Yield the rows in their order without mapping them, so that what was read leaves the memory."""
        with self._path.open("rb") as file:
            rows, dtype = _header(file)
            for start in range(0, rows, size):
                yield np.fromfile(file, dtype=dtype, count=min(size, rows - start))


def _header(file: IO[bytes]) -> tuple[int, np.dtype[Any]]:
    """Return the number of rows and the type that an `.npy` file of one axis begins with."""
    npy.read_magic(file)
    (rows,), _, dtype = npy.read_array_header_1_0(file)
    return rows, dtype


def opened(folder: Path, make: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Return what is recorded about a folder, which is made if it is missing or damaged.

    Args:
        folder: Where it lies.
        make: Writes the arrays into the folder that it is given, and returns what to record about them.

    Raises:
        StorageError: The disk is full or refuses.
    """
    with guarded(folder, "write"):
        meta = _recorded(folder)
        if meta is None:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with locks.exclusive(folder.with_name(f"{folder.name}.lock"), seconds=None):
                meta = _recorded(folder) or _made(folder, make)
        mark_used(folder / META)
    return meta


def _made(folder: Path, make: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    shutil.rmtree(folder, ignore_errors=True)
    part = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".tmp"))
    try:
        meta = make(part)
        meta["files"] = {path.name: _fingerprint(path) for path in sorted(part.iterdir())}
        storage.write_json(part / META, meta)
        part.chmod(0o755)
        part.rename(folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return meta


def _recorded(folder: Path) -> dict[str, Any] | None:
    """Return what is recorded about a folder; None where it is missing or damaged."""
    try:
        meta: dict[str, Any] = json.loads(storage.read_bytes(folder / META))
        whole = all(_fingerprint(folder / name) == recorded for name, recorded in meta["files"].items())
    except (StorageError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return meta if whole else None


def _fingerprint(path: Path) -> dict[str, Any]:
    size, digest = path.stat().st_size, hashlib.sha256()
    starts = range(0, size, _CHUNK)
    if size > _CHUNKS * _CHUNK:
        starts = range(0, size - _CHUNK + 1, (size - _CHUNK) // (_CHUNKS - 1))
    with path.open("rb", buffering=0) as file:
        for start in starts:
            digest.update(os.pread(file.fileno(), _CHUNK, start))
    return {"bytes": size, "sampled": digest.hexdigest()}
