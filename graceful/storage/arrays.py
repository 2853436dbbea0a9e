"""Arrays from files of unknown origin: their size is checked before memory is taken. Every process.

A few kilobytes of a compressed archive, or one line of a header, can announce more than any machine holds. numpy
believes them, so headers are read here first.
"""

from __future__ import annotations

import io
import math
import struct
import sys
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from graceful.errors import DataError, one_line
from graceful.files import guarded
from graceful.storage.local import read_bytes

LARGEST = 2 * 2**30
"""Bytes that the arrays of one file may take, compressed or not: five million samples with ids of forty characters."""
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
_HEADER_ERRORS = (
    ValueError,
    TypeError,
    IndexError,
    SyntaxError,
    tokenize.TokenError,
    MemoryError,
    RecursionError,
)
"""Errors that numpy raises for a header that it cannot parse: it evaluates it as a Python literal, then makes a type of
it."""
_UNREADABLE = (
    ValueError,
    KeyError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    OverflowError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
)
"""Errors that zipfile and numpy raise for bytes that are not an archive of arrays."""


def read_npz(
    path: Path, *, kinds: Mapping[str, str], description: str, largest: int = LARGEST
) -> dict[str, NDArray[Any]]:
    """Return the arrays of an `.npz` file by name, each with one axis.

    Args:
        path: The path of the file.
        kinds: The type that each array must have, as a kind (`U`) or a kind with its bytes (`f4`); others are left out.
        description: The file should hold, for messages.
        largest: Bytes that they may take together.

    Raises:
        DataError: No such archive, too large, or an array of another type or with more axes.
        StorageError: It cannot be read.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(_content(path, largest))) as archive:
            entries = [entry for entry in archive.infolist() if entry.filename.removesuffix(".npy") in kinds]
            if sum(entry.file_size for entry in entries) > largest:
                raise ValueError(f"unpacked more than {largest} bytes, the most that is read")
            arrays = {}
            for entry in entries:
                name = entry.filename.removesuffix(".npy")
                if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise ValueError(f"{name} is compressed in another way than numpy does")
                with archive.open(entry) as stream:
                    arrays[name] = _array(stream, size=entry.file_size, kind=kinds[name], name=name)
            return arrays
    except _UNREADABLE as e:
        raise DataError(f"{path}: no {description} ({one_line(e):.200}); restore it from a backup") from e


def read_npy(path: Path, *, kind: str, largest: int = LARGEST) -> NDArray[Any]:
    """Return the array of an `.npy` file, of a type as in `read_npz` and with one axis.

    Raises:
        ValueError: Its content is no such array, or larger.
        StorageError: It cannot be read.
    """
    data = _content(path, largest)
    try:
        return _array(io.BytesIO(data), size=len(data), kind=kind, name=path.stem)
    except _UNREADABLE as e:
        raise ValueError(one_line(e)) from e


def read_header(stream: IO[bytes], *, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return shape and type that the header of an `.npy` file announces; what follows it is not read.

    Args:
        stream: At the file's first byte; afterwards at its first element.
        name: The name of the array, for messages.

    Raises:
        ValueError: It is not a header, or announces more than any machine holds.
    """
    version = npy.read_magic(stream)
    if version not in _HEADERS:
        raise ValueError(f"{name} has a header of version {version[0]}.{version[1]}")
    try:
        shape, _, dtype = _HEADERS[version](stream)
    except _HEADER_ERRORS as e:
        raise ValueError(f"{name} has a damaged header ({one_line(e) or type(e).__name__:.100})") from e
    if any(type(length) is not int or length < 0 for length in shape):
        raise ValueError(f"{name} announces the shape {shape}")
    if math.prod(shape) * max(dtype.itemsize, 1) > sys.maxsize:
        raise ValueError(f"{name} announces {math.prod(shape) * dtype.itemsize} bytes and holds fewer")
    return shape, dtype


def _content(path: Path, largest: int) -> bytes:
    with guarded(path, "read"):
        size = path.stat().st_size
    if size > largest:
        raise ValueError(f"more than {largest} bytes, the most that is read")
    return read_bytes(path)


def _array(stream: IO[bytes], *, size: int, kind: str, name: str) -> NDArray[Any]:
    """Return one array, if its header announces what follows it."""
    shape, dtype = read_header(stream, name=name)
    if len(shape) != 1 or kind not in (dtype.kind, dtype.kind + str(dtype.itemsize)) or not dtype.itemsize:
        raise ValueError(f"{name} is {dtype} of shape {shape}, must be {kind} with one axis")
    announced = shape[0] * dtype.itemsize
    if announced > size:
        raise ValueError(f"{name} announces {announced} bytes and holds fewer")
    data = stream.read(announced)
    if len(data) != announced or stream.read(1):
        raise ValueError(f"{name} announces {announced} bytes, not those that it holds")
    if dtype.kind == "U" and np.frombuffer(data, dtype=f"{dtype.byteorder}u4").max(initial=0) > sys.maxunicode:
        raise ValueError(f"{name} holds what is not text")
    return np.frombuffer(data, dtype=dtype)
