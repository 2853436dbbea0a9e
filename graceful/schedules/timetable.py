"""Schedules of one machine: a JSON file each, a history of firings, and what is due at a moment. Runs on the client.

    HOME/schedules/NAME.json        what fires, when; written whole or not at all
    HOME/schedules/history.jsonl    what happened to firings, see `history`
    HOME/schedules/.NAME.lock       held while a firing of NAME runs, by its program too; `.lock`: a scheduler works

What is due follows from the files and the clock alone, so that a scheduler may die at any moment. No pickles.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

from graceful import locks
from graceful.errors import SpecError, StorageError
from graceful.files import guarded, replacing
from graceful.schedules import cron, history
from graceful.schedules.cron import Cron
from graceful.schedules.history import Event, History

_LOG = logging.getLogger(__name__)
LATE = timedelta(hours=1)
"""A firing that is later than this is missed."""
BACKFILL = "backfill"
MOST = 1000
"""Missed firings that are counted one by one."""
LOCK_SECONDS = 0.3
"""A lock that is held for less than this is held by a process that only tests it."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One schedule.

    Attributes:
        name: Lower case letters, digits and hyphens; versions are named after it.
        cron: As `cron.read` takes it.
        time_zone: The time zone of the cron expression.
        document: The resolved spec as JSON values, to which every firing gives a name of its own; or under the key
            `BACKFILL` what a backfill reads.
        since: Firings up to this moment do not count: when it was applied or resumed.
        paused: Fires only on demand.
    """

    name: str
    cron: str
    time_zone: str
    document: dict[str, Any]
    since: datetime
    paused: bool = False

    def times(self) -> Cron:
        """Return the cron expression that says when it fires."""
        return cron.read(self.cron, self.time_zone)


@dataclass(frozen=True, kw_only=True)
class Due:
    """The firings that are due at a moment.

    Attributes:
        run: The firing to start now; None: none.
        missed: Firings that will not run, oldest first, at most `MOST`.
    """

    run: datetime | None = None
    missed: tuple[datetime, ...] = ()


def due(entry: Entry, events: Iterable[Event], now: datetime) -> Due:
    """Return which firings of a schedule run or were missed now, given what happened before.

    Of several firings that passed unseen the newest runs, for all of them, if it is less than an hour late. A firing
    that was interrupted is taken up again within the same hour, unless a newer one is due.
    """
    if entry.paused:
        return Due()
    own_events = history.of(entry.name, events)
    unfinished = history.unfinished(event for event in own_events if event.due >= entry.since)
    resumable = () if unfinished is None else (unfinished.due,)
    candidates = (*resumable, *unseen(entry, own_events, now))
    if not candidates:
        return Due()
    newest = candidates[-1]
    if now - newest < LATE:
        return Due(run=newest, missed=candidates[:-1])
    return Due(missed=candidates)


def unseen(entry: Entry, events: Iterable[Event], now: datetime) -> tuple[datetime, ...]:
    """Return the firings up to now that are not in the history, oldest first; at most twice `MOST`."""
    last_due = max([entry.since, *(event.due for event in history.of(entry.name, events))])
    firings = entry.times().between(last_due, now, most=MOST)
    if len(firings) == MOST:  # after a long pause only the newest may still run
        firings += entry.times().between(max(firings[-1], now - LATE), now, most=MOST)
    return firings


@dataclass(frozen=True)
class Timetable:
    """The schedules of one home folder.

    Attributes:
        folder: HOME/schedules.
    """

    folder: Path

    def entries(self) -> tuple[Entry, ...]:
        """Return every schedule, by name.

        Raises:
            StorageError: A file cannot be read, or is not one of ours.
        """
        entries = []
        for path in sorted(self.folder.glob("*.json")):
            try:
                entries.append(self._read(path))
            except StorageError as e:  # the other schedules must fire
                _LOG.warning("%s", e.message)
        return tuple(entries)

    def find(self, name: str) -> Entry:
        """Return one schedule.

        Raises:
            SpecError: There is none of that name.
        """
        entry = self.peek(name)
        if entry is None:
            raise SpecError(f"no schedule {name!r} in {self.folder}; `graceful schedule list` shows them")
        return entry

    def peek(self, name: str) -> Entry | None:
        """Return one schedule, or None."""
        path = self.folder / f"{name}.json"
        return self._read(path) if path.exists() else None

    def put(self, entry: Entry) -> None:
        """Write a schedule, whole or not at all."""
        document = {**asdict(entry), "since": entry.since.isoformat(), "schema": 1}
        path = self.folder / f"{entry.name}.json"
        with guarded(path, "write"):
            self.folder.mkdir(parents=True, exist_ok=True)
            with replacing(path, private=True) as file:
                file.write(json.dumps(document, indent=2).encode() + b"\n")

    def pause(self, name: str, *, paused: bool, now: datetime) -> bool:
        """Pause or go on; what would have fired while it was paused does not count as missed.

        Returns:
            Whether that changed anything.
        """
        entry = self.find(name)
        if entry.paused == paused:
            return False
        self.put(replace(entry, paused=paused, since=entry.since if paused else now))
        return True

    def remove(self, name: str) -> None:
        """Forget a schedule; its history stays, and so do its runs."""
        path = self.folder / f"{name}.json"
        if not path.exists():
            self.find(name)
        path.unlink(missing_ok=True)

    def history(self) -> tuple[Event, ...]:
        """Return what happened of late, oldest first; as `History.events`."""
        return self._history.events()

    def record(self, event: Event) -> None:
        """Append one line to the history; as `History.record`."""
        self._history.record(event)

    @cached_property
    def _history(self) -> History:
        return History(self.folder)

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Hold the lock of this home's only scheduler.

        Raises:
            SpecError: Another one is at work.
        """
        with self._locked(".lock", f"another scheduler works on {self.folder}; one is enough, or give another --home"):
            yield

    @contextlib.contextmanager
    def firing(self, name: str) -> Iterator[int]:
        """Hold the lock of a schedule's only running firing.

        Yields:
            The lock as a file descriptor. A process that inherits it keeps it, even if this one is killed.

        Raises:
            SpecError: Another one is running.
        """
        conflict = f"schedule {name}: a firing is running, two never overlap; wait for it"
        with self._locked(f".{name}.lock", conflict) as lock:
            yield lock

    def is_working(self) -> bool:
        """Return whether a scheduler is running."""
        return self._is_locked(".lock")

    def is_firing(self, name: str) -> bool:
        """Return whether a firing of a schedule is running."""
        return self._is_locked(f".{name}.lock")

    def _is_locked(self, name: str) -> bool:
        path = self.folder / name
        with guarded(path, "read"):
            return locks.is_held(path)

    @contextlib.contextmanager
    def _locked(self, name: str, conflict: str) -> Iterator[int]:
        path = self.folder / name
        with guarded(path, "write"):
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = locks.inheritable(path, seconds=LOCK_SECONDS)
        if lock is None:
            raise SpecError(conflict)
        try:
            yield lock
        finally:
            os.close(lock)

    def _read(self, path: Path) -> Entry:
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            if raw.pop("schema") != 1:
                raise ValueError("another schema")
            entry = Entry(**{**raw, "since": datetime.fromisoformat(raw["since"]).astimezone(UTC)})
            if entry.name != path.stem or not isinstance(entry.document, dict):
                raise ValueError("name or document do not fit")
            cron.read(entry.cron, entry.time_zone)
            return entry
        except (OSError, ValueError, TypeError, KeyError, AttributeError, SpecError) as e:
            problem = f"{type(e).__name__}: {e}"
            raise StorageError(f"{path}: not a schedule ({problem}); apply it again, or delete the file") from e
