"""Lock files: held alone, shared, or given to a child process. Every process; the only module that asks for locks.

All of them are the kernel's advisory lock on a whole file (flock), which ends with the last process that has the file
open. `exclusive` takes it through filelock. The others cannot: filelock has no shared flock, and it unlocks a file when
it lets go, also for a child process that inherited the lock and shall keep it.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PAUSE = 0.05
"""Seconds between two looks whether a lock is free."""


@contextmanager
def exclusive(path: Path, *, seconds: float | None = 0.0) -> Iterator[None]:
    """Hold a lock file alone, against other processes and other threads of this one; forked children let go of it.

    Args:
        path: The lock file; it and its folder are made if missing.
        seconds: For which another holder is waited for; None: without end.

    Raises:
        BlockingIOError: Another holder kept it.
        OSError: The file cannot be made, or its file system has no locks.
    """
    from filelock import FileLock, Timeout  # the command line starts without it

    logging.getLogger("filelock").setLevel(logging.INFO)  # at DEBUG it tells of every look
    lock = FileLock(path, timeout=-1 if seconds is None else seconds, poll_interval=PAUSE, preserve_lock_file=True)
    try:
        lock.acquire()
    except Timeout as e:
        raise BlockingIOError(f"{path}: held by another process") from e
    try:
        yield
    finally:
        lock.release()


def inheritable(path: Path, *, seconds: float = 0.0, mode: int = 0o666) -> int | None:
    """Return a file descriptor that holds a lock file alone; None where another holder kept it.

    A process that inherits the descriptor (`pass_fds`) holds the lock too; it is free once all of them have closed it.

    Args:
        path: The lock file; made if missing.
        seconds: For which another holder is waited for.
        mode: Permissions of a new file.

    Raises:
        OSError: The file cannot be made, or its file system has no locks.
    """
    end = time.monotonic() + seconds
    while (descriptor := _locked(path, os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX, mode)) is None:
        if time.monotonic() >= end:
            return None
        time.sleep(PAUSE)
    return descriptor


def is_held(path: Path) -> bool:
    """Return whether a process holds a lock file exclusively.

    A shared lock asks, so that two who ask at once do not take each other for the holder.

    Raises:
        OSError: The file cannot be read, or its file system has no locks.
    """
    try:
        descriptor = _locked(path, os.O_RDONLY, fcntl.LOCK_SH)
    except FileNotFoundError:
        return False
    if descriptor is not None:
        os.close(descriptor)
    return descriptor is None


class Shared:
    """A shared lock, held while this value lives; no process can hold the file exclusively meanwhile.

    Args:
        path: The lock file; made if missing.

    Raises:
        BlockingIOError: Another process holds it exclusively.
        OSError: The file cannot be made, or its file system has no locks.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = _locked(path, os.O_RDWR | os.O_CREAT, fcntl.LOCK_SH)
        if self._descriptor is None:
            raise BlockingIOError(f"{path}: held by another process")

    def __del__(self) -> None:
        descriptor = getattr(self, "_descriptor", None)
        if descriptor is not None:
            os.close(descriptor)


def _locked(path: Path, flags: int, kind: int, mode: int = 0o666) -> int | None:
    descriptor = os.open(path, flags, mode)
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BaseException as e:
        os.close(descriptor)
        if isinstance(e, BlockingIOError):
            return None
        raise
    return descriptor
