"""Copies in the bucket of what programs on clusters print, one for each start of a run. Runs in the driver.

`python -m graceful.programs.housekeeping.log_archive s3://bucket/prefix RUN N` prints one copy. The client starts it in
a process of its own, because the client cannot reach buckets.

The pods of an attempt, and its log with them, are deleted before anybody has read why it failed. So the driver writes
what it prints to GRACEFUL_STORAGE/logs/RUN/attempt-N.log every few seconds and when it ends. The driver never waits for
the bucket: a copy that cannot be written is tried again with the next one, and given up at the end.
"""

from __future__ import annotations

import re
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from io import TextIOBase
from typing import TextIO

from graceful.errors import EXIT_USAGE, GracefulError
from graceful.storage import objects

FOLDER = "logs"
EVERY_SECONDS = 20.0
LARGEST = 8 * 2**20
"""Characters of a log that are kept, its last ones."""
_NAME = re.compile(r"attempt-(\d+)\.log")


@dataclass(kw_only=True)
class Archive:
    """What a program has printed so far, and where its copy is; without a bucket it keeps nothing.

    Attributes:
        every: Seconds between copies.
    """

    every: float = EVERY_SECONDS
    _uri: str | None = None
    _texts: deque[str] = field(default_factory=deque)
    _size: int = 0
    _copied: int = -1
    _written: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _over: threading.Event = field(default_factory=threading.Event)

    def begin(self, storage: str | None, *, name: str) -> None:
        """Copy what is printed from now on, and what was printed before, under the next number of the run's name.

        Args:
            storage: s3://bucket/prefix; None: there is none, and nothing is kept.
            name: The name of the run.
        """
        if storage is None:
            self._texts.clear()
            return
        folder = f"{storage}/{FOLDER}/{name}"
        try:
            number = max(attempts(folder), default=0) + 1
        except GracefulError:
            return  # the program itself will say what is wrong with the bucket
        self._uri = f"{folder}/attempt-{number}.log"
        threading.Thread(target=self._copy_again_and_again, name="log archive", daemon=True).start()

    def add(self, text: str) -> None:
        """Keep a text that was printed."""
        with self._lock:
            self._texts.append(text)
            self._size += len(text)
            self._written += 1
            while self._size > LARGEST and len(self._texts) > 1:
                self._size -= len(self._texts.popleft())

    def end(self) -> None:
        """Write the last copy."""
        self._over.set()
        self._copy()

    def _copy_again_and_again(self) -> None:
        while not self._over.wait(self.every):
            self._copy()

    def _copy(self) -> None:
        with self._lock:
            written, text = self._written, "".join(self._texts)
        if self._uri is not None and written != self._copied and objects.write_at_once(self._uri, text.encode()):
            self._copied = written


class _Copied(TextIOBase):
    """A stream that also adds to an archive; everything else is the stream's own."""

    def __init__(self, stream: TextIO, archive: Archive) -> None:
        self._stream, self._archive = stream, archive

    def write(self, text: str) -> int:
        self._archive.add(text)
        return self._stream.write(text)

    def flush(self) -> None:
        self._stream.flush()

    @property
    def encoding(self) -> str:  # type: ignore[override]  # consoles ask for it
        return self._stream.encoding

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


@contextmanager
def kept() -> Iterator[Archive]:
    """Let an archive see what this process prints."""
    archive = Archive()
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (_Copied(stream, archive) for stream in streams)
    try:
        yield archive
    finally:
        sys.stdout, sys.stderr = streams
        archive.end()


def attempts(folder: str) -> list[int]:
    """Return the numbers of the logs of a run.

    Args:
        folder: s3://bucket/prefix/logs/RUN.

    Raises:
        StorageError: Unreachable or refused.
    """
    names = (stored.key.rpartition("/")[2] for stored in objects.list_objects(folder))
    return sorted(int(match[1]) for match in map(_NAME.fullmatch, names) if match)


def main(arguments: list[str]) -> int:
    """Print one log; exit code 2 where there is none of that number."""
    root, run, number = arguments
    folder = f"{root.rstrip('/')}/{FOLDER}/{run}"
    try:
        numbers = attempts(folder)
        if int(number) not in numbers:
            there = f"there are those of {', '.join(map(str, numbers))}" if numbers else "there is none of this run"
            sys.stderr.write(f"no log of attempt {number} in {folder}; {there}\n")
            return EXIT_USAGE
        text = objects.read_object(f"{folder}/attempt-{number}.log").decode("utf-8", errors="replace")
    except GracefulError as e:
        sys.stderr.write(f"{e.message}\n")
        return e.exit_code
    with suppress(BrokenPipeError):
        sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
