"""`status`, `logs`, `stop`, `resume`, `list` and `gc`: commands on submitted runs. Runs on the client.

They speak to a `backend.Runs` and do not know which. Ctrl-C detaches: what runs elsewhere goes on without us, and the
last line says how to come back.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from graceful import redact
from graceful.cli import output as out
from graceful.cli import progress
from graceful.cli.locations import RunLocation
from graceful.errors import EXIT_INTERRUPTED, SpecError
from graceful.launch import follow
from graceful.launch.backend import Handle, Phase, Renews, Resizes, Status
from graceful.launch.refusals import NotFoundError

if TYPE_CHECKING:
    pass

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
LONGEST = timedelta(days=36_500)
LONGEST_COUNT = 12
"""Digits that no duration has."""
COLUMNS = ("run", "phase", "attempt", "age", "cause")


def status(run: str, location: RunLocation, *, wait: bool, timeout: float | None, output: str) -> int:
    """Say what a run is doing; with `wait` until it is over, then its exit code is ours."""
    handle = location.handle(run)
    if not wait:
        last_status = location.runs.status(handle)
    else:
        try:
            *_, last_status = _announced(follow.statuses(location.runs, handle, seconds=timeout, warn=out.warn))
        except KeyboardInterrupt:
            return _detached(run, location)
        except NotFoundError:
            last_status = location.runs.status(handle)
    running = last_status.phase is Phase.RUNNING
    far = progress.of_run(location.runs, handle, here=location.is_home) if running else None
    with out.surviving() if wait else nullcontext():
        if output == "table":
            _show(last_status, location, far)
        else:
            out.document(document(last_status) | ({} if far is None else {"progress": far}), output)
    return (last_status.exit_code or 0) if wait else 0


def logs(run: str, location: RunLocation, *, follow: bool, since: str | None, attempt: int | None = None) -> int:
    """Print the log of a run, each line once; or the copy in the bucket of what one start of it printed.

    Raises:
        SpecError: No such attempt, or no bucket that has it.
    """
    if attempt is not None:
        return _attempt_log(run, location, attempt, plain=not follow and since is None)
    start = None if since is None else datetime.now(UTC) - duration(since)
    handle = location.handle(run)
    lines = 0
    try:
        for line in location.runs.logs(handle, follow=follow, since=start):
            out.line(line)
            lines += 1
    except KeyboardInterrupt:
        return _detached(run, location)
    except NotFoundError:
        status = location.runs.status(handle)  # raises if there is no such run
        out.talk(f"{status.run_id} is {status.phase}: its pods and their log are gone")
        lines = 0
    if not lines and not follow and since is None and location.storage is not None:
        out.talk(f"copies of the logs of its attempts: `graceful logs {run} --attempt 1{location.options()}`")
    return 0


def _attempt_log(run: str, location: RunLocation, attempt: int, *, plain: bool) -> int:
    from graceful.cli import bucket

    if not plain:
        raise SpecError("--attempt: prints a copy whole; leave --follow and --since out")
    if location.storage is None:
        raise SpecError(
            "--attempt: copies of logs lie in the bucket of a profile; name one with --on that has a bucket"
        )
    name = Handle.parse(run).name if "://" in run else run
    for line in bucket.attempt_log(location.storage, name, attempt).splitlines():
        out.line(line)
    return 0


def stop(run: str, location: RunLocation, *, output: str) -> int:
    """Stop a run so that it can resume."""
    status = location.runs.stop(location.handle(run))
    ended = status.phase is Phase.SUCCEEDED
    advice = f"`graceful resume {run}{location.options()}` goes on from the last checkpoint"
    return _report(status, output, "it had ended before" if ended else advice)


def resume(run: str, location: RunLocation, *, yes: bool, output: str, workers: int | None = None) -> int:
    """Send a stopped or failed run again; changes of the profile since then are shown and must be confirmed.

    Raises:
        SpecError: No person can be asked, or the place cannot change the number of workers.
    """
    handle = location.handle(run)
    runs = location.runs
    if workers is not None:
        if not isinstance(runs, Resizes):
            raise SpecError("--workers needs --on NAME with a profile of kind kuberay; elsewhere set GRACEFUL_WORKERS")
        runs = runs.with_workers(workers)
    lines = runs.renewal(handle) if isinstance(runs, Renews) else ()
    for line in lines:
        out.talk(redact.shown(line))
    if lines and not yes and not _agreed(run, location):
        out.talk("not sent")
        return 0
    status = runs.resume(handle)
    return _report(status, output, f"follow it with `graceful logs -f {run}{location.options()}`")


def _agreed(run: str, location: RunLocation) -> bool:
    if not sys.stdin.isatty():
        raise SpecError(
            f"resume: the profile {location.on} would send {run} differently than it was sent (the lines above), and"
            " stdin is not a terminal, so no person can confirm; add --yes"
        )
    import click

    return click.confirm(f"resume {run} as {location.on} says today?", err=True)


def listing(location: RunLocation, *, output: str) -> int:
    """Print every run of a backend, newest first."""
    statuses = location.runs.list()
    if output != "table":
        out.document([document(status) for status in statuses], output)
    elif not statuses:
        out.talk(f"no runs in {location.title()}; `graceful submit SPEC --on NAME` makes one")
    else:
        now = datetime.now(UTC)
        _columns(
            [
                (status.run_id, status.phase.value, _attempt(status), _age(status, now), status.cause)
                for status in statuses
            ]
        )
    return 0


def document(status: Status) -> dict[str, Any]:
    """Return a status as JSON values."""
    return {
        "handle": str(status.handle),
        "run_id": status.run_id,
        "phase": status.phase.value,
        "attempt": status.attempt,
        "attempts": status.attempts,
        "cause": status.cause,
        "exit_code": status.exit_code,
        "created": None if status.created is None else status.created.isoformat(),
    }


def duration(text: str) -> timedelta:
    """Return the time that `90s`, `15m`, `24h` or `7d` stands for.

    Raises:
        SpecError: It is none of these.
    """
    match = re.fullmatch(r"([0-9]+)([smhd])", text.strip())
    if match is None:
        raise SpecError(f"duration {text!r}: must be a number and a unit, such as 90s, 15m, 24h or 7d")
    seconds = int(match[1][:LONGEST_COUNT]) * UNITS[match[2]]
    if len(match[1]) >= LONGEST_COUNT or seconds > LONGEST.total_seconds():
        raise SpecError(f"duration {text!r}: must be at most {LONGEST.days}d")
    return timedelta(seconds=seconds)


def _announced(statuses: Iterator[Status]) -> Iterator[Status]:
    for status in statuses:
        attempt = f" attempt {_attempt(status)}" if status.attempt > 1 else ""
        out.talk(f"{time.strftime('%H:%M:%S')} {status.phase}{attempt}{f': {status.cause}' if status.cause else ''}")
        yield status


def _detached(run: str, location: RunLocation) -> int:
    options = location.options()
    out.talk(
        f"detached; {run} continues. To follow it again: `graceful logs -f {run}{options}`."
        f" Stop it: `graceful stop {run}{options}`"
    )
    return EXIT_INTERRUPTED


def _report(status: Status, output: str, advice: str) -> int:
    if output == "table":
        out.line(f"{status.run_id} {status.phase}{f': {status.cause}' if status.cause else ''}")
        out.talk(advice)
    else:
        out.document(document(status), output)
    return 0


def _show(status: Status, location: RunLocation, far: dict[str, Any] | None = None) -> None:
    context = location.context_note()
    rows = (
        ("run", status.run_id),
        ("phase", status.phase.value),
        ("cause", status.cause),
        ("progress", "" if far is None else progress.described(far)),
        ("attempt", _attempt(status)),
        ("exit code", "" if status.exit_code is None else str(status.exit_code)),
        ("age", _age(status, datetime.now(UTC))),
        ("where", f"{status.handle}{context}"),
    )
    for title, text in rows:
        if text:
            out.line(f"{title:<10}{text}")


def _columns(rows: list[tuple[str, str, str, str, str]]) -> None:
    """Print plain columns: a terminal's table for 500 rows costs more than asking the server for them."""
    widths = [max(len(row[column]) for row in [COLUMNS, *rows]) for column in range(len(COLUMNS) - 1)]
    for row in (COLUMNS, *rows):
        out.line("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]).rstrip())


def _attempt(status: Status) -> str:
    return (
        str(status.attempt)
        if not status.attempts or status.attempts < status.attempt
        else f"{status.attempt}/{status.attempts}"
    )


def _age(status: Status, now: datetime) -> str:
    if status.created is None:
        return ""
    seconds = max(0, int((now - status.created).total_seconds()))
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"
