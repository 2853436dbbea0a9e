"""The metrics trace: `metrics.jsonl`, one JSON object a line. Rank 0 writes, the driver follows.

    {"event": "start", "step", "steps", "pids", "world_size", ...}    every time workers start
    {"event": "step", "step", "epoch", "loss", "parts", "lr", "grad_norm", "samples_per_second", "memory_mb", "eta"}
    {"event": "epoch", "step", "epoch", "loss", "train_error", "validation_error", "seconds"}

A resumed run cuts the file at its checkpoint, so its step rows are those of an undisturbed run, once each. The file is
flushed to disk with every epoch and before every checkpoint is published: it is never behind a checkpoint.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from graceful.storage import guarded, write_text

FILE = "metrics.jsonl"


class Trace:
    """Append rows to a trace that stands at a given step.

    Args:
        path: The file; made if missing.
        step: Rows of later steps are cut off.

    Raises:
        StorageError: The disk is full or refuses.
    """

    def __init__(self, path: Path, *, step: int) -> None:
        kept = [row for row in read(path) if _place(row) <= step] if step else []
        write_text(path, "".join(_line(row) for row in kept))
        self._path = path
        with guarded(path, "write"):
            self._file = path.open("a", encoding="utf-8")

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one row; it survives the death of this process.

        Raises:
            StorageError: The disk is full.
        """
        with guarded(self._path, "write"):
            self._file.write(_line(row))
            self._file.flush()

    def sync(self) -> None:
        """Make everything written survive the death of the machine."""
        with guarded(self._path, "write"):
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
        found = self._path.stat()
        return found.st_ino, found.st_size

    def rows(self) -> Iterator[dict[str, Any]]:
        """Complete rows since the last call. After a replacement: the newest start row and what follows it."""
        inode, size = self._now()
        if inode == 0 or (inode == self._inode and size == self._offset):
            return
        with self._path.open("rb") as file:
            replaced = os.fstat(file.fileno()).st_ino != self._inode
            file.seek(0 if replaced else self._offset)
            data = file.read()
            inode = os.fstat(file.fileno()).st_ino
        complete = data[: data.rfind(b"\n") + 1]
        found = [json.loads(line) for line in complete.splitlines()]
        starts = [index for index, row in enumerate(found) if row["event"] == "start"]
        if replaced and not starts:
            return
        self._offset = len(complete) if replaced else self._offset + len(complete)
        self._inode = inode
        yield from found[starts[-1] :] if replaced else found


def read(path: Path) -> list[dict[str, Any]]:
    """All complete rows of a trace; none if there is no file. A half-written last line is left out."""
    if not path.exists():
        return []
    data = path.read_bytes()
    return [json.loads(line) for line in data[: data.rfind(b"\n") + 1].splitlines()]


def _place(row: Mapping[str, Any]) -> int:
    """The step at which a row was written; a start row belongs to the step after which it starts."""
    return int(row["step"]) + (1 if row["event"] == "start" and row["step"] else 0)


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, allow_nan=False) + "\n"
