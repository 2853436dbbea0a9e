"""Local files: digests and atomic writes. Every process uses it.

How a file is replaced whole or not at all is in `graceful.files`.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from graceful.files import guarded, replacing

# --- digests ----------------------------------------------------------------------------------------------------------


def sha256_file(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes, hexadecimal, read in constant memory.

    Raises:
        StorageError: The file cannot be read.
    """
    with guarded(path, "read"), Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(document: Any) -> str:
    """Return the SHA-256 of a JSON value in canonical form: sorted keys, no spaces, ASCII, no NaN.

    Raises:
        ValueError: NaN or an infinity, which JSON has not.
        TypeError: A value that is not JSON.
    """
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


# --- local files ------------------------------------------------------------------------------------------------------


def write_bytes(path: str | Path, data: bytes, *, private: bool = False) -> Path:
    """Replace a file atomically; missing folders are made.

    Args:
        path: What is replaced.
        data: What it then holds.
        private: Readable by its owner alone, because it holds a secret.

    Returns:
        The path, for chaining.

    Raises:
        StorageError: Disk full, permission; the old content is untouched.
    """
    target = Path(path)
    with guarded(target, "write"):
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target, private=private) as file:
            file.write(data)
    return target


def write_text(path: str | Path, text: str) -> Path:
    """Write a text as UTF-8, like `write_bytes`."""
    return write_bytes(path, text.encode())


def write_json(path: str | Path, document: Any) -> Path:
    """Do what `write_bytes` does: indented JSON with a final newline, keys in the order given."""
    return write_text(path, json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_bytes(path: str | Path) -> bytes:
    """Read a whole local file.

    Raises:
        StorageError: Missing or unreadable.
    """
    with guarded(path, "read"):
        return Path(path).read_bytes()
