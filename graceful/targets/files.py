"""Digests of cache files: recorded when a cache is sealed, compared when it is opened. Driver and workers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graceful import storage
from graceful.errors import IntegrityError
from graceful.tasks.names import Column, Names, blocks

FORMAT = 1
META = "meta.json"
IN_USE = ".use"
"""What follows a cache's key in the name of the file that its readers lock."""
_WHOLE = 256 * 2**20
_SAMPLES = 64
_SAMPLE = 2**20


def verify(folder: Path, recorded: Mapping[str, Mapping[str, Any]]) -> None:
    """Compare each file with its recorded size and digest; large files by samples.

    Raises:
        IntegrityError: A file is missing or differs.
    """
    for name, expected in recorded.items():
        path = folder / name
        actual = fingerprint(path, whole=False) if path.is_file() else {}
        for fact, value in actual.items():
            if value != expected.get(fact):
                raise IntegrityError(
                    f"{path}: {fact} must be {_shortened(expected.get(fact))}, got {_shortened(value)}; delete {folder}"
                    " and run again, it is rebuilt",
                    {"path": str(path), "expected": expected.get(fact), "found": value},
                )
        if not actual:
            raise IntegrityError(f"{path}: missing; delete {folder} and run again, it is rebuilt")


def fingerprint(path: Path, *, whole: bool) -> dict[str, Any]:
    """Return size and digests of a file.

    Args:
        path: The file.
        whole: Also hash all of a file above 256 MiB; below it is always hashed.

    Returns:
        `bytes`; `sha256` of all; above 256 MiB `sampled`, the SHA-256 of 64 evenly spread chunks of 1 MiB.
    """
    size = path.stat().st_size
    facts: dict[str, Any] = {"bytes": size}
    if whole or size <= _WHOLE:
        facts["sha256"] = storage.sha256_file(path)
    if size > _WHOLE:
        sampled = hashlib.sha256()
        with path.open("rb") as file:
            for chunk in range(_SAMPLES):
                file.seek(chunk * (size - _SAMPLE) // (_SAMPLES - 1))
                sampled.update(file.read(_SAMPLE))
        facts["sampled"] = sampled.hexdigest()
    return facts


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


def array_digest(array: NDArray[Any]) -> str:
    """Return the SHA-256 of an array's type, shape and bytes."""
    digest = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array).data if array.size else b"")
    return digest.hexdigest()


def _shortened(value: object) -> str:
    text = str(value)
    return text if len(text) < 20 else f"{text[:12]}..."
