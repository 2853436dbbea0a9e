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
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any

from graceful import homes, redact
from graceful.cli import output as out
from graceful.errors import EXIT_INFRASTRUCTURE, EXIT_INTERRUPTED, GracefulError, SpecError
from graceful.launch import follow, names
from graceful.launch.backend import Handle, Phase, Renews, Runs, Status
from graceful.launch.refusals import NotFoundError

if TYPE_CHECKING:
    from graceful.launch.base import Profile
    from graceful.launch.kuberay.kube import Kube

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
        """Return the backend to ask; nothing is sent yet.

        Raises:
            SpecError: No such profile or context, or --context and --namespace where there is no Kubernetes.
        """
        from graceful.launch.kuberay import backend as kuberay

        profile = self._beside_kubernetes
        if profile is None and self._profile is not None and self._profile.kubernetes is not None:
            there = {"namespace": self.namespace} if self.namespace else {}
            cluster = self._profile.kubernetes.model_copy(update=there)
            return kuberay.KubeRayBackend(profile=cluster, connect=lambda: self.kube, warn=warn)
        if profile is None:
            return kuberay.KubeRayRuns(connect=lambda: self.kube, warn=warn)
        self._require_no_kubernetes(profile.kind)
        return profile.build(home=homes.folder(None), warn=warn)

    @property
    def is_home(self) -> bool:
        """Return whether this machine's home is meant: nothing is named, or a profile whose jobs run here.

        Raises:
            SpecError: No such profile, or --context and --namespace where there is no Kubernetes.
        """
        if self.on is None:
            return not self.context and not self.namespace
        if self._profile is None or not self._profile.is_here:
            return False
        self._require_no_kubernetes(self._profile.kind)
        return True

    def _require_no_kubernetes(self, kind: str) -> None:
        if self.context or self.namespace:
            raise SpecError(f"--on {self.on}: kind {kind} is no Kubernetes; leave --context and --namespace out")

    @cached_property
    def kube(self) -> Kube:
        """Return the client of the API server; nothing is sent yet.

        Raises:
            SpecError: No such profile or context, or the profile is no Kubernetes.
        """
        from graceful.launch.kuberay.kube import Kube

        profile = self._profile
        if profile is None:
            return Kube.connect(context=self.context, namespace=self.namespace)
        cluster = profile.kubernetes
        if cluster is None:
            raise SpecError(f"--on {self.on}: kind {profile.kind} is no Kubernetes; name a profile of kind kuberay")
        return Kube.connect(context=self.context or cluster.context, namespace=self.namespace or cluster.namespace)

    @property
    def storage(self) -> str | None:
        """Return the profile's bucket for runs, s3://bucket/prefix; None: there is no profile or no bucket.

        Raises:
            SpecError: No such profile.
        """
        return None if self._profile is None else self._profile.bucket

    def handle(self, run: str) -> Handle:
        """Return the handle for what people type: a run id, a job's name, or a handle, which the backend checks."""
        if "://" in run:
            return Handle.parse(run)
        name = names.job_name(run)
        if self._beside_kubernetes is None:
            from graceful.launch.kuberay.backend import SCHEME

            return Handle(scheme=SCHEME, location=self.kube.namespace, name=name)
        return self._beside_kubernetes.handle(name)

    def title(self) -> str:
        """Return the location for people: `namespace team-a`, or the profile."""
        return f"namespace {self.kube.namespace}" if self._beside_kubernetes is None else f"--on {self.on}"

    def context_note(self) -> str:
        """Return the kube context for people; empty where there is no Kubernetes."""
        return f" (context {self.kube.access.context})" if self._beside_kubernetes is None else ""

    @property
    def _beside_kubernetes(self) -> Profile | None:
        """Return the profile if its jobs are no objects of Kubernetes; None: they are, with a profile or without."""
        profile = self._profile
        return None if profile is None or profile.kubernetes is not None else profile

    @cached_property
    def _profile(self) -> Profile | None:
        if self.on is None:
            return None
        from graceful.launch import profile

        return profile.load(self.on)

    def options(self) -> str:
        """Return the options as people type them, for messages."""
        options = {"--on": self.on, "--context": self.context, "-n": self.namespace}
        return "".join(f" {flag} {value}" for flag, value in options.items() if value)


def status(run: str, location: RunLocation, *, wait: bool, timeout: float | None, output: str) -> int:
    """Say what a run is doing; with `wait` until it is over, then its exit code is ours."""
    handle = location.handle(run)
    if not wait:
        last_status = location.runs.status(handle)
    else:
        try:
            *_, last_status = _announced(follow.statuses(location.runs, handle, seconds=timeout, warn=warn))
        except KeyboardInterrupt:
            return _detached(run, location)
        except NotFoundError:
            last_status = location.runs.status(handle)
    with out.surviving() if wait else nullcontext():
        if output == "table":
            _show(last_status, location)
        else:
            out.document(document(last_status), output)
    return (last_status.exit_code or 0) if wait else 0


def logs(run: str, location: RunLocation, *, follow: bool, since: str | None) -> int:
    """Print the log of a run, each line once."""
    start = None if since is None else datetime.now(UTC) - duration(since)
    handle = location.handle(run)
    try:
        for line in location.runs.logs(handle, follow=follow, since=start):
            out.line(line)
    except KeyboardInterrupt:
        return _detached(run, location)
    except NotFoundError:
        status = location.runs.status(handle)  # raises if there is no such run
        out.talk(f"{status.run_id} is {status.phase}: its pods and their log are gone")
    return 0


def stop(run: str, location: RunLocation, *, output: str) -> int:
    """Stop a run so that it can resume."""
    status = location.runs.stop(location.handle(run))
    ended = status.phase is Phase.SUCCEEDED
    advice = f"`graceful resume {run}{location.options()}` goes on from the last checkpoint"
    return _report(status, output, "it had ended before" if ended else advice)


def resume(run: str, location: RunLocation, *, yes: bool, output: str) -> int:
    """Send a stopped or failed run again; what the profile says differently today is shown and asked about.

    Raises:
        SpecError: Nobody can be asked.
    """
    handle = location.handle(run)
    lines = location.runs.renewal(handle) if isinstance(location.runs, Renews) else ()
    for line in lines:
        out.talk(redact.shown(line))
    if lines and not yes and not _agreed(run, location):
        out.talk("not sent")
        return 0
    status = location.runs.resume(handle)
    return _report(status, output, f"follow it with `graceful logs -f {run}{location.options()}`")


def _agreed(run: str, location: RunLocation) -> bool:
    if not sys.stdin.isatty():
        raise SpecError(
            f"resume: the profile {location.on} would send {run} differently than it was sent (the lines above), and"
            " nobody can be asked here (stdin is no terminal); add --yes"
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


def gc(location: RunLocation, *, older: str, dry_run: bool, output: str) -> int:
    """Remove what finished runs left behind on Kubernetes and in the profile's bucket, or only say what would go.

    Returns:
        0; 4 if the bucket could not be swept to the end.

    Raises:
        SpecError: The backend is no Kubernetes; others leave nothing but a small folder or record behind.
    """
    from graceful.cli import bucket
    from graceful.launch.kuberay import gc as garbage

    age = duration(older)
    removals = garbage.find(location.kube, now=datetime.now(UTC), min_age=age)
    removed = removals if dry_run else garbage.remove(location.kube, removals)
    uri = location.storage
    sweep = bucket.NOTHING if uri is None else bucket.sweep(uri, older=age, dry_run=dry_run)
    if output != "table":
        out.document([asdict(removal) for removal in (*removed, *sweep.removals)], output)
    else:
        for removal in (*removed, *sweep.removals):
            out.line(f"{removal.kind} {removal.name}: {removal.why}")
        verb = "would be removed" if dry_run else "removed"
        out.talk(f"{_count(len(removed), 'object')} {verb} in namespace {location.kube.namespace}")
        if uri is not None:
            out.talk(f"{_count(len(sweep.removals), 'folder')} of checkpoints {verb} in {uri}")
    if sweep.problem:
        out.talk(f"warning: checkpoints not swept to the end: {sweep.problem}")
        return EXIT_INFRASTRUCTURE
    return 0


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


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


def warn(error: GracefulError) -> None:
    """Say that something failed and is tried again."""
    out.talk(f"{time.strftime('%H:%M:%S')} trying again: {error.message}")


def _detached(run: str, location: RunLocation) -> int:
    options = location.options()
    out.talk(
        f"detached; {run} goes on. Come back: `graceful logs -f {run}{options}`."
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


def _show(status: Status, location: RunLocation) -> None:
    context = location.context_note()
    rows = (
        ("run", status.run_id),
        ("phase", status.phase.value),
        ("cause", status.cause),
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
