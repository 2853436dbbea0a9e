"""`status`, `logs`, `stop`, `resume`, `list` and `gc`: what becomes of runs on a cluster. Runs on the client.

Ctrl-C detaches: what runs on a cluster goes on without us, and the last line says how to come back.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any

from graceful.cli import output as out
from graceful.errors import GracefulError, SpecError
from graceful.launch import gc as garbage
from graceful.launch import logs as submitter_logs
from graceful.launch import runs
from graceful.launch.backend import Status
from graceful.launch.kube import Kube
from graceful.launch.observe import Observer, follow
from graceful.launch.refusals import NotFoundError

EXIT_DETACHED = 130
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
COLUMNS = ("run", "phase", "attempt", "age", "cause")


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the runs are.

    Attributes:
        on: Profile (`cluster/NAME.yaml`); None: the kube context's own namespace.
        context: Of the kubeconfig; wins over the profile's.
        namespace: Wins over the profile's.
    """

    on: str | None = None
    context: str | None = None
    namespace: str | None = None

    @cached_property
    def kube(self) -> Kube:
        """The API server; nothing is sent yet.

        Raises:
            SpecError: No such profile or context, or the profile is no cluster.
        """
        if self.on is None:
            return Kube.connect(context=self.context, namespace=self.namespace)
        from graceful.launch import profile

        chosen = profile.load(self.on)
        if not isinstance(chosen, profile.KubeRay):
            raise SpecError(f"--on {self.on}: {chosen.kind} has no runs to follow; name a profile of kind kuberay")
        return Kube.connect(context=self.context or chosen.context, namespace=self.namespace or chosen.namespace)

    def name(self, run: str) -> str:
        """Of the job that computes a run."""
        return runs.name_of(run, namespace=self.kube.namespace)

    def options(self) -> str:
        """As people type them, for messages."""
        given = {"--on": self.on, "--context": self.context, "-n": self.namespace}
        return "".join(f" {flag} {value}" for flag, value in given.items() if value)


def status(run: str, place: Place, *, wait: bool, timeout: float | None, output: str) -> int:
    """Say what a run is doing; with `wait` until it is over, then its exit code is ours."""
    name = place.name(run)
    if not wait:
        found = runs.status(place.kube, name)
    else:
        try:
            found = _followed(place, name, timeout)
        except KeyboardInterrupt:
            return _detached(run, place)
        except NotFoundError:
            found = runs.status(place.kube, name)
    if output == "table":
        _show(found, place)
    else:
        out.document(document(found), output)
    return (found.exit_code or 0) if wait else 0


def logs(run: str, place: Place, *, follow: bool, since: str | None) -> int:
    """Print the log of a run, each line once."""
    start = None if since is None else datetime.now(UTC) - duration(since)
    name = place.name(run)
    try:
        for line in submitter_logs.lines(place.kube, name, follow=follow, since=start, trouble=_trouble):
            out.line(line)
    except KeyboardInterrupt:
        return _detached(run, place)
    except NotFoundError:
        found = runs.status(place.kube, name)  # or says that there is no such run
        out.talk(f"{found.run_id} is {found.phase}: its pods and their log are gone")
    return 0


def stop(run: str, place: Place, *, output: str) -> int:
    """Stop a run so that it can resume."""
    found = runs.stop(place.kube, place.name(run))
    return _told(found, output, f"`graceful resume {run}{place.options()}` goes on from the last checkpoint")


def resume(run: str, place: Place, *, output: str) -> int:
    """Send a stopped or failed run again."""
    found = runs.resume(place.kube, place.name(run))
    return _told(found, output, f"follow it with `graceful logs -f {run}{place.options()}`")


def listing(place: Place, *, output: str) -> int:
    """Every run of the namespace, newest first."""
    found = runs.listing(place.kube)
    if output != "table":
        out.document([document(one) for one in found], output)
    elif not found:
        out.talk(f"no runs in namespace {place.kube.namespace}; `graceful submit SPEC --on NAME` makes one")
    else:
        now = datetime.now(UTC)
        _columns([(one.run_id, one.phase.value, _attempt(one), _age(one, now), one.cause) for one in found])
    return 0


def gc(place: Place, *, older: str, dry_run: bool, output: str) -> int:
    """Remove what finished runs left behind, or only say what would go."""
    found = garbage.find(place.kube, now=datetime.now(UTC), after=duration(older))
    done = found if dry_run else garbage.remove(place.kube, found)
    if output != "table":
        out.document([asdict(removal) for removal in done], output)
        return 0
    for removal in done:
        out.line(f"{removal.kind} {removal.name}: {removal.why}")
    verb = "would be removed" if dry_run else "removed"
    out.talk(f"{len(done)} {'object' if len(done) == 1 else 'objects'} {verb} in namespace {place.kube.namespace}")
    return 0


def document(found: Status) -> dict[str, Any]:
    """A status as JSON values."""
    return {
        "handle": str(found.handle),
        "run_id": found.run_id,
        "phase": found.phase.value,
        "attempt": found.attempt,
        "attempts": found.attempts,
        "cause": found.cause,
        "exit_code": found.exit_code,
        "created": None if found.created is None else found.created.isoformat(),
    }


def duration(text: str) -> timedelta:
    """`90s`, `15m`, `24h`, `7d`.

    Raises:
        SpecError: It is none of these.
    """
    found = re.fullmatch(r"(\d+)([smhd])", text.strip())
    if found is None:
        raise SpecError(f"duration {text!r}: must be a number and a unit, such as 90s, 15m, 24h or 7d")
    return timedelta(seconds=int(found[1]) * UNITS[found[2]])


def _followed(place: Place, name: str, timeout: float | None) -> Status:
    *_, last = _talking(follow(Observer(kube=place.kube, name=name), seconds=timeout, trouble=_trouble))
    return last


def _talking(statuses: Iterator[Status]) -> Iterator[Status]:
    for one in statuses:
        attempt = f" attempt {_attempt(one)}" if one.attempt > 1 else ""
        out.talk(f"{time.strftime('%H:%M:%S')} {one.phase}{attempt}{f': {one.cause}' if one.cause else ''}")
        yield one


def _trouble(error: GracefulError) -> None:
    out.talk(f"{time.strftime('%H:%M:%S')} trying again: {error.message}")


def _detached(run: str, place: Place) -> int:
    where = place.options()
    out.talk(
        f"detached; {run} goes on. Come back: `graceful logs -f {run}{where}`. Stop it: `graceful stop {run}{where}`"
    )
    return EXIT_DETACHED


def _told(found: Status, output: str, then: str) -> int:
    if output == "table":
        out.line(f"{found.run_id} {found.phase}{f': {found.cause}' if found.cause else ''}")
        out.talk(then)
    else:
        out.document(document(found), output)
    return 0


def _show(found: Status, place: Place) -> None:
    rows: tuple[tuple[str, Callable[[], str]], ...] = (
        ("run", lambda: found.run_id),
        ("phase", lambda: found.phase.value),
        ("cause", lambda: found.cause),
        ("attempt", lambda: _attempt(found)),
        ("exit code", lambda: "" if found.exit_code is None else str(found.exit_code)),
        ("age", lambda: _age(found, datetime.now(UTC))),
        ("where", lambda: f"{found.handle} (context {place.kube.access.context})"),
    )
    for title, text in rows:
        if text():
            out.line(f"{title:<10}{text()}")


def _columns(rows: list[tuple[str, str, str, str, str]]) -> None:
    """Plain columns: a terminal's table for 500 rows costs more than asking the server for them."""
    widths = [max(len(row[column]) for row in [COLUMNS, *rows]) for column in range(len(COLUMNS) - 1)]
    for row in (COLUMNS, *rows):
        out.line("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]).rstrip())


def _attempt(found: Status) -> str:
    return (
        str(found.attempt)
        if not found.attempts or found.attempts < found.attempt
        else f"{found.attempt}/{found.attempts}"
    )


def _age(found: Status, now: datetime) -> str:
    if found.created is None:
        return ""
    seconds = max(0, int((now - found.created).total_seconds()))
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"
