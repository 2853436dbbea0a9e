"""Segments: immutable safetensors files of vectors, ids and payload, named by their digest. Driver, NumPy.

The same content has the same name, so a writer that was killed and starts again does not leave a second copy.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from graceful.errors import IntegrityError
from graceful.index.manifest import Part
from graceful.index.places import Place
from graceful.index.vectors import Vectors

FOLDER = "segments"
_IDS, _VECTORS, _PAYLOAD = "ids", "vectors", "payload."
_BYTES, _ENDS = ".bytes", ".ends"


def write(place: Place, vectors: Vectors, *, space: str) -> Part:
    """Write vectors as a segment.

    Args:
        place: The folder or bucket of the index.
        vectors: The vectors of one space; for deleted ids, they have no columns.
        space: The name of the space; an empty text if the ids are deleted.

    Raises:
        StorageError: The disk is full, or the segment cannot be written.
    """
    arrays: dict[str, NDArray[Any]] = {_VECTORS: np.ascontiguousarray(vectors.vectors), **_packed(_IDS, vectors.ids)}
    for name, column in vectors.payload.items():
        text = column.dtype.kind == "U"
        arrays |= _packed(_PAYLOAD + name, column) if text else {_PAYLOAD + name: np.ascontiguousarray(column)}
    data = save(arrays, metadata={"space": space})
    digest = hashlib.sha256(data).hexdigest()
    file = f"{FOLDER}/{digest}.safetensors"
    place.write(file, data)
    return Part(file=file, sha256=digest, space=space, rows=len(vectors), bytes=len(data))


def read(place: Place, part: Part, *, again: bool = False) -> Vectors:
    """Return the vectors of a segment.

    Args:
        place: The folder or bucket of the index.
        part: The entry of the segment in the manifest.
        again: Whether to read the place itself even if this machine has a copy.

    Raises:
        IntegrityError: The bytes of the segment have another digest.
        StorageError: The segment cannot be read.
    """
    path, data = f"{place}/{part.file}", place.read(part.file, sha256=None if again else part.sha256)
    digest = hashlib.sha256(data).hexdigest()
    if digest != part.sha256:
        raise IntegrityError(
            f"{path}: SHA-256 {digest[:12]}... where {part.sha256[:12]}... was written; restore it from a backup, or"
            " build the index again"
        )
    try:
        arrays = load(data)
    except SafetensorError as e:
        raise IntegrityError(f"{path}: no segment of an index ({e}); restore it from a backup") from e
    payload: dict[str, NDArray[Any]] = {}
    for name in arrays:
        if name.startswith(_PAYLOAD) and name.endswith(_ENDS):
            column = name.removesuffix(_ENDS)
            payload[column.removeprefix(_PAYLOAD)] = _unpacked(arrays, column)
        elif name.startswith(_PAYLOAD) and not name.endswith(_BYTES):
            payload[name.removeprefix(_PAYLOAD)] = arrays[name]
    return Vectors(ids=_unpacked(arrays, _IDS), vectors=arrays[_VECTORS], payload=dict(sorted(payload.items())))


def _packed(name: str, texts: NDArray[np.str_]) -> dict[str, NDArray[Any]]:
    """Return texts as one array of UTF-8 bytes and an array of the positions at which they end."""
    encoded = [text.encode() for text in texts.tolist()]
    ends = np.cumsum([len(text) for text in encoded], dtype=np.int64) if encoded else np.zeros(0, dtype=np.int64)
    return {name + _BYTES: np.frombuffer(b"".join(encoded), dtype=np.uint8), name + _ENDS: ends}


def _unpacked(arrays: dict[str, NDArray[Any]], name: str) -> NDArray[np.str_]:
    data, ends = arrays[name + _BYTES].tobytes(), arrays[name + _ENDS].tolist()
    starts = [0, *ends[:-1]]
    texts = [data[start:end].decode() for start, end in zip(starts, ends, strict=True)] if ends else []
    return np.asarray(texts, dtype=np.str_) if texts else np.zeros(0, dtype="U1")
