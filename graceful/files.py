"""Files that are replaced whole or not at all, and refusals of the operating system as one line. Every process.

Writes go to a temporary file beside the target, are flushed to disk and renamed, so that readers see the old content or
the new and never half of it. Whatever fails on the way, the temporary file is removed.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import IO

from graceful.errors import StorageError


@contextmanager
def replacing(path: Path, *, private: bool = False) -> Iterator[IO[bytes]]:
    """Yield a file that takes the place of `path` when the block ends, and is removed when the block fails.

    Args:
        path: What is replaced; its folder exists.
        private: Readable by its owner alone, in place of what the process's mask says.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if not private:
            os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(name)
        raise
    flush_folder(path.parent)


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


def mark_used(path: Path) -> None:
    """Note the time at which a copy was used: `graceful gc` removes those first that were not used for long."""
    with suppress(OSError):  # a home that cannot be written is not cleaned either
        os.utime(path)


@lru_cache(maxsize=1)
def _umask() -> int:
    """Return the process's mask. It can only be read by setting it, hence once."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def flush_folder(folder: Path) -> None:
    """Make a rename survive a power cut. Some network file systems refuse to flush folders: the rename still holds."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)
