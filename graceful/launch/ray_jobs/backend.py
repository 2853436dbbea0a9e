"""A Ray cluster that exists already as a backend: a job of its job server per run. Client, without ray.

The submission id is the job's name, so that a job exists once; an attempt that resumes it is `name.2`, `name.3`: Ray
still watches over an id for a while after its job has ended. What the program reads travels as Ray ships code: a zip,
named by its content, that becomes the working directory of driver and workers. The cluster forgets such a zip when its
job is over, so the job's metadata hold it once more, and resume needs nothing but the cluster.

status      driver              phase
PENDING                         PROVISIONING
RUNNING                         RUNNING
SUCCEEDED   outcome line        SUCCEEDED, exit code 0 or 3
STOPPED                         STOPPED
FAILED      exit code           as `ended` says
            none                FAILED, exit code 4: head lost, or no room for the driver
"""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from graceful.environment import RESUMES_VARIABLE
from graceful.errors import EXIT_INFRASTRUCTURE, EXIT_TRAINING, GracefulError, InfrastructureError, SpecError
from graceful.launch import causes, ended, names
from graceful.launch.backend import (
    Change,
    Difference,
    Document,
    Finding,
    Handle,
    Part,
    Phase,
    Plan,
    Severity,
    Status,
    Warn,
    refuse,
)
from graceful.launch.job import JobSpec
from graceful.launch.ray_jobs.request import PACKAGE, problems, render
from graceful.launch.refusals import ApiError, ForbiddenError, NotFoundError, tolerate
from graceful.patience import Patience

if TYPE_CHECKING:
    from graceful.launch.ray_jobs.dashboard import Dashboard, Job
    from graceful.launch.ray_jobs.profile import RayJobs

SCHEME = "rayjobs"
STOP_SECONDS = 120.0
POLL = 2.0
SLOWLY = 1_000_000
"""Characters of a log for each second between two looks at it: it comes whole every time."""
PHASES = {"PENDING": Phase.PROVISIONING, "RUNNING": Phase.RUNNING}


@dataclass(frozen=True, kw_only=True)
class RayJobsBackend:
    """Jobs of one cluster; a `backend.Backend`.

    Attributes:
        profile: Which cluster, and what jobs get.
        offline: Plan without asking it.
        warn: Called with each failure that may pass.
        patience: Clock and pauses.
    """

    profile: RayJobs
    offline: bool = False
    warn: Warn = lambda error: None
    patience: Patience = field(default_factory=Patience)

    @cached_property
    def dashboard(self) -> Dashboard:
        """Return the client of the job server; nothing is sent yet."""
        from graceful.launch.ray_jobs.dashboard import Dashboard

        return Dashboard(address=self.profile.address, patience=self.patience)

    def plan(self, job: JobSpec) -> Plan:
        """Describe and judge the job, and ask whether there is one of its name; change nothing."""
        body = render(job, self.profile)
        change, findings = (Change.UNKNOWN, ()) if self.offline else self._compare(body)
        resources, count = job.resources, job.workers
        cpu, memory = resources.cpu or 1.0, resources.memory or 0
        worker = Part(role="worker", count=count, cpu=cpu, memory=memory, gpu=resources.gpu or 0)
        return Plan(
            job=job,
            where=f"rayjobs, {self.profile.address}",
            handle=self._handle(body["submission_id"]),
            documents=(body,),
            findings=(*problems(body), *findings),
            parts=(Part(role="driver", count=1, cpu=1.0), *([worker] if count else [])),
            differences=(Difference(document=f"Ray job {body['submission_id']}", change=change),),
            notes=("waits for room on the cluster as long as it takes",),
        )

    def submit(self, planned: Plan, /) -> Handle:
        """Upload its files and send it; what is there already with the same content is kept.

        Raises:
            SpecError: The plan has errors, or the run id belongs to another spec.
            InfrastructureError: Unreachable, or the token is refused.
        """
        refuse(planned)
        (body,) = planned.documents
        if not self._has_job(body):
            self._send(body)
        return planned.handle

    def status(self, handle: Handle) -> Status:
        """Return what the job is doing, and how it ended."""
        return self._status(self._attempts(handle), closely=True)

    def logs(self, handle: Handle, *, follow: bool = False, since: datetime | None = None) -> Iterator[str]:
        """Return the lines that the job's driver wrote, in all attempts."""
        attempts = self._attempts(handle)
        if since is not None:
            raise SpecError("--since: Ray keeps no times with the lines of a log; leave it out")
        return self._lines([job["submission_id"] for job in attempts], follow=follow)

    def stop(self, handle: Handle) -> Status:
        """Ask Ray to end it and wait until it has.

        Raises:
            InfrastructureError: It goes on for `STOP_SECONDS`.
        """
        end = self.patience.now() + STOP_SECONDS
        attempts = self._attempts(handle)
        now = self._status(attempts, closely=True)
        if not now.phase.terminal:
            self.dashboard.stop(attempts[-1]["submission_id"])
        while not now.phase.terminal:
            if self.patience.now() >= end:
                raise InfrastructureError(f"{now.run_id}: still {now.phase} {STOP_SECONDS:g} s after it was stopped")
            self.patience.sleep(0.5)
            now = self.status(handle)
        return now

    def resume(self, handle: Handle) -> Status:
        """Send it again as it was, as the next attempt.

        Raises:
            SpecError: No such job, or it has succeeded.
        """
        attempts = self._attempts(handle)
        now = self._status(attempts, closely=True)
        if now.phase is Phase.SUCCEEDED:
            raise SpecError(f"{now.run_id}: {now.phase}; nothing to resume, give its spec a new name")
        if not now.phase.terminal:
            return now
        job = attempts[-1]
        body = {key: job[key] for key in ("entrypoint", "runtime_env", "metadata")}
        variables = {**body["runtime_env"].get("env_vars", {}), RESUMES_VARIABLE: str(len(attempts))}
        body["runtime_env"] = {**body["runtime_env"], "env_vars": variables}
        self._send({"submission_id": _attempt(handle.name, len(attempts) + 1), **body})
        return self.status(handle)

    def list(self) -> Sequence[Status]:
        """Return every job of graceful on the cluster, newest first; a held one looks as if it had passed."""
        jobs = [job for job in self.dashboard.jobs() if names.RUN_ID in (job.get("metadata") or {})]
        runs: dict[str, dict[int, Job]] = {}
        for job in jobs:
            name, _, attempt = job["submission_id"].partition(".")
            runs.setdefault(name, {})[int(attempt or 1)] = job
        statuses = [self._status([job for _, job in sorted(run.items())], closely=False) for run in runs.values()]
        return sorted(statuses, key=lambda status: (status.created or _LONG_AGO, status.run_id), reverse=True)

    def _handle(self, name: str) -> Handle:
        return Handle(scheme=SCHEME, location=urlsplit(self.profile.address).netloc, name=name)

    def _compare(self, body: Document) -> tuple[Change, tuple[Finding, ...]]:
        """Return what sending the job would do."""
        try:
            return (Change.NONE if self._has_job(body) else Change.CREATE), ()
        except GracefulError as e:
            kinds: tuple[tuple[type[GracefulError], str], ...] = (
                (ForbiddenError, "forbidden"),
                (SpecError, "run-id-taken"),
            )
            rule = next((name for kind, name in kinds if isinstance(e, kind)), "unreachable")
            change = Change.UNKNOWN if rule == "unreachable" else Change.REFUSED
            where = f"Ray job {body['submission_id']}"
            return change, (Finding(rule=rule, severity=Severity.ERROR, where=where, message=e.message, remedy=""),)

    def _has_job(self, body: Document) -> bool:
        """Return whether the cluster has this very job.

        Raises:
            SpecError: It has another one of that name.
        """
        try:
            live = self.dashboard.job(body["submission_id"])
        except NotFoundError:
            return False
        live_metadata, metadata = live.get("metadata") or {}, body["metadata"]
        if any(live_metadata.get(key) != metadata.get(key) for key in (names.RUN_ID, names.CONFIG_HASH)):
            digest = live_metadata.get(names.CONFIG_HASH, "")
            origin = f"with another spec (digest {digest[:12]})" if digest else "which graceful did not make"
            raise SpecError(
                f"Ray job {body['submission_id']} is there already {origin}; give this version another `name`, or"
                f" stop and delete that one (`ray job delete {body['submission_id']}`)"
            )
        return True

    def _send(self, body: Document) -> None:
        """Upload and submit; of two who submit at once one makes the job, and a lost answer is not a failure."""
        self.dashboard.put_package(body["runtime_env"]["working_dir"], base64.b64decode(body["metadata"][PACKAGE]))

        def submit() -> None:
            try:
                self.dashboard.submit(body)
            except ForbiddenError:
                raise
            except ApiError:
                if not self._has_job(body):
                    raise

        self.patience.repeat(submit, failure=ApiError, may_pass=lambda e: not isinstance(e, ForbiddenError))

    def _attempts(self, handle: Handle) -> Sequence[Job]:
        """Return all attempts at a job, the first one first; at least one."""
        if handle.scheme != SCHEME or handle.location != self._handle("-").location:
            raise SpecError(f"{handle}: not at {self.profile.address}; choose its profile with --on")
        attempts: list[Job] = []
        with contextlib.suppress(NotFoundError):
            while True:
                attempts.append(self.dashboard.job(_attempt(handle.name, len(attempts) + 1)))
        if not attempts:
            raise SpecError(f"no run {handle.name!r} at {self.profile.address}; `graceful list` shows them")
        if names.RUN_ID not in (attempts[0].get("metadata") or {}):
            raise SpecError(f"{handle.name!r} at {self.profile.address} is not a job of graceful; `ray job` follows it")
        return attempts

    def _status(self, attempts: Sequence[Job], *, closely: bool) -> Status:
        job = attempts[-1]
        phase, ending = PHASES.get(job["status"]), None
        if phase is None:
            ending = self._ending(job, closely=closely)
            phase = ending.phase
        message, start = str(job.get("message") or ""), attempts[0].get("start_time")
        pending = " ".join(message.split())[: causes.LONGEST] if phase is Phase.PROVISIONING else ""
        return Status(
            handle=self._handle(str(job["submission_id"]).partition(".")[0]),
            run_id=job["metadata"][names.RUN_ID],
            phase=phase,
            attempt=len(attempts),
            cause=ending.cause if ending else pending,
            exit_code=ending.exit_code if ending else None,
            created=datetime.fromtimestamp(start / 1000, UTC) if start else None,
        )

    def _ending(self, job: Job, *, closely: bool) -> ended.Ending:
        state, message = str(job["status"]), str(job.get("message") or "")
        if state == "STOPPED":
            return ended.STOPPED
        if state == "SUCCEEDED":
            return ended.read(0, self.dashboard.log(job["submission_id"]) if closely else "")
        memory, code = causes.out_of_memory(message, ()), job.get("driver_exit_code")
        if memory:
            return ended.Ending(phase=Phase.FAILED, cause=memory, exit_code=EXIT_TRAINING)
        if code is None:
            cause = " ".join(message.split())[: causes.LONGEST] or "the job vanished with its node; resume"
            return ended.Ending(phase=Phase.FAILED, cause=cause, exit_code=EXIT_INFRASTRUCTURE)
        return ended.read(int(code), message)

    def _lines(self, attempts: Sequence[str], *, follow: bool) -> Iterator[str]:
        for attempt in attempts[:-1]:
            yield from self.dashboard.log(attempt).splitlines()
        printed, failures = 0, 0
        while True:
            try:
                finished = not follow or self.dashboard.job(attempts[-1])["status"] not in PHASES
                text = self.dashboard.log(attempts[-1])
                failures = 0
            except ApiError as e:
                failures = tolerate(e, failures, patience=self.patience, warn=self.warn)
                continue
            end = len(text) if finished else text.rfind("\n") + 1
            yield from text[printed:end].removesuffix("\n").split("\n") if end > printed else ()
            printed = max(printed, end)
            if finished:
                return
            self.patience.sleep(max(POLL, len(text) / SLOWLY))


def _attempt(name: str, number: int) -> str:
    """Return the submission id of an attempt; the name of a job has no dot."""
    return name if number == 1 else f"{name}.{number}"


_LONG_AGO = datetime.min.replace(tzinfo=UTC)
