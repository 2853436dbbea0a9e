"""Kubernetes with the KubeRay operator as a backend: a RayJob per run, named by its run id. Runs on the client.

`plan` asks the server by dry runs and changes nothing. `submit` creates, never overwrites: of two submitters at once
one makes the job and both get its handle; a job of the same name that computes something else is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache, partial
from typing import TYPE_CHECKING

from graceful.errors import InfrastructureError
from graceful.launch import names, plan
from graceful.launch.backend import (
    Change,
    Difference,
    Document,
    Finding,
    Handle,
    Plan,
    Severity,
    Status,
    Warn,
    refuse,
)  # fmt: skip
from graceful.launch.job import JobSpec
from graceful.launch.kuberay import comparison, lint, manifests, pod_templates, preflight, validate
from graceful.launch.refusals import ApiError, ConflictError, ForbiddenError, InvalidObjectError, NotFoundError
from graceful.launch.versions import client_ray

if TYPE_CHECKING:
    from graceful.launch.kuberay.profile import KubeRay
    from graceful.launch.kubernetes.kube import Kube

SCHEME = "kuberay"
TRIES = 5
"""Number of tries of a create request that may or may not have arrived."""


@dataclass(frozen=True, kw_only=True)
class KubeRayRuns:
    """Runs in one namespace, found without a profile; a `backend.Runs`.

    Attributes:
        connect: Opens the API server when it is first needed; None: plan without asking it.
        warn: Called with each failure that may pass.
    """

    connect: Callable[[], Kube] | None = None
    warn: Warn = lambda error: None

    def status(self, handle: Handle) -> Status:
        """Return what the job is doing, and why."""
        from graceful.launch.kuberay import runs

        return runs.status(self.kube(), self.name(handle))

    def logs(self, handle: Handle, *, follow: bool = False, since: datetime | None = None) -> Iterator[str]:
        """Return the lines of the submitter's log, which outlives the cluster."""
        from graceful.launch.kuberay import logs

        return logs.lines(self.kube(), self.name(handle), follow=follow, since=since, warn=self.warn)

    def stop(self, handle: Handle) -> Status:
        """Write the job down and delete it; resume sends it again."""
        from graceful.launch.kuberay import runs

        return runs.stop(self.kube(), self.name(handle))

    def resume(self, handle: Handle) -> Status:
        """Send what was written down, or what failed, again."""
        from graceful.launch.kuberay import runs

        return runs.resume(self.kube(), self.name(handle))

    def list(self) -> Sequence[Status]:
        """Return every run of graceful in the namespace, newest first."""
        from graceful.launch.kuberay import runs

        return runs.listing(self.kube())

    def watch(self, handle: Handle, *, seconds: float | None, warn: Warn) -> Iterator[Status]:
        """Yield statuses as the API server tells of changes."""
        from graceful.launch.kuberay import observe

        observer = observe.Observer(kube=self.kube(), name=self.name(handle))
        yield from observe.follow(observer, seconds=seconds, warn=warn)

    def kube(self) -> Kube:
        """Return the client of the API server."""
        if self.connect is None:
            raise InfrastructureError("planned without a cluster; leave --offline out")
        return self.connect()

    def name(self, handle: Handle) -> str:
        """Return the name of the RayJob; checked to be in our namespace."""
        from graceful.launch.kuberay import runs

        return runs.name_of(str(handle), namespace=self.kube().namespace)


@dataclass(frozen=True, kw_only=True)
class KubeRayBackend(KubeRayRuns):
    """RayJobs in one namespace; a `backend.Backend`.

    Attributes:
        profile: Where and on what.
        workers: Training processes of runs that resume; None: as many as they had.
    """

    profile: KubeRay
    workers: int | None = None

    def plan(self, job: JobSpec) -> Plan:
        """Describe, judge and compare with what is there; change nothing.

        Raises:
            SpecError: The job cannot be rendered.
        """
        documents = manifests.render(job, self.profile)
        rayjob = documents[-1]
        differences, refusals = comparison.compare(self.connect, documents)
        answers = self._ask(rayjob, differences)
        prices = self.profile.prices
        findings = (
            *lint.lint(rayjob, client_ray=client_ray(), production=self.profile.production),
            *validate.validate(rayjob),
            *_unmet(job, self.profile),
            *(pod_templates.ranks(job, self.profile).faults() if job.workers else ()),
            *comparison.left(differences[-1]),
            *refusals,
            *answers.findings,
        )
        return Plan(
            job=job,
            where=self._where(),
            handle=Handle(scheme=SCHEME, location=self.profile.namespace, name=rayjob["metadata"]["name"]),
            documents=documents,
            image=plan.image(rayjob),
            findings=tuple(sorted(findings, key=lambda finding: finding.severity is not Severity.ERROR)),
            parts=plan.parts(rayjob, prices),
            differences=differences,
            currency=prices.currency if prices else "",
            notes=(
                *pod_templates.ranks(job, self.profile).drawn(),
                *_notes(rayjob, self.profile),
                *([f"not asked, because we may not: {', '.join(answers.unasked)}"] if answers.unasked else []),
            ),
        )

    def submit(self, planned: Plan) -> Handle:
        """Create the objects of the plan; those that exist with the same content are kept.

        Raises:
            SpecError: The plan has errors, or the run id belongs to another spec.
            InfrastructureError: Unreachable or forbidden.
        """
        refuse(planned)
        kube = self.kube()
        *config, rayjob = planned.documents
        new_documents = [document for document in config if _create(kube, document)]
        live = rayjob if (created := _create(kube, rayjob)) is None else created
        if live is rayjob:
            live = kube.get("RayJob", rayjob["metadata"]["name"], namespace=self.profile.namespace)
            if not comparison.same_run(live, rayjob):
                for document in new_documents:
                    kube.delete("ConfigMap", document["metadata"]["name"], namespace=self.profile.namespace)
                raise comparison.name_taken(rayjob, live)
        for document in config:
            _own(kube, document, live)
        return planned.handle

    def resume(self, handle: Handle) -> Status:
        """Send a stopped or failed run again, with image, machines and accounts as the profile says today."""
        from graceful.launch.kuberay import renewal, runs

        kube = self.kube()
        renew = partial(renewal.renewed, kube, profile=self.profile, workers=self.workers)
        return runs.resume(kube, self.name(handle), renew=renew)

    def renewal(self, handle: Handle) -> tuple[str, ...]:
        """Return how the job that `resume` would send differs from the one that was sent."""
        from graceful.launch.kuberay import renewal, runs

        kube = self.kube()
        sent = runs.sent(kube, self.name(handle))
        if sent is None:
            return ()
        return renewal.difference(kube, sent, renewal.renewed(kube, sent, self.profile, workers=self.workers))

    def with_workers(self, workers: int) -> KubeRayBackend:
        """Return a backend whose runs resume with so many training processes."""
        return replace(self, workers=workers)

    def _ask(self, rayjob: Document, differences: tuple[Difference, ...]) -> preflight.Answers:
        """Ask for what the job names, unless the server does not answer or refused the job itself."""
        asked = {Change.CREATE, Change.UPDATE}
        if self.connect is None or differences[-1].change not in asked:
            return preflight.Answers()
        return preflight.ask(self.connect(), self.profile, rayjob)

    def _where(self) -> str:
        context = f", context {self.profile.context}" if self.profile.context else ""
        queue = f", queue {self.profile.queue}" if self.profile.queue else ""
        return f"kuberay, namespace {self.profile.namespace}{context}{queue}"


def connector(profile: KubeRay) -> Callable[[], Kube]:
    """Return a function that opens the API server of a profile once, when it is first called."""

    @cache
    def connect() -> Kube:
        from graceful.launch.kubernetes.kube import Kube

        return Kube.connect(context=profile.context, namespace=profile.namespace)

    return connect


def _create(kube: Kube, document: Document) -> Document | None:
    """Create; None if something of that name is there. A create that may have arrived is sent again: names are ours."""

    def create() -> Document | None:
        try:
            return kube.create(document)
        except ConflictError:
            return None

    def may_pass(error: ApiError) -> bool:
        return not isinstance(error, ForbiddenError | InvalidObjectError | NotFoundError)

    return replace(kube.patience, tries=TRIES).repeat(create, failure=ApiError, may_pass=may_pass)


def _own(kube: Kube, document: Document, live: Document) -> None:
    """Make the job the owner of its document, so that deleting the RayJob deletes both."""
    owner = {
        "apiVersion": live["apiVersion"],
        "kind": live["kind"],
        "name": live["metadata"]["name"],
        "uid": live["metadata"]["uid"],
    }
    body = {"metadata": {"ownerReferences": [owner]}}
    kube.patch(document["kind"], document["metadata"]["name"], body, namespace=document["metadata"]["namespace"])


def _unmet(job: JobSpec, profile: KubeRay) -> tuple[Finding, ...]:
    """Return findings about what the job asks for and the profile cannot give."""
    gpus, required = pod_templates.worker(job, profile).gpu, job.resources.gpu or 0
    if required <= gpus or not job.workers:
        return ()
    return (
        Finding(
            rule="no-gpu",
            severity=Severity.ERROR,
            where="profile.worker.gpu",
            message=f"the job needs {required} per worker, the profile gives {gpus}",
            remedy="set worker.gpu, or train.use_gpu: false",
        ),
    )


def _notes(rayjob: Document, profile: KubeRay) -> tuple[str, ...]:
    spec = rayjob["spec"]
    retries, start, run = spec["backoffLimit"], profile.deadlines.start, spec.get("activeDeadlineSeconds")
    wait = f"waits at most {start} s for machines, {(retries + 1) * start} s with all {retries} retries"
    limit = f"an attempt runs at most {run} s" if run else "an attempt has no time limit besides train.timeout"
    queue = (rayjob["metadata"].get("labels") or {}).get(names.QUEUE)
    return (
        *((f"queue: {queue}",) if queue else ()),
        f"{wait}; {limit}",
        f"pods are deleted {spec['ttlSecondsAfterFinished']} s after the end; the job stays until `graceful gc`",
    )
