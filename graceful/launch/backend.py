"""The protocol of backends and the values that they take and return. Runs on the client.

    JobSpec --plan--> Plan --submit--> Handle --status, logs, stop--> Status, lines
                      (a value: print it, test it, diff it)

A plan describes and judges, `submit` alone changes anything. All backends pass one contract suite.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Protocol, runtime_checkable

from graceful.errors import GracefulError, InfrastructureError, SpecError
from graceful.launch.job import JobSpec

Document = Mapping[str, Any]
"""One Kubernetes object, or whatever the backend is sent, as JSON values."""


class Phase(StrEnum):
    """Phase in the life of a job; every backend's own states map to these."""

    QUEUED = "QUEUED"
    """Accepted and waiting for quota or its turn."""
    PROVISIONING = "PROVISIONING"
    """Machines, images and the cluster are being made ready."""
    RUNNING = "RUNNING"
    RETRYING = "RETRYING"
    """An attempt failed and the next has not started."""
    SUCCEEDED = "SUCCEEDED"
    """The program ended by itself; the exit code says passed (0) or held (3)."""
    STOPPED = "STOPPED"
    """Stopped by a person; the same run id resumes."""
    FAILED = "FAILED"
    INVALID = "INVALID"
    """The backend refused the job as written; it never ran."""

    @property
    def terminal(self) -> bool:
        """Return whether the job is over: nothing happens any more unless a person acts."""
        return self in (Phase.SUCCEEDED, Phase.STOPPED, Phase.FAILED, Phase.INVALID)


@dataclass(frozen=True, kw_only=True, order=True)
class Handle:
    """The lasting name of one job: `kuberay://namespace/name`, `local://run-id`, `rayjobs://host:port/submission-id`.

    Attributes:
        scheme: Kind of the backend: kuberay, rayjobs, local, or another package's.
        location: Namespace or address; empty for local.
        name: Name of the job there.
    """

    scheme: str
    location: str = ""
    name: str

    def __str__(self) -> str:
        return f"{self.scheme}://{self.location}/{self.name}" if self.location else f"{self.scheme}://{self.name}"

    @classmethod
    def parse(cls, text: str) -> Handle:
        """Read what `str` wrote.

        Raises:
            SpecError: It has no scheme or no name.
        """
        scheme, separator, remainder = text.partition("://")
        location, _, name = remainder.rpartition("/")
        if not (separator and scheme and name):
            raise SpecError(f"handle {text!r}: must look like kuberay://namespace/name; `graceful list` shows them")
        return cls(scheme=scheme, location=location, name=name)


@dataclass(frozen=True, kw_only=True)
class Status:
    """State of a job and its cause, for people and for programs.

    Attributes:
        handle: Whose status it is.
        run_id: The run that the job computes.
        phase: Where it is in its life.
        attempt: 1 for the first; counts retries, and restarts of the driver that the backend itself hides.
        attempts: At most this many; None: not known.
        cause: One line for people: why it waits, failed or was restarted; empty if there is nothing to say.
        exit_code: As `graceful --help` lists them; None while it is not over.
        created: When it was submitted; None: not known.
    """

    handle: Handle
    run_id: str
    phase: Phase
    attempt: int = 1
    attempts: int | None = None
    cause: str = ""
    exit_code: int | None = None
    created: datetime | None = None


class Severity(StrEnum):
    """What a finding means for a submission."""

    ERROR = "error"
    """It would be refused, hang or lose work: not sent."""
    WARNING = "warning"
    """It runs, and someone will regret it."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A problem of a plan, and its remedy.

    Attributes:
        rule: Stable id, e.g. `ttl-without-shutdown`.
        severity: Whether it stops a submission.
        where: Object and field, e.g. `RayJob.spec.ttlSecondsAfterFinished`.
        message: What is wrong, with the value.
        remedy: What to write instead; empty where the message says it.
    """

    rule: str
    severity: Severity
    where: str
    message: str
    remedy: str

    def line(self) -> str:
        """Return the finding as one line for people."""
        prefix = "" if self.message.startswith(self.where) else f"{self.where}: "
        return f"{prefix}{self.message}{f'; {self.remedy}' if self.remedy else ''}"


@dataclass(frozen=True, kw_only=True)
class Part:
    """A group of equal machines (pods, processes) that a plan needs.

    Attributes:
        role: head, worker, submitter or driver.
        count: How many.
        cpu: Cores of each.
        memory: Bytes of each; 0: not limited.
        gpu: Accelerators of each.
        price: Per hour for all of them, in the currency of the price table; None: no table.
    """

    role: str
    count: int
    cpu: float
    memory: int = 0
    gpu: int = 0
    price: float | None = None


class Change(StrEnum):
    """What sending a document would do."""

    CREATE = "create"
    UPDATE = "update"
    NONE = "none"
    REFUSED = "refused"
    UNKNOWN = "unknown"
    """The backend was not asked, or did not answer."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A document compared with the object that exists.

    Attributes:
        document: E.g. `RayJob glyphs-v2`.
        change: What sending it would do.
        lines: Unified diff of an update; the backend's own words if it refused.
    """

    document: str
    change: Change
    lines: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What will run where, as a value; nothing has happened yet.

    Attributes:
        job: What runs.
        where: For people: `kuberay, namespace team-a, context kind`.
        handle: The job's name once it is submitted.
        documents: What the backend is sent, in order. May hold secrets: print `redact.documents(...)` of it only.
        findings: Of lint and validation, errors first.
        parts: Machines needed.
        differences: One per document, against what is there.
        currency: The currency of the prices.
        notes: One line each: queue, deadline, worst case of retries.
        image: Container image that runs; empty: none.
    """

    job: JobSpec
    where: str
    handle: Handle
    documents: tuple[Document, ...] = ()
    findings: tuple[Finding, ...] = ()
    parts: tuple[Part, ...] = ()
    differences: tuple[Difference, ...] = ()
    currency: str = ""
    notes: tuple[str, ...] = field(default=())
    image: str = ""

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Return findings that stop a submission."""
        return tuple(finding for finding in self.findings if finding.severity is Severity.ERROR)

    @property
    def gpus(self) -> int:
        """Return the number of accelerators of all parts."""
        return sum(part.count * part.gpu for part in self.parts)

    @property
    def price(self) -> float | None:
        """Return the price per hour of all parts; None if a part has no price."""
        prices = [part.price for part in self.parts]
        return None if not prices or None in prices else sum(price for price in prices if price is not None)


class Runs(Protocol):
    """Operations on submitted jobs; they need an address and no profile."""

    def status(self, handle: Handle) -> Status:
        """Ask what the job is doing.

        Raises:
            SpecError: There is no such job: the name is wrong, asking again would not help.
            InfrastructureError: The backend is unreachable.
        """
        ...

    def logs(self, handle: Handle, *, follow: bool = False, since: datetime | None = None) -> Iterator[str]:
        """Yield lines without newline, each once; with `follow` until the job is over, across lost connections.

        Raises:
            SpecError: No such job, or `since` where the backend keeps no times.
        """
        ...

    def stop(self, handle: Handle) -> Status:
        """Stop it so that it can resume; stopping what is over changes nothing."""
        ...

    def resume(self, handle: Handle) -> Status:
        """Send a stopped or failed job again under the same run id; one that is not over is left alone.

        Raises:
            SpecError: It has succeeded, or what it reads is gone.
        """
        ...

    def list(self) -> Sequence[Status]:
        """Return every job of graceful there, newest first."""
        ...


@runtime_checkable
class Watched(Protocol):
    """Backends that report changes, so that callers need not poll; optional."""

    def watch(self, handle: Handle, *, seconds: float | None, warn: Warn) -> Iterator[Status]:
        """Yield statuses as they change, the last of them terminal.

        Args:
            handle: Which job.
            seconds: Overall deadline; None: none.
            warn: Called with each failure that may pass.

        Raises:
            SpecError: There is no such job.
            InfrastructureError: The deadline has passed, or the place does not answer for minutes.
        """
        ...


@runtime_checkable
class Renews(Protocol):
    """Backends that resume a run with its present profile; optional."""

    def renewal(self, handle: Handle) -> tuple[str, ...]:
        """Return how the job that `resume` would send differs from the one that was sent; empty: not at all.

        Raises:
            SpecError: There is no such job.
        """
        ...


@runtime_checkable
class Resizes(Protocol):
    """What backends may offer besides: a run resumes on another number of training processes."""

    def with_workers(self, workers: int) -> Runs:
        """Return a backend whose runs resume with so many training processes."""
        ...


class Backend(Runs, Protocol):
    """A backend runs programs: this machine, a Ray cluster, Kubernetes."""

    def plan(self, job: JobSpec) -> Plan:
        """Describe and judge what `submit` would do; change nothing."""
        ...

    def submit(self, planned: Plan, /) -> Handle:
        """Send it. Idempotent by run id: a job that is there already is answered with its handle.

        Raises:
            SpecError: The plan has errors, or another job of that name computes something else.
            InfrastructureError: The backend is unreachable or refused; the message names the missing permission.
        """
        ...


Warn = Callable[[GracefulError], None]
"""Called with each failure that may pass, for people."""


INFRASTRUCTURE_RULES = {"forbidden", "absent", "unreachable"}
"""Rules of findings that are the backend's, not the job's: exit code 4."""


def refuse(planned: Plan) -> None:
    """Raise the first error of a plan that must not be sent, and say how many there are.

    Raises:
        InfrastructureError: The backend refused or did not answer; nothing in the job is wrong.
        SpecError: The job or the profile is wrong.
    """
    errors = planned.errors
    if not errors:
        return
    suffix = f" (and {len(errors) - 1} more; `graceful plan` lists them)" if len(errors) > 1 else ""
    if all(error.rule in INFRASTRUCTURE_RULES for error in errors):
        raise InfrastructureError(f"{errors[0].line()}{suffix}")
    raise SpecError(f"{errors[0].line()}{suffix}")
