"""Observe one run: collect pods and events besides its status, keep them, follow it to its end. Client.

KubeRay replaces pods in silence and deletes them when a job ends, so a follower keeps every pod it has seen. A single
look has the events instead, which the server keeps for an hour. What we may not read makes causes coarser, not the
status impossible.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from graceful.errors import EXIT_PASSED, EXIT_TRAINING
from graceful.launch import names
from graceful.launch.backend import Document, Phase, Status
from graceful.launch.causes import is_being_deleted, role
from graceful.launch.evidence import Evidence
from graceful.launch.kuberay.logs import log_container
from graceful.launch.kuberay.status import DELETING, NAMESPACE_ENDS, read, run_id
from graceful.launch.kubernetes import verdict_events, wait
from graceful.launch.kubernetes.kube import Kube
from graceful.launch.outcome import Outcome, last, waiting_reason
from graceful.launch.refusals import ApiError, ForbiddenError, NotFoundError, may_pass

SECOND_LOOKS = 2
"""Number of times that the log of a program without an outcome line is read again."""
SECOND_LOOK_SECONDS = 0.2
TAIL = 200
"""Lines at the end of a log among which an outcome, or what a program waits for, is sought."""
STARTING_WINDOW = 5.0
"""Seconds between looks at pods and events while machines come; the job itself is watched."""
RUNNING_WINDOW = 20.0


@dataclass(kw_only=True)
class Observer:
    """A run with the pods and events seen so far.

    Attributes:
        kube: The API server.
        name: The name of the RayJob.
        starting: Seconds of a watch while machines come.
        running: Seconds of a watch while the program runs.
    """

    kube: Kube
    name: str
    starting: float = STARTING_WINDOW
    running: float = RUNNING_WINDOW
    pods: dict[str, Document] = field(default_factory=dict)
    outcome: Outcome | None = None
    job: Document = field(default_factory=dict)
    events: dict[str, Document] = field(default_factory=dict)

    def current_status(self) -> Status:
        """Return the status of the run at this moment.

        Raises:
            NotFoundError: There is no such job.
        """
        return self.status_of(self.kube.get("RayJob", self.name))

    def status_of(self, job: Document) -> Status:
        """Return the status of the job as given, with the evidence of this moment and before."""
        self.job = job
        rough = read(job)
        if rough.phase is Phase.INVALID:
            return rough
        workload = None
        with contextlib.suppress(ApiError):
            self._pods(job)
        with contextlib.suppress(ApiError):
            self._events(job)
        with contextlib.suppress(ApiError):
            workload = self._workload(job)
        pods, events = tuple(self.pods.values()), tuple(self.events.values())
        log = self._log() if rough.phase.terminal or rough.phase is Phase.RUNNING else []
        self.outcome = last(log) or self.outcome
        outcome = (self.outcome or self._late_outcome()) if rough.phase.terminal else None
        seen = Evidence(pods=pods, events=events, workload=workload, outcome=outcome, waits=waiting_reason(log))
        running = rough.phase is Phase.RUNNING
        return read(job, replace(seen, namespace_ends=self._namespace_ends()) if running else seen)

    def submitters(self) -> list[Document]:
        """Return the pods that hold the job's log, oldest first, as far as they have been seen."""
        submitters = [pod for pod in self.pods.values() if role(pod) == "submitter"]
        return sorted(submitters, key=lambda pod: str(pod["metadata"].get("creationTimestamp", "")))

    def _pods(self, job: Document) -> None:
        label = names.label_value(run_id(job))
        pods = self.kube.list("Pod", selector=f"{names.RUN_ID}={label}").items
        live = {pod["metadata"]["uid"]: pod for pod in pods}
        for uid in self.pods.keys() - live.keys():  # deleted pods stay as evidence, but do not count as machines
            deleted_pod = self.pods[uid]
            stamp = deleted_pod["metadata"].get("deletionTimestamp", "unknown")
            self.pods[uid] = {**deleted_pod, "metadata": {**deleted_pod["metadata"], "deletionTimestamp": stamp}}
        self.pods.update(live)

    def _events(self, job: Document) -> None:
        cluster = (job.get("status") or {}).get("rayClusterName") or ""
        warnings = self.kube.list("Event", fields="type=Warning").items
        about_cluster = self.kube.list("Event", fields=f"involvedObject.name={cluster}").items if cluster else ()
        about_job = self.kube.list("Event", fields=f"involvedObject.name={self.name}").items
        own_names = {self.name, *(pod["metadata"]["name"] for pod in self.pods.values())}
        for event in (*warnings, *about_cluster, *about_job):
            involved = event["involvedObject"].get("name", "")
            if involved in own_names or (cluster and (involved == cluster or involved.startswith(f"{cluster}-"))):
                self.events[event["metadata"]["uid"]] = event

    def _workload(self, job: Document) -> Document | None:
        if names.QUEUE not in (job["metadata"].get("labels") or {}):
            return None
        uid = job["metadata"]["uid"]
        workloads = self.kube.list("Workload", selector=f"kueue.x-k8s.io/job-uid={uid}").items
        return {**workloads[0], "waiting": self._place(job, workloads[0])} if workloads else None

    def _namespace_ends(self) -> bool:
        """Return whether the namespace is being deleted; asked where pods go or are gone, which does not say why."""
        if self.pods and not any(is_being_deleted(pod) for pod in self.pods.values()):
            return False
        with contextlib.suppress(ApiError):
            namespace = self.kube.get("Namespace", self.kube.namespace)
            return (namespace.get("status") or {}).get("phase") == "Terminating"
        return False

    def _place(self, job: Document, workload: Document) -> str:
        """Return the place of a workload among those that wait in its queue; empty if Kueue does not say."""
        queue = job["metadata"]["labels"][names.QUEUE]
        with contextlib.suppress(ApiError):
            waiting = [item["metadata"]["name"] for item in self.kube.waiting_workloads(queue)]
            if workload["metadata"]["name"] in waiting:
                return f"{waiting.index(workload['metadata']['name']) + 1} of {len(waiting)} in queue {queue}"
        return ""

    def _late_outcome(self) -> Outcome | None:
        """Return the outcome from another read of a log whose end was missing: connections are cut without an error."""
        if not self.submitters():
            return None
        for _ in range(SECOND_LOOKS):
            self.kube.patience.sleep(SECOND_LOOK_SECONDS)
            outcome = last(self._log())
            if outcome is not None:
                return outcome
        return None

    def _log(self) -> list[str]:
        """Return the end of the job's log: of the newest submitter that has one, behind it those before."""
        lines: list[str] = []
        for pod in self.submitters():
            with contextlib.suppress(ApiError):
                lines += self.kube.pod_logs(pod["metadata"]["name"], container=log_container(pod), tail=TAIL)
        return lines


def follow(
    observer: Observer,
    *,
    seconds: float | None = None,
    warn: Callable[[ApiError], None] = lambda error: None,
) -> Iterator[Status]:
    """Yield every new status of a run, the last of them terminal; a job deleted meanwhile ends as stopped.

    Args:
        observer: The run.
        seconds: Overall deadline; None: none.
        warn: Called when the API server fails, once per row of failures.

    Raises:
        NotFoundError: There is no such job.
        InfrastructureError: As `wait.changes`.
    """
    latest = observer.current_status()
    yield latest
    changes = wait.changes(
        observer.kube,
        "RayJob",
        fields=f"metadata.name={observer.name}",
        window=lambda: observer.running if latest.phase is Phase.RUNNING else observer.starting,
        seconds=seconds,
        patience=observer.kube.patience,
        warn=warn,
    )
    with contextlib.closing(changes):
        while not latest.phase.terminal:
            try:
                status = _next(observer, next(changes), latest)
            except ForbiddenError as e:
                status = _without_rights(latest, e)
            if status != latest:
                latest = status
                if latest.phase.terminal:
                    verdict_events.tell(observer.kube, observer.job, latest)
                yield latest


def _next(observer: Observer, change: wait.Change, previous: Status) -> Status:
    if change.kind is wait.ChangeKind.GONE:
        return _gone(observer, change.object, previous)
    if change.kind is not wait.ChangeKind.QUIET:
        return observer.status_of(change.object)
    try:
        return observer.current_status()
    except NotFoundError:
        return _gone(observer, observer.job, previous)
    except ApiError as e:
        if not may_pass(e):
            raise
        return previous


def _gone(observer: Observer, job: Document, previous: Status) -> Status:
    """Return the status of a job that was deleted in the state given: one that had ended stays what it was."""
    ended = (job.get("status") or {}).get("jobStatus") == "SUCCEEDED"
    last_status = read(job, Evidence(outcome=observer.outcome))
    if last_status.phase.terminal:
        return last_status
    if not ended:
        return _deleted(previous)
    code = observer.outcome.exit_code if observer.outcome else EXIT_PASSED
    cause = "deleted after its program had ended"
    return replace(previous, phase=Phase.SUCCEEDED, cause=cause, exit_code=code)


def _without_rights(previous: Status, error: ForbiddenError) -> Status:
    """Return the status of a job that is being deleted with its namespace, where roles go first.

    Raises:
        ForbiddenError: It was not being deleted; what may have happened is named.
    """
    if previous.cause in (DELETING, NAMESPACE_ENDS):
        return replace(_deleted(previous), cause="deleted while it was followed, with its namespace")
    reason = "the namespace was deleted, or a role was taken away while the run was followed"
    raise ForbiddenError(f"{error.message}; it was allowed before: {reason}", error.facts) from error


def _deleted(previous: Status) -> Status:
    return replace(previous, phase=Phase.STOPPED, cause="deleted while it was followed", exit_code=EXIT_TRAINING)
