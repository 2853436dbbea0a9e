"""Lock files exclude processes of every release, and a child that inherits one keeps it."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from graceful import locks


def test_a_lock_excludes_whoever_asks_the_kernel_for_it(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "lock"
    with locks.exclusive(path), path.open("rb") as other:
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)
        assert locks.is_held(path)
        assert locks.inheritable(path, seconds=0.1) is None
        with pytest.raises(BlockingIOError):
            locks.Shared(path)
    assert path.is_file()
    with path.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(BlockingIOError), locks.exclusive(path, seconds=0.1):
            pass


def test_readers_share_a_lock_and_keep_it_from_who_wants_it_alone(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert not locks.is_held(path)
    readers = [locks.Shared(path), locks.Shared(path)]
    assert not locks.is_held(path)
    with pytest.raises(BlockingIOError), locks.exclusive(path):
        pass
    readers.clear()
    with locks.exclusive(path):
        pass


def test_a_child_that_inherits_a_lock_keeps_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    descriptor = locks.inheritable(path)
    assert descriptor is not None
    child = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    with subprocess.Popen(child, stdin=subprocess.PIPE, pass_fds=(descriptor,)):
        os.close(descriptor)
        assert locks.is_held(path)
    assert not locks.is_held(path)
