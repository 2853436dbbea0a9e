"""Schedules of one machine: a JSON file each, a history of firings, and what is due at a moment. Runs on the client.

    HOME/schedules/NAME.json        what fires, when; written whole or not at all
    HOME/schedules/history.jsonl    one line per thing that happened to a firing; only ever appended to
    HOME/schedules/.NAME.lock       held while a firing of NAME runs; `.lock` while a scheduler works

What is due follows from the files and the clock alone, so that a scheduler may die at any moment. No pickles.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from graceful.errors import SpecError, StorageError
from graceful.launch import cron
from graceful.launch.cron import Cron

_LOG = logging.getLogger(__name__)
LATE = timedelta(hours=1)
"""A firing that is later than this is missed."""
MOST = 1000
"""Missed firings that are counted one by one."""
UNFINISHED = ("running", "interrupted")
"""Outcomes after which the same firing may run again: it resumes."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One schedule.

    Attributes:
        name: Lower case letters, digits and hyphens; versions are named after it.
        cron: As `cron.read` takes it.
        time_zone: Of the cron expression.
        document: The resolved spec as JSON values; every firing gives it a name of its own.
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
        """When it fires."""
        return cron.read(self.cron, self.time_zone)


@dataclass(frozen=True, kw_only=True)
class Event:
    """What happened to one firing.

    Attributes:
        schedule: Name of the schedule.
        firing: Name of the firing and of its version.
        due: When it should have started.
        at: When this was written.
        outcome: running, passed, held, skipped, failed, interrupted, or missed.
        exit_code: Of the refresh; None if there was none, or it has not ended.
        reason: One line for people.
    """

    schedule: str
    firing: str
    due: datetime
    at: datetime
    outcome: str
    exit_code: int | None = None
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Due:
    """What a moment asks for.

    Attributes:
        run: The firing to start now; None: none.
        missed: Firings that will not run, oldest first, at most `MOST`.
    """

    run: datetime | None = None
    missed: tuple[datetime, ...] = ()


def due(entry: Entry, history: Iterable[Event], now: datetime) -> Due:
    """What a schedule asks for now, given what happened before.

    Of several firings that passed unseen the newest runs, for all of them, if it is less than an hour late. A firing
    that was interrupted is taken up again within the same hour, unless a newer one is due.
    """
    if entry.paused:
        return Due()
    mine = [event for event in history if event.schedule == entry.name]
    begun = [event.due for event in mine if event.outcome in UNFINISHED and event.due >= entry.since]
    done = {event.due for event in mine if event.outcome not in UNFINISHED}
    resumable = [moment for moment in begun[-1:] if moment not in done]
    candidates = (*resumable, *unseen(entry, mine, now))
    if not candidates:
        return Due()
    newest = candidates[-1]
    if now - newest < LATE:
        return Due(run=newest, missed=candidates[:-1])
    return Due(missed=candidates)


def unseen(entry: Entry, history: Iterable[Event], now: datetime) -> tuple[datetime, ...]:
    """Firings up to now of which the history says nothing yet, oldest first; at most twice `MOST`."""
    seen = max([entry.since, *(event.due for event in history if event.schedule == entry.name)])
    fresh = entry.times().between(seen, now, most=MOST)
    if len(fresh) == MOST:  # far behind: only the newest may still run
        fresh += entry.times().between(max(fresh[-1], now - LATE), now, most=MOST)
    return fresh


@dataclass(frozen=True)
class Timetable:
    """The schedules of one home folder.

    Attributes:
        folder: HOME/schedules.
    """

    folder: Path

    def entries(self) -> tuple[Entry, ...]:
        """Every schedule, by name.

        Raises:
            StorageError: A file cannot be read, or is not one of ours.
        """
        found = []
        for path in sorted(self.folder.glob("*.json")):
            try:
                found.append(self._read(path))
            except StorageError as e:  # the others must fire
                _LOG.warning("%s", e.message)
        return tuple(found)

    def find(self, name: str) -> Entry:
        """One schedule.

        Raises:
            SpecError: There is none of that name.
        """
        found = self.peek(name)
        if found is None:
            raise SpecError(f"no schedule {name!r} in {self.folder}; `graceful schedule list` shows them")
        return found

    def peek(self, name: str) -> Entry | None:
        """One schedule, or None."""
        path = self.folder / f"{name}.json"
        return self._read(path) if path.exists() else None

    def put(self, entry: Entry) -> None:
        """Write a schedule, whole or not at all."""
        document = {**asdict(entry), "since": entry.since.isoformat(), "schema": 1}
        self._write(self.folder / f"{entry.name}.json", json.dumps(document, indent=2) + "\n")

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
        """Everything that happened, oldest first; a line that was cut short by a crash is passed over."""
        path = self.folder / "history.jsonl"
        try:
            lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        except OSError as e:
            raise StorageError(f"{path}: cannot be read ({e.strerror}); check its permissions") from e
        return tuple(event for event in map(_event, lines) if event is not None)

    def record(self, event: Event) -> None:
        """Append one line to the history, on disk when this returns."""
        line = json.dumps({**asdict(event), "due": event.due.isoformat(), "at": event.at.isoformat()})
        path = self.folder / "history.jsonl"
        with _told(path):
            self.folder.mkdir(parents=True, exist_ok=True)
            with path.open("ab+") as file:
                if file.tell() and _cut(file):
                    line = f"\n{line}"
                file.write(f"{line}\n".encode())
                file.flush()
                os.fsync(file.fileno())

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Be the only scheduler of this home.

        Raises:
            SpecError: Another one is at work.
        """
        with self._locked(".lock", f"another scheduler works on {self.folder}; one is enough, or give another --home"):
            yield

    @contextlib.contextmanager
    def firing(self, name: str) -> Iterator[None]:
        """Be the only firing of a schedule.

        Raises:
            SpecError: Another one is running.
        """
        with self._locked(f".{name}.lock", f"schedule {name}: a firing is running, two never overlap; wait for it"):
            yield

    def is_working(self) -> bool:
        """Whether a scheduler is at work."""
        return self._held(".lock")

    def is_firing(self, name: str) -> bool:
        """Whether a firing of a schedule is running."""
        return self._held(f".{name}.lock")

    def _held(self, lock: str) -> bool:
        if not (self.folder / lock).exists():
            return False
        try:
            with self._locked(lock, ""):
                return False
        except SpecError:
            return True

    @contextlib.contextmanager
    def _locked(self, name: str, otherwise: str) -> Iterator[None]:
        path = self.folder / name
        with _told(path):
            self.folder.mkdir(parents=True, exist_ok=True)
            file = path.open("a")
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as e:
                raise SpecError(otherwise) from e
            yield

    def _write(self, path: Path, text: str) -> None:
        with _told(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".", delete=False, encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(file.name, path)

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


def _event(line: str) -> Event | None:
    try:
        raw = json.loads(line)
        moments = {key: datetime.fromisoformat(raw[key]).astimezone(UTC) for key in ("due", "at")}
        return Event(**{**raw, **moments})
    except (ValueError, TypeError, KeyError):
        return None


def _cut(file: Any) -> bool:
    file.seek(-1, os.SEEK_END)
    return bool(file.read(1) != b"\n")


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise StorageError(f"{path}: cannot be written ({e.strerror}); check permissions and free space") from e
