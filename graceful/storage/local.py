"""Local files: digests and atomic writes. Every process uses it.

Writes go to a temporary file beside the target, are flushed to disk and renamed, so that readers see the old content or
the new and never half of it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from graceful.errors import StorageError

# --- digests ----------------------------------------------------------------------------------------------------------


def sha256_file(path: str | Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal, read in constant memory.

    Raises:
        StorageError: The file cannot be read.
    """
    with guarded(path, "read"), Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(document: Any) -> str:
    """SHA-256 of a JSON value in canonical form: sorted keys, no spaces, ASCII, no NaN.

    Raises:
        ValueError: NaN or an infinity, which JSON has not.
        TypeError: A value that is not JSON.
    """
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


# --- local files ------------------------------------------------------------------------------------------------------


def write_bytes(path: str | Path, data: bytes) -> Path:
    """Replace a file atomically; missing folders are made.

    Returns:
        The path, for chaining.

    Raises:
        StorageError: Disk full, permission; the old content is untouched.
    """
    target = Path(path)
    with guarded(target, "write"):
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o666 & ~_umask())
            os.replace(name, target)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(name)
            raise
        _flush_folder(target.parent)
    return target


def write_text(path: str | Path, text: str) -> Path:
    """As `write_bytes`, UTF-8."""
    return write_bytes(path, text.encode())


def write_json(path: str | Path, document: Any) -> Path:
    """As `write_bytes`: indented JSON with a final newline, keys in the order given."""
    return write_text(path, json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_bytes(path: str | Path) -> bytes:
    """Read a whole local file.

    Raises:
        StorageError: Missing or unreadable.
    """
    with guarded(path, "read"):
        return Path(path).read_bytes()


@contextmanager
def guarded(path: str | Path, verb: str) -> Iterator[None]:
    """Turn what the operating system refuses into one StorageError line about a path.

    Args:
        path: What is read or written.
        verb: `read`, `write`, or with an object.
    """
    try:
        yield
    except OSError as e:
        full = e.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "free some space" if full else "check the path and its permissions"
        reason = "the disk is full" if full else (e.strerror or str(e))
        raise StorageError(f"{path}: cannot {verb}, {reason}; {remedy}", {"path": str(path)}) from e


@lru_cache(maxsize=1)
def _umask() -> int:
    """The process's mask. It can only be read by setting it, hence once."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _flush_folder(folder: Path) -> None:
    """Make a rename survive a power cut. Some network file systems refuse to flush folders: the rename still holds."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)
