"""The scheduler of one machine: wakes when something is due, runs one firing at a time. Runs in the foreground.

`timetable.due` decides what runs. Files and clock are looked at every few seconds and when the next firing is due. So a
schedule that is changed, paused or deleted by another command counts within seconds, and nothing is kept in memory that
a restart would miss. Firings run in the main thread, because that is where signals arrive.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

from graceful.errors import EXIT_INTERRUPTED, GracefulError, SpecError
from graceful.schedules import history
from graceful.schedules.cron import firing_name
from graceful.schedules.history import Event
from graceful.schedules.timetable import Due, Entry, Timetable, due, unseen

POLL_SECONDS = 5.0
"""Seconds after which the files are read again."""


@dataclass(frozen=True, kw_only=True)
class FiringResult:
    """How the refresh of a firing ended.

    Attributes:
        outcome: passed, held, skipped, failed or interrupted.
        exit_code: Its own.
        reason: One line for people.
    """

    outcome: str
    exit_code: int
    reason: str = ""


Start = Callable[[Entry, str, int], FiringResult]
"""Runs the refresh of a schedule under the name of a firing, which inherits the firing's lock, and waits for it."""


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(kw_only=True)
class Scheduler:
    """Runs the firings that are due, until it is interrupted.

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
    _elsewhere: set[str] = field(default_factory=set)
    """Schedules of which a firing ran at the last look that this scheduler did not start."""

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
        with self.timetable.working(), contextlib.suppress(KeyboardInterrupt):
            ready()
            while self.run_due() != EXIT_INTERRUPTED:
                time.sleep(self._seconds_to_next())
        return EXIT_INTERRUPTED

    def _seconds_to_next(self) -> float:
        """Return the seconds until a firing is due, at most those until the files are looked at again."""
        now = self.now()
        next_firings = [entry.times().after(now) for entry in self.timetable.entries() if not entry.paused]
        return min([POLL_SECONDS, *((moment - now).total_seconds() for moment in next_firings)])

    def run_due(self) -> int | None:
        """Run everything that is due now, one after the other.

        Returns:
            130 if a firing was interrupted, so that nothing else may start; else None.
        """
        for entry in self.timetable.entries():
            if self.timetable.is_firing(entry.name):  # by `run-now`, or left behind by a scheduler that was killed
                self._elsewhere.add(entry.name)
                self.skip(entry.name)
                continue
            for moment in self._to_run(entry):
                if self.fire(entry, moment).outcome == "interrupted":
                    return EXIT_INTERRUPTED
        return None

    def _to_run(self, entry: Entry) -> Iterator[datetime]:
        """Yield the firing whose end was not recorded, if it ran until now, and then the one that is due."""
        if entry.name in self._elsewhere:
            self._elsewhere.discard(entry.name)
            interrupted = history.unfinished(history.of(entry.name, self.timetable.history()))
            if (
                interrupted is not None and interrupted.outcome == "running" and not entry.paused
            ):  # resumes, or repeats its result
                yield interrupted.due
        pending = due(entry, self.timetable.history(), self.now())
        self._report(entry, pending)
        if pending.run is not None:
            yield pending.run

    def fire(self, entry: Entry, moment: datetime) -> FiringResult:
        """Run one firing and write down how it went; if another one runs, it is skipped."""
        firing = firing_name(entry.name, moment)
        try:
            with self.timetable.firing(entry.name) as lock:
                self.say(f"{firing}: starts, due {_minute_text(moment)}")
                self._note(entry, moment, "running")
                try:
                    with self._skipping(entry.name):
                        ended = self.start(entry, firing, lock)
                except GracefulError as e:
                    ended = FiringResult(outcome="failed", exit_code=e.exit_code, reason=e.message)
                except KeyboardInterrupt:
                    ended = FiringResult(outcome="interrupted", exit_code=EXIT_INTERRUPTED)
                self._note(entry, moment, ended.outcome, exit_code=ended.exit_code, reason=ended.reason)
        except SpecError as e:  # `run-now` started it first
            ended = FiringResult(outcome="skipped", exit_code=e.exit_code, reason=e.message)
            self._note(entry, moment, ended.outcome, reason=ended.reason)
        self.say(f"{firing}: {ended.outcome}{f', {ended.reason}' if ended.reason else ''}")
        return ended

    @contextlib.contextmanager
    def _skipping(self, name: str) -> Iterator[None]:
        """Skip what falls due of a schedule while a firing of it runs, and say so at once."""
        finished = threading.Event()

        def skip() -> None:
            while not finished.wait(POLL_SECONDS):
                try:
                    self.skip(name)
                except GracefulError as e:
                    self.say(e.message)

        thread = threading.Thread(target=skip, name=f"skip-{name}")
        thread.start()
        try:
            yield
        finally:
            finished.set()
            thread.join()

    def skip(self, name: str) -> None:
        """Skip what is due of a schedule, because a firing of it runs."""
        entry = self.timetable.peek(name)
        if entry is None or entry.paused:
            return
        for moment in unseen(entry, self.timetable.history(), self.now()):
            self._skip(entry, moment, "the firing before it still runs")

    def _skip(self, entry: Entry, moment: datetime, reason: str) -> None:
        self._note(entry, moment, "skipped", reason=reason)
        self.say(f"{firing_name(entry.name, moment)}: skipped, {reason}")

    def _report(self, entry: Entry, pending: Due) -> None:
        if not pending.missed:
            return
        oldest, newest, count = pending.missed[0], pending.missed[-1], len(pending.missed)
        reason = (
            f"due {_minute_text(newest)}"
            if count == 1
            else f"{count} firings, {_minute_text(oldest)} to {_minute_text(newest)}"
        )
        if pending.run is not None:
            reason += f"; {firing_name(entry.name, pending.run)} runs for them"
        for moment in {oldest, newest}:
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


def _minute_text(moment: datetime) -> str:
    return f"{moment.astimezone():%Y-%m-%d %H:%M %Z}"
