"""`graceful schedule run` and `run-now` on this machine: firings are refreshes in processes of their own. Client."""

from __future__ import annotations

import json
import os
import signal
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from graceful import spec, startup
from graceful.cli import output as out
from graceful.cli import places, programs
from graceful.errors import SpecError
from graceful.launch import foreground, outcome, scheduler
from graceful.launch.job import JobSpec
from graceful.launch.timetable import Entry, Timetable


def run(*, home: Path | None, quiet: bool) -> int:
    """Be the scheduler of this machine until Ctrl-C; returns 130."""
    timetable = Timetable(places.home_folder(home) / "schedules")
    count = len(timetable.entries())
    what = "1 schedule" if count == 1 else f"{count} schedules"
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a service that is stopped ends like Ctrl-C
    work = scheduler.Scheduler(timetable=timetable, start=_Refresh(home=home, quiet=quiet), say=_timed)
    code = work.run(ready=lambda: _timed(f"at work on {what} in {timetable.folder}; Ctrl-C ends it"))
    _timed("ended; schedules stay, `graceful schedule run` goes on")
    return code


@dataclass(frozen=True, kw_only=True)
class _Refresh:
    """Refreshes the spec of a schedule in a process of its own, as `graceful refresh` does.

    Attributes:
        home: As `--home`.
        output: Form of the result on stdout.
        quiet: No progress.
    """

    home: Path | None
    output: str = "table"
    quiet: bool = False

    def __call__(self, entry: Entry, firing: str, lock: int) -> scheduler.Ended:
        resolved = spec.parse({**entry.document, "name": firing}, where=f"schedule {entry.name}")
        flags = ["--output", self.output, *(["--quiet"] if self.quiet else [])]
        with tempfile.TemporaryDirectory() as scratch:
            told = Path(scratch) / "outcome"
            job = JobSpec(
                name=f"refresh {resolved.run_id}",
                command=startup.python("graceful.programs", "refresh", *flags),
                env={**programs.environment(os.environ, home=self.home), outcome.FILE: str(told)},
                document=json.dumps(resolved.dump()),
            )
            code = foreground.run(job, deferred=True, interrupt_wins=True, inherited=(lock,))
            lines = told.read_text(encoding="utf-8").splitlines() if told.exists() else []
        said = outcome.last(lines)
        message = "" if said is None else said.message
        reason = message.removeprefix(outcome.SKIPPED)
        return scheduler.Ended(outcome=_named(code, message), exit_code=code, reason=reason)


def run_now(name: str, timetable: Timetable, *, home: Path | None, output: str) -> int:
    """Fire once, in the foreground; returns the exit code of the refresh.

    Raises:
        SpecError: No such schedule, or a firing of it is running.
    """
    entry = timetable.find(name)
    if timetable.is_firing(name):
        raise SpecError(f"schedule {name}: a firing is running, two never overlap; wait for it")
    start = _Refresh(home=home, output=output)
    moment = datetime.now(UTC).replace(second=0, microsecond=0)
    ended = [event for event in timetable.history() if event.schedule == name and event.due == moment]
    if ended and ended[-1].outcome in ("passed", "held", "skipped"):
        again = 60 - datetime.now(UTC).second
        raise SpecError(f"schedule {name}: fired this minute already ({ended[-1].outcome}); try again in {again} s")
    return scheduler.Scheduler(timetable=timetable, start=start, say=out.talk).fire(entry, moment).exit_code


def _named(code: int, message: str) -> str:
    if code == 0:
        return "skipped" if message.startswith(outcome.SKIPPED) else "passed"
    return {outcome.HELD: "held", foreground.EXIT_INTERRUPTED: "interrupted"}.get(code, "failed")


def _timed(line: str) -> None:
    out.talk(f"{datetime.now():%H:%M:%S} {line}")
