"""The metrics trace: `metrics.jsonl`, one JSON object a line. Rank 0 writes, the driver follows.

    {"event": "start", "step", "steps", "pids", "world_size", ...}    every time workers start
    {"event": "step", "step", "steps", "epoch", "loss", "parts", "lr", "grad_norm", "samples_per_second", "memory_mb",
     "eta"}
    {"event": "epoch", "step", "epoch", "loss", "train_error", "validation_error", "seconds",
     "samples_per_second_per_worker", "time_shares": {"data": 0.02, ...}, "tflops_per_second_per_worker", "mfu"}

Shares of time are those since the epoch row before, so evaluation and checkpoint are those of the epoch before.

A resumed run cuts the file at its checkpoint, so its step rows are those of an undisturbed run, once each. The file is
flushed to disk with every epoch and before every checkpoint is published: it is never behind a checkpoint.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from graceful.errors import StorageError
from graceful.storage import Mirror, guarded, write_bytes, write_text

FILE = "metrics.jsonl"
_LOG = logging.getLogger(__name__)
COURIER_SECONDS = 5.0
"""Between two copies of a small trace to the mirror; a large one goes less often, so that the traffic is constant."""
_BYTES_PER_SECOND = 1_000_000
FLUSH_SECONDS = 0.1
"""Between two flushes of rows, which cost a tenth of a small network's step each."""


class Trace:
    """Append rows to a trace that stands at a given step.

    Args:
        path: The file; made if missing.
        step: Rows of later steps are cut off.

    Raises:
        StorageError: The disk is full or refuses.
    """

    def __init__(self, path: Path, *, step: int) -> None:
        rows = [row for row in read(path) if _step_of(row) <= step] if step else []
        write_text(path, "".join(_line(row) for row in rows))
        self._path = path
        with guarded(path, "write"):
            self._file = path.open("a", encoding="utf-8")
        self._flushed = -FLUSH_SECONDS

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one row; it survives the death of this process if that comes `FLUSH_SECONDS` later.

        Raises:
            StorageError: The disk is full.
        """
        with guarded(self._path, "write"):
            self._file.write(_line(row))
            if time.monotonic() >= self._flushed + FLUSH_SECONDS:
                self._file.flush()
                self._flushed = time.monotonic()

    def sync(self) -> None:
        """Make everything written survive the death of the machine."""
        with guarded(self._path, "write"):
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Flush to disk and close."""
        self.sync()
        self._file.close()


class Follower:
    """Read rows as they appear, also across a restart of the writer, which replaces the file.

    Args:
        path: The file; may not exist yet. Rows that it already has are not reported.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inode, self._offset = self._now()

    def _now(self) -> tuple[int, int]:
        if not self._path.exists():
            return 0, 0
        status = self._path.stat()
        return status.st_ino, status.st_size

    def rows(self) -> Iterator[dict[str, Any]]:
        """Return the complete rows since the last call. After a replacement: the newest start row and what follows
        it."""
        inode, size = self._now()
        if inode == 0 or (inode == self._inode and size == self._offset):
            return
        with self._path.open("rb") as file:
            replaced = os.fstat(file.fileno()).st_ino != self._inode
            file.seek(0 if replaced else self._offset)
            data = file.read()
            inode = os.fstat(file.fileno()).st_ino
        complete = data[: data.rfind(b"\n") + 1]
        rows_read = [json.loads(line) for line in complete.splitlines()]
        starts = [index for index, row in enumerate(rows_read) if row["event"] == "start"]
        if replaced and not starts:
            return
        self._offset = len(complete) if replaced else self._offset + len(complete)
        self._inode = inode
        yield from rows_read[starts[-1] :] if replaced else rows_read


class Courier(threading.Thread):
    """Copies the trace to the mirror while it grows, so that a driver on another machine sees progress. In rank 0.

    Trouble is left to the next copy: checkpoints copy the trace too, and fail aloud.

    Args:
        path: The trace.
        mirror: Where its copy in a bucket is.
    """

    def __init__(self, path: Path, *, mirror: Mirror) -> None:
        super().__init__(name="courier", daemon=True)
        self._path, self._mirror, self._over = path, mirror, threading.Event()

    def run(self) -> None:
        """Copy until stopped."""
        while not self._over.wait(self._pause()):
            try:
                self._mirror.save(self._path.parent, only=(FILE,))
            except StorageError as e:
                _LOG.info("%s; the next copy tries again", e.message)

    def stop(self) -> None:
        """End after the copy in progress."""
        self._over.set()
        self.join()

    def _pause(self) -> float:
        size = self._path.stat().st_size if self._path.exists() else 0
        return COURIER_SECONDS + size / _BYTES_PER_SECOND


class Fetcher:
    """Brings the trace of a rank on another machine here, where a Follower reads it. In the driver.

    Args:
        path: The trace.
        mirror: Where its copy in a bucket is; without one the rank writes to `path` itself and nothing is brought.
        seconds: Least time between two questions.

    Attributes:
        path: The file to follow: not the trace itself if it is brought, because the rank may be on this machine.
    """

    def __init__(self, path: Path, *, mirror: Mirror, seconds: float = 2.0) -> None:
        self._trace, self._mirror, self._seconds = path, mirror, seconds
        self.path = path if mirror.uri is None else path.with_name(f".{path.name}")
        self._tag: str | None = None
        self._next = 0.0

    def fetch(self, *, now: bool = False) -> None:
        """Take over what is new: rows are appended to the file here, another trace replaces it.

        Args:
            now: Do not wait until it is time again.

        Raises:
            StorageError: Unreachable or refused.
        """
        if self._mirror.uri is None or (time.monotonic() < self._next and not now):
            return
        self._next = time.monotonic() + self._seconds
        change = self._mirror.read_if_changed(self._trace, self._tag)
        if change is None:
            return
        data, self._tag = change
        current = self.path.read_bytes() if self.path.exists() else None
        if current is None or not data.startswith(current):
            write_bytes(self.path, data)
            return
        with guarded(self.path, "write"), self.path.open("ab") as file:
            file.write(data[len(current) :])


def read(path: Path) -> list[dict[str, Any]]:
    """Return all complete rows of a trace; none if there is no file. A half-written last line is left out."""
    if not path.exists():
        return []
    data = path.read_bytes()
    return [json.loads(line) for line in data[: data.rfind(b"\n") + 1].splitlines()]


def _step_of(row: Mapping[str, Any]) -> int:
    """Return the step at which a row was written; a start row belongs to the step after which it starts."""
    return int(row["step"]) + (1 if row["event"] == "start" and row["step"] else 0)


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, allow_nan=False) + "\n"
