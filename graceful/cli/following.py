"""`status`, `logs`, `stop`, `resume`, `list` and `gc`: what becomes of runs that were submitted. Runs on the client.

They speak to a `backend.Runs` and do not know which. Ctrl-C detaches: what runs elsewhere goes on without us, and the
last line says how to come back.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from graceful.cli import output as out
from graceful.cli import places
from graceful.errors import GracefulError, InfrastructureError, SpecError
from graceful.launch import backend, follow, names
from graceful.launch.backend import Handle, Phase, Runs, Status
from graceful.launch.refusals import NotFoundError

if TYPE_CHECKING:
    from graceful.launch.kube import Kube
    from graceful.launch.profile import Profile

EXIT_DETACHED = 130
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
LONGEST = timedelta(days=36_500)
LONGEST_COUNT = 12
"""Digits that no duration has."""
COLUMNS = ("run", "phase", "attempt", "age", "cause")


@dataclass(frozen=True, kw_only=True)
class RunLocation:
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
    def runs(self) -> Runs:
        """Whom to ask; nothing is sent yet.

        Raises:
            SpecError: No such profile or context, or --context and --namespace where there is no Kubernetes.
        """
        from graceful.launch import kuberay

        chosen = self._profile
        if chosen is None or chosen.kind == "kuberay":
            return kuberay.KubeRayRuns(connect=lambda: self.kube, warn=warn)
        self._require_no_kubernetes(chosen.kind)
        return backend.build(chosen, home=places.home_folder(None), warn=warn)

    @property
    def is_home(self) -> bool:
        """Whether it is this machine's home: no place is named, or a profile of kind local.

        Raises:
            SpecError: No such profile, or --context and --namespace where there is no Kubernetes.
        """
        if self.on is None:
            return not self.context and not self.namespace
        if self._profile is None or self._profile.kind != "local":
            return False
        self._require_no_kubernetes("local")
        return True

    def _require_no_kubernetes(self, kind: str) -> None:
        if self.context or self.namespace:
            raise SpecError(f"--on {self.on}: kind {kind} is no Kubernetes; leave --context and --namespace out")

    @cached_property
    def kube(self) -> Kube:
        """The API server; nothing is sent yet.

        Raises:
            SpecError: No such profile or context, or the profile is no Kubernetes.
        """
        from graceful.launch.kube import Kube

        chosen = self._profile
        if chosen is None:
            return Kube.connect(context=self.context, namespace=self.namespace)
        if chosen.kind != "kuberay":
            raise SpecError(f"--on {self.on}: kind {chosen.kind} is no Kubernetes; name a profile of kind kuberay")
        return Kube.connect(context=self.context or chosen.context, namespace=self.namespace or chosen.namespace)

    @property
    def storage(self) -> str | None:
        """The bucket in which the profile keeps runs, s3://bucket/prefix; None: it names none, or there is no profile.

        Raises:
            SpecError: No such profile.
        """
        chosen = self._profile
        return chosen.storage.uri if chosen is not None and chosen.kind == "kuberay" else None

    def handle(self, run: str) -> Handle:
        """For what people type: a run id, a job's name, or a handle; whose place it is the backend checks."""
        if "://" in run:
            return Handle.parse(run)
        name, chosen = names.job_name(run), self._profile
        if chosen is None or chosen.kind == "kuberay":
            return Handle(scheme="kuberay", location=self.kube.namespace, name=name)
        place = urlsplit(chosen.address).netloc if chosen.kind == "rayjobs" else ""
        return Handle(scheme=chosen.kind, location=place, name=name)

    def title(self) -> str:
        """For people: `namespace team-a`, or the profile."""
        if self._profile is None or self._profile.kind == "kuberay":
            return f"namespace {self.kube.namespace}"
        return f"--on {self.on}"

    @cached_property
    def _profile(self) -> Profile | None:
        if self.on is None:
            return None
        from graceful.launch import profile

        return profile.load(self.on)

    def options(self) -> str:
        """As people type them, for messages."""
        given = {"--on": self.on, "--context": self.context, "-n": self.namespace}
        return "".join(f" {flag} {value}" for flag, value in given.items() if value)


def status(run: str, place: RunLocation, *, wait: bool, timeout: float | None, output: str) -> int:
    """Say what a run is doing; with `wait` until it is over, then its exit code is ours."""
    handle = place.handle(run)
    if not wait:
        found = place.runs.status(handle)
    else:
        try:
            *_, found = _talking(follow.statuses(place.runs, handle, seconds=timeout, warn=warn))
        except KeyboardInterrupt:
            return _detached(run, place)
        except NotFoundError:
            found = place.runs.status(handle)
    with out.surviving() if wait else nullcontext():
        if output == "table":
            _show(found, place)
        else:
            out.document(document(found), output)
    return (found.exit_code or 0) if wait else 0


def logs(run: str, place: RunLocation, *, follow: bool, since: str | None) -> int:
    """Print the log of a run, each line once."""
    start = None if since is None else datetime.now(UTC) - duration(since)
    handle = place.handle(run)
    try:
        for line in place.runs.logs(handle, follow=follow, since=start):
            out.line(line)
    except KeyboardInterrupt:
        return _detached(run, place)
    except NotFoundError:
        found = place.runs.status(handle)  # or says that there is no such run
        out.talk(f"{found.run_id} is {found.phase}: its pods and their log are gone")
    return 0


def stop(run: str, place: RunLocation, *, output: str) -> int:
    """Stop a run so that it can resume."""
    found = place.runs.stop(place.handle(run))
    over = found.phase is Phase.SUCCEEDED
    then = f"`graceful resume {run}{place.options()}` goes on from the last checkpoint"
    return _told(found, output, "it had ended before" if over else then)


def resume(run: str, place: RunLocation, *, output: str) -> int:
    """Send a stopped or failed run again."""
    found = place.runs.resume(place.handle(run))
    return _told(found, output, f"follow it with `graceful logs -f {run}{place.options()}`")


def listing(place: RunLocation, *, output: str) -> int:
    """Every run of the place, newest first."""
    found = place.runs.list()
    if output != "table":
        out.document([document(one) for one in found], output)
    elif not found:
        out.talk(f"no runs in {place.title()}; `graceful submit SPEC --on NAME` makes one")
    else:
        now = datetime.now(UTC)
        _columns([(one.run_id, one.phase.value, _attempt(one), _age(one, now), one.cause) for one in found])
    return 0


def gc(place: RunLocation, *, older: str, dry_run: bool, output: str) -> int:
    """Remove what finished runs left behind on Kubernetes and in the profile's bucket, or only say what would go.

    Returns:
        0; 4 if the bucket could not be swept to the end.

    Raises:
        SpecError: The place is no Kubernetes; elsewhere nothing but a small folder or record is left behind.
    """
    from graceful.cli import bucket
    from graceful.launch import gc as garbage

    age = duration(older)
    found = garbage.find(place.kube, now=datetime.now(UTC), after=age)
    done = found if dry_run else garbage.remove(place.kube, found)
    uri = place.storage
    swept = bucket.NOTHING if uri is None else bucket.sweep(uri, older=age, dry_run=dry_run)
    if output != "table":
        out.document([asdict(removal) for removal in (*done, *swept.removals)], output)
    else:
        for removal in (*done, *swept.removals):
            out.line(f"{removal.kind} {removal.name}: {removal.why}")
        verb = "would be removed" if dry_run else "removed"
        out.talk(f"{_count(len(done), 'object')} {verb} in namespace {place.kube.namespace}")
        if uri is not None:
            out.talk(f"{_count(len(swept.removals), 'folder')} of checkpoints {verb} in {uri}")
    if swept.problem:
        out.talk(f"warning: checkpoints not swept to the end: {swept.problem}")
        return InfrastructureError.exit_code
    return 0


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


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
    found = re.fullmatch(r"([0-9]+)([smhd])", text.strip())
    if found is None:
        raise SpecError(f"duration {text!r}: must be a number and a unit, such as 90s, 15m, 24h or 7d")
    seconds = int(found[1][:LONGEST_COUNT]) * UNITS[found[2]]
    if len(found[1]) >= LONGEST_COUNT or seconds > LONGEST.total_seconds():
        raise SpecError(f"duration {text!r}: must be at most {LONGEST.days}d")
    return timedelta(seconds=seconds)


def _talking(statuses: Iterator[Status]) -> Iterator[Status]:
    for one in statuses:
        attempt = f" attempt {_attempt(one)}" if one.attempt > 1 else ""
        out.talk(f"{time.strftime('%H:%M:%S')} {one.phase}{attempt}{f': {one.cause}' if one.cause else ''}")
        yield one


def warn(error: GracefulError) -> None:
    """Say that something failed and is tried again."""
    out.talk(f"{time.strftime('%H:%M:%S')} trying again: {error.message}")


def _detached(run: str, place: RunLocation) -> int:
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


def _show(found: Status, place: RunLocation) -> None:
    where = f" (context {place.kube.access.context})" if found.handle.scheme == "kuberay" else ""
    rows = (
        ("run", found.run_id),
        ("phase", found.phase.value),
        ("cause", found.cause),
        ("attempt", _attempt(found)),
        ("exit code", "" if found.exit_code is None else str(found.exit_code)),
        ("age", _age(found, datetime.now(UTC))),
        ("where", f"{found.handle}{where}"),
    )
    for title, text in rows:
        if text:
            out.line(f"{title:<10}{text}")


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
