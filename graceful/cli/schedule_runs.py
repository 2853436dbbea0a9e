"""`graceful schedule run` and `run-now` on this machine: firings are processes of their own. Client."""

from __future__ import annotations

import json
import os
import signal
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from graceful import homes, spec, startup
from graceful.cli import output as out
from graceful.cli import programs
from graceful.environment import OUTCOME_VARIABLE
from graceful.errors import EXIT_HELD, EXIT_INTERRUPTED, SpecError
from graceful.launch import foreground, outcome
from graceful.launch.job import JobSpec
from graceful.schedules import scheduler
from graceful.schedules.timetable import BACKFILL, Entry, Timetable


def run(*, home: Path | None, quiet: bool) -> int:
    """Run the scheduler of this machine until Ctrl-C; returns 130."""
    timetable = Timetable(homes.folder(home) / "schedules")
    count = len(timetable.entries())
    count_text = "1 schedule" if count == 1 else f"{count} schedules"
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a service that is stopped ends like Ctrl-C
    machine_scheduler = scheduler.Scheduler(timetable=timetable, start=_Program(home=home, quiet=quiet), say=_timed)
    code = machine_scheduler.run(ready=lambda: _timed(f"at work on {count_text} in {timetable.folder}; Ctrl-C ends it"))
    _timed("ended; schedules stay, `graceful schedule run` goes on")
    return code


@dataclass(frozen=True, kw_only=True)
class _Program:
    """Runs the program of a schedule in a process of its own, as `graceful refresh` and `graceful backfill run` do.

    Attributes:
        home: As `--home`.
        output: Form of the result on stdout.
        quiet: No progress.
    """

    home: Path | None
    output: str = "table"
    quiet: bool = False

    def __call__(self, entry: Entry, firing: str, lock: int) -> scheduler.FiringResult:
        program, document = _program(entry, firing)
        flags = ["--output", self.output, *(["--quiet"] if self.quiet else [])]
        with tempfile.TemporaryDirectory() as scratch:
            outcome_file = Path(scratch) / "outcome"
            job = JobSpec(
                name=f"{program} {firing}",
                command=startup.python("graceful.programs", program, *flags),
                env={**programs.environment(os.environ, home=self.home), OUTCOME_VARIABLE: str(outcome_file)},
                document=json.dumps(document),
            )
            code = foreground.run(job, deferred=True, interrupt_wins=True, inherited=(lock,))
            lines = outcome_file.read_text(encoding="utf-8").splitlines() if outcome_file.exists() else []
        last_outcome = outcome.last(lines)
        message = "" if last_outcome is None else last_outcome.message
        reason = message.removeprefix(outcome.SKIPPED)
        return scheduler.FiringResult(outcome=_outcome_of(code, message), exit_code=code, reason=reason)


def _program(entry: Entry, firing: str) -> tuple[str, dict[str, Any]]:
    """Return the program of a firing and the document that it reads."""
    if BACKFILL in entry.document:
        return BACKFILL, entry.document[BACKFILL]
    resolved = spec.parse({**entry.document, "name": firing}, where=f"schedule {entry.name}")
    return "refresh", resolved.dump()


def run_now(name: str, timetable: Timetable, *, home: Path | None, output: str) -> int:
    """Fire once, in the foreground; returns its exit code.

    Raises:
        SpecError: No such schedule, or a firing of it is running.
    """
    entry = timetable.find(name)
    if timetable.is_firing(name):
        raise SpecError(f"schedule {name}: a firing is running, two never overlap; wait for it")
    start = _Program(home=home, output=output)
    moment = datetime.now(UTC).replace(second=0, microsecond=0)
    ended_events = [event for event in timetable.history() if event.schedule == name and event.due == moment]
    if ended_events and ended_events[-1].outcome in ("passed", "held", "skipped"):
        wait_seconds = 60 - datetime.now(UTC).second
        raise SpecError(
            f"schedule {name}: fired this minute already ({ended_events[-1].outcome}); try again in {wait_seconds} s"
        )
    return scheduler.Scheduler(timetable=timetable, start=start, say=out.talk).fire(entry, moment).exit_code


def _outcome_of(code: int, message: str) -> str:
    if code == 0:
        return "skipped" if message.startswith(outcome.SKIPPED) else "passed"
    return {EXIT_HELD: "held", EXIT_INTERRUPTED: "interrupted"}.get(code, "failed")


def _timed(line: str) -> None:
    out.talk(f"{datetime.now():%H:%M:%S} {line}")
