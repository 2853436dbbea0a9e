"""The scheduler of one machine: wakes when something is due, runs one firing at a time. Runs in the foreground.

APScheduler rings, `timetable.due` decides: an alarm merely wakes the main thread, which looks at files and clock. So a
schedule that is changed, paused or deleted by another command counts within seconds, and nothing is kept in memory that
a restart would miss. Firings run in the main thread, because that is where signals arrive.
"""

from __future__ import annotations

import contextlib
import logging
import queue
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from graceful.errors import GracefulError, SpecError
from graceful.launch.cronjob import firing_name
from graceful.launch.timetable import Due, Entry, Event, Timetable, due, unseen

POLL_SECONDS = 5.0
"""After so long the files are looked at again."""
EXIT_INTERRUPTED = 130


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How the refresh of a firing ended.

    Attributes:
        outcome: passed, held, skipped, failed or interrupted.
        exit_code: Its own.
        reason: One line for people.
    """

    outcome: str
    exit_code: int
    reason: str = ""


Start = Callable[[Entry, str], Ended]
"""Runs the refresh of a schedule under the name of a firing, and waits for it."""


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(kw_only=True)
class Scheduler:
    """Fires what is due, until it is interrupted.

    Attributes:
        timetable: What fires when.
        start: Runs one firing.
        say: Tells people one line.
        now: The clock.
    """

    timetable: Timetable
    start: Start
    say: Callable[[str], None]
    now: Callable[[], datetime] = _now
    running: str | None = None
    _wakes: queue.SimpleQueue[str] = field(default_factory=queue.SimpleQueue)

    def run(self, *, ready: Callable[[], None] = lambda: None) -> int:
        """Work until Ctrl-C.

        Args:
            ready: Called once no other scheduler can work on this home.

        Returns:
            130.

        Raises:
            SpecError: Another scheduler works on this home.
            StorageError: A file cannot be read or written.
        """
        with self.timetable.working(), _clock() as clock:
            known: tuple[Entry, ...] | None = None
            with contextlib.suppress(KeyboardInterrupt):
                ready()
                while self.look() != EXIT_INTERRUPTED:
                    entries = self.timetable.entries()
                    if entries != known:
                        known = entries
                        self._set(clock, entries)
                    with contextlib.suppress(queue.Empty):
                        self._wakes.get(timeout=POLL_SECONDS)
        return EXIT_INTERRUPTED

    def look(self) -> int | None:
        """Run everything that is due now, one after the other.

        Returns:
            130 if a firing was interrupted, so that nothing else may start; else None.
        """
        for entry in self.timetable.entries():
            asked = due(entry, self.timetable.history(), self.now())
            self._report(entry, asked)
            if self._runs_elsewhere(entry, asked.run):
                continue
            if asked.run is not None and self.fire(entry, asked.run).outcome == "interrupted":
                return EXIT_INTERRUPTED
        return None

    def _runs_elsewhere(self, entry: Entry, moment: datetime | None) -> bool:
        """Whether what looks like an interrupted firing is at work, started by `run-now` in another process."""
        begun = {event.due for event in self.timetable.history() if event.schedule == entry.name}
        return moment in begun and self.timetable.is_firing(entry.name)

    def fire(self, entry: Entry, moment: datetime) -> Ended:
        """Run one firing and write down how it went; if another one runs, it is skipped."""
        firing = firing_name(entry.name, moment)
        try:
            with self.timetable.firing(entry.name):
                self.say(f"{firing}: starts, due {_clocked(moment)}")
                self._note(entry, moment, "running")
                self.running = entry.name
                try:
                    ended = self.start(entry, firing)
                except GracefulError as e:
                    ended = Ended(outcome="failed", exit_code=e.exit_code, reason=e.message)
                except KeyboardInterrupt:
                    ended = Ended(outcome="interrupted", exit_code=EXIT_INTERRUPTED)
                finally:
                    self.running = None
                self._note(entry, moment, ended.outcome, exit_code=ended.exit_code, reason=ended.reason)
        except SpecError as e:  # `run-now` was faster
            ended = Ended(outcome="skipped", exit_code=e.exit_code, reason=e.message)
            self._note(entry, moment, ended.outcome, reason=ended.reason)
        self.say(f"{firing}: {ended.outcome}{f', {ended.reason}' if ended.reason else ''}")
        return ended

    def ring(self, name: str) -> None:
        """An alarm: wake the main thread, or skip what is due while a firing of the same schedule runs."""
        if self.running != name:
            self._wakes.put(name)
            return
        entry = self.timetable.peek(name)
        if entry is None:
            return
        for moment in unseen(entry, self.timetable.history(), self.now()):
            self._skip(entry, moment, "the firing before it still runs")

    def _skip(self, entry: Entry, moment: datetime, reason: str) -> None:
        self._note(entry, moment, "skipped", reason=reason)
        self.say(f"{firing_name(entry.name, moment)}: skipped, {reason}")

    def _report(self, entry: Entry, asked: Due) -> None:
        if not asked.missed:
            return
        first, last, count = asked.missed[0], asked.missed[-1], len(asked.missed)
        reason = f"due {_clocked(last)}" if count == 1 else f"{count} firings, {_clocked(first)} to {_clocked(last)}"
        if asked.run is not None:
            reason += f"; {firing_name(entry.name, asked.run)} runs for them"
        for moment in {first, last}:
            self._note(entry, moment, "missed", reason=reason)
        self.say(f"{entry.name}: missed, {reason}")

    def _note(
        self, entry: Entry, moment: datetime, outcome: str, *, exit_code: int | None = None, reason: str = ""
    ) -> None:
        event = Event(
            schedule=entry.name,
            firing=firing_name(entry.name, moment),
            due=moment,
            at=self.now(),
            outcome=outcome,
            exit_code=exit_code,
            reason=reason,
        )
        self.timetable.record(event)

    def _set(self, clock: Any, entries: tuple[Entry, ...]) -> None:
        clock.remove_all_jobs()
        for entry in (entry for entry in entries if not entry.paused):
            clock.add_job(self.ring, entry.times().trigger, args=(entry.name,), id=entry.name)


@contextlib.contextmanager
def _clock() -> Any:
    """APScheduler in a thread of its own, as an alarm clock: one ring for all that was missed, however late."""
    from apscheduler.schedulers.background import BackgroundScheduler

    logging.getLogger("apscheduler").setLevel(logging.ERROR)
    clock = BackgroundScheduler(
        timezone=UTC, job_defaults={"coalesce": True, "misfire_grace_time": None, "max_instances": 1}
    )
    clock.start()
    try:
        yield clock
    finally:
        clock.shutdown(wait=False)


def _clocked(moment: datetime) -> str:
    return f"{moment.astimezone():%Y-%m-%d %H:%M %Z}"
