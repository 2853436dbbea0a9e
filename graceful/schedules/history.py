"""The history of the firings of one machine's schedules, as appended lines of JSON. Runs on the client.

    HOME/schedules/history.jsonl        one line per thing that happened to a firing
    HOME/schedules/history.old.jsonl    the lines before, once the file has grown beyond `LARGEST`
    HOME/schedules/.history.lock        held while a line is written

A reader keeps how far it has read and reads only what is new. A new file begins with a line that no other file has, by
which readers tell it, and with the events of each schedule that decide what is due, so that nothing fires twice because
older lines went.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import uuid
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from graceful import locks
from graceful.files import guarded, replacing

FILE, OLD, LOCK = "history.jsonl", "history.old.jsonl", ".history.lock"
LARGEST = 512 * 1024
"""Bytes of the file, about 2,500 events, above which older lines are put aside."""
UNFINISHED = ("running", "interrupted")
"""Outcomes after which the same firing may run again: it resumes."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """What happened to one firing.

    Attributes:
        schedule: Name of the schedule.
        firing: Name of the firing and of its version.
        due: When it should have started.
        at: When this was written.
        outcome: running, passed, held, skipped, failed, interrupted, or missed.
        exit_code: The exit code of the refresh; None if there was none, or it has not ended.
        reason: One line for people.
    """

    schedule: str
    firing: str
    due: datetime
    at: datetime
    outcome: str
    exit_code: int | None = None
    reason: str = ""

    def line(self) -> bytes:
        """Return the event as a line of the file."""
        document = {**asdict(self), "due": self.due.isoformat(), "at": self.at.isoformat()}
        return f"{json.dumps(document)}\n".encode()


@dataclass
class History:
    """The history in one folder; each read takes only the lines added since the last. Threads may share it.

    Attributes:
        folder: HOME/schedules.
    """

    folder: Path
    _events: list[Event] = field(default_factory=list)
    _offset: int = 0
    _head: bytes = b""
    _reading: threading.Lock = field(default_factory=threading.Lock)

    def events(self) -> tuple[Event, ...]:
        """Return what happened since lines were last put aside, oldest first.

        A line that was cut short by a crash is passed over.

        Raises:
            StorageError: The file cannot be read.
        """
        path = self.folder / FILE
        with self._reading:
            with guarded(path, "read"):
                try:
                    with path.open("rb") as file:
                        self._read(file)
                except FileNotFoundError:
                    self._forget()
            return tuple(self._events)

    def record(self, event: Event) -> None:
        """Append one line, on disk when this returns.

        Raises:
            StorageError: The file cannot be written.
        """
        path = self.folder / FILE
        with guarded(path, "write"):
            self.folder.mkdir(parents=True, exist_ok=True)
            with locks.exclusive(self.folder / LOCK, seconds=None):
                if path.exists() and path.stat().st_size > LARGEST:
                    self._put_aside(path)
                with path.open("ab+") as file:
                    separator = b"\n" if file.tell() and _cut(file) else b""
                    file.write(separator + event.line())
                    file.flush()
                    os.fsync(file.fileno())

    def _read(self, file: BinaryIO) -> None:
        if not self._head or file.read(len(self._head)) != self._head:  # the file was replaced
            self._forget()
        file.seek(self._offset)
        appended = file.read()
        complete = appended[: appended.rfind(b"\n") + 1]
        self._events += filter(None, map(_event, complete.splitlines()))
        self._head = self._head or complete[: complete.find(b"\n") + 1]
        self._offset += len(complete)

    def _forget(self) -> None:
        self._events, self._offset, self._head = [], 0, b""

    def _put_aside(self, path: Path) -> None:
        """Begin a new file with what decides about the next firings; at any moment one of both files is there."""
        deciding = _deciding(self.events())
        with replacing(self.folder / OLD) as old, path.open("rb") as file:
            shutil.copyfileobj(file, old)
        with replacing(path) as new:
            new.write(f"{json.dumps({'file': uuid.uuid4().hex})}\n".encode())
            new.writelines(event.line() for event in deciding)


def of(schedule: str, events: Iterable[Event]) -> tuple[Event, ...]:
    """Return the events of one schedule."""
    return tuple(event for event in events if event.schedule == schedule)


def unfinished(events: Iterable[Event]) -> Event | None:
    """Return the last event that began or interrupted a firing, unless that firing ended since.

    Args:
        events: The events of one schedule, oldest first.
    """
    events = tuple(events)
    started = [event for event in events if event.outcome in UNFINISHED]
    finished_due = {event.due for event in events if event.outcome not in UNFINISHED}
    return started[-1] if started and started[-1].due not in finished_due else None


def _deciding(events: tuple[Event, ...]) -> list[Event]:
    """Return, per schedule and in their order, its newest firing, its last begun one with its end, its last event."""
    positions: set[int] = set()
    for name in {event.schedule for event in events}:
        numbered = [(position, event) for position, event in enumerate(events) if event.schedule == name]
        started_due = [event.due for _, event in numbered if event.outcome in UNFINISHED][-1:]
        newest = max(event.due for _, event in numbered)
        positions |= {position for position, event in numbered if event.due == newest or event.due in started_due} | {
            numbered[-1][0]
        }
    return [event for position, event in enumerate(events) if position in positions]


def _event(line: bytes) -> Event | None:
    try:
        raw = json.loads(line)
        moments = {key: datetime.fromisoformat(raw[key]).astimezone(UTC) for key in ("due", "at")}
        return Event(**{**raw, **moments})
    except (ValueError, TypeError, KeyError):
        return None


def _cut(file: BinaryIO) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) != b"\n"
