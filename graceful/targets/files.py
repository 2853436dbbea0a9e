"""Digests of cache files: recorded when a cache is sealed, compared when it is opened. Driver and workers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graceful import storage
from graceful.errors import IntegrityError

FORMAT = 1
META = "meta.json"
IN_USE = ".use"
"""Ending, behind a cache's key, of the name of the file that its readers lock."""
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


def array_digest(array: NDArray[Any]) -> str:
    """Return the SHA-256 of an array's type, shape and bytes."""
    digest = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array).data if array.size else b"")
    return digest.hexdigest()


def _shortened(value: object) -> str:
    text = str(value)
    return text if len(text) < 20 else f"{text[:12]}..."
