"""Phase, attempt, cause and exit code of a RayJob, from its status and its pods. Pure functions. Client.

deployment status          job status, reason        phase
Suspended, Suspending      a queue holds it           QUEUED
                           spec.suspend, no queue     STOPPED
"", Initializing           any                        PROVISIONING; "" with a queue QUEUED
Running                    "", PENDING                PROVISIONING (submitting)
                           FAILED, retries left       RETRYING
                           any other                  RUNNING
Retrying                   any                        RETRYING
Complete                   SUCCEEDED                  SUCCEEDED
                           STOPPED, FAILED            STOPPED, FAILED
Failed                     AppFailed, exit code 3     SUCCEEDED (held by the gate)
                           any other                  FAILED, exit code by reason
ValidationFailed, Waiting  any                        INVALID: KubeRay never ends it, we do
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from graceful.errors import EXIT_CODES, EXIT_HELD, EXIT_INFRASTRUCTURE, EXIT_TRAINING, EXIT_USAGE
from graceful.launch import causes, names
from graceful.launch.backend import Document, Handle, Phase, Status
from graceful.launch.evidence import Evidence
from graceful.launch.outcome import Outcome, from_message

DELETING = "being deleted; its program is stopped first"
NAMESPACE_ENDS = "being deleted with its namespace"
RESUMES = f"{names.PREFIX}resumes"
"""Annotation: how often the run was sent again after it was stopped or had failed."""
REASONS = {
    "PreRunningDeadlineExceeded": (
        EXIT_INFRASTRUCTURE,
        "the machines did not come in time (preRunningDeadlineSeconds)",
    ),
    "DeadlineExceeded": (EXIT_TRAINING, "deadline: out of time (activeDeadlineSeconds); raise it, then resume"),
    "SubmissionFailed": (EXIT_INFRASTRUCTURE, "the submitter could not submit the job; its log says why"),
    "JobDeploymentStatusTransitionGracePeriodExceeded": (
        EXIT_INFRASTRUCTURE,
        "Ray ended the job and KubeRay did not notice in time; resume",
    ),
    "JobStatusCheckTimeoutExceeded": (
        EXIT_INFRASTRUCTURE,
        "head unreachable for minutes; KubeRay does not retry this: resume",
    ),
}
"""Exit code and words of what KubeRay gives as a reason for Failed; AppFailed needs a closer look."""


def read(job: Document, evidence: Evidence | None = None) -> Status:
    """Return the status of one RayJob.

    Args:
        job: The object, with or without status.
        evidence: Pods, events, workload and outcome; without any the phase is the same and causes are coarser.
    """
    return _JobReader(job, evidence or Evidence()).status()


def handle(job: Document) -> Handle:
    """Return the handle under which people find the job again."""
    meta = job["metadata"]
    return Handle(scheme="kuberay", location=meta["namespace"], name=meta["name"])


def run_id(job: Document) -> str:
    """Return the run id: in full from the annotation, else from the label, else the job's name."""
    meta = job["metadata"]
    recorded = (meta.get("annotations") or {}).get(names.RUN_ID) or (meta.get("labels") or {}).get(names.RUN_ID)
    return str(recorded or meta["name"])


class _JobReader:
    """Derives the status from one state of a job."""

    def __init__(self, job: Document, evidence: Evidence) -> None:
        self.job, self.evidence = job, evidence.of_job(job)
        self.reported: dict[str, Any] = job.get("status") or {}
        self.spec: dict[str, Any] = job.get("spec") or {}
        self.cluster = str(self.reported.get("rayClusterName") or "")
        self.queue = (job["metadata"].get("labels") or {}).get(names.QUEUE, "")
        self.message = str(self.reported.get("message") or "")
        self.failed = int(self.reported.get("failed") or 0)
        self.retries = int(self.spec.get("backoffLimit") or 0)

    def status(self) -> Status:
        """Look the deployment status up and add what all phases share."""
        deployment = str(self.reported.get("jobDeploymentStatus") or "")
        phase, cause, code = TABLE.get(deployment, _JobReader.unknown)(self)
        if self.evidence.namespace_ends and not phase.terminal:
            cause = NAMESPACE_ENDS
        elif self.job["metadata"].get("deletionTimestamp") and not phase.terminal:
            cause = DELETING
        created = self.job["metadata"].get("creationTimestamp")
        return Status(
            handle=handle(self.job),
            run_id=run_id(self.job),
            phase=phase,
            attempt=self.attempt(phase),
            attempts=self.retries + 1,
            cause=cause,
            exit_code=code,
            created=datetime.fromisoformat(created) if created else None,
        )

    def attempt(self, phase: Phase) -> int:
        """Return the number of the attempt, from failures, clusters seen, evictions by the queue and replaced heads."""
        attempts = self.failed + (0 if phase is Phase.FAILED and self.failed else 1)
        clusters = {causes.cluster(pod) for pod in self.evidence.pods if causes.cluster(pod)} | {self.cluster or "-"}
        heads = sum(max(0, causes.count_pods(self.evidence, "head", name) - 1) for name in clusters)
        resumes = int((self.job["metadata"].get("annotations") or {}).get(RESUMES, "0"))
        return max(attempts, len(clusters - {"-"}), causes.evictions(self.evidence.workload) + 1) + heads + resumes

    def new(self) -> tuple[Phase, str, int | None]:
        """Return the status of a job that the operator has not seen yet, or that the queue suspended at once."""
        if self.queue:
            return Phase.QUEUED, causes.queued(self.evidence.workload, self.queue), None
        return Phase.PROVISIONING, "waiting for the KubeRay operator", None

    def suspended(self) -> tuple[Phase, str, int | None]:
        """Return the status of a job that a queue or a person suspended."""
        if self.queue:
            return Phase.QUEUED, causes.queued(self.evidence.workload, self.queue), None
        if self.spec.get("suspend"):
            return Phase.STOPPED, "suspended by a person; resume goes on from the last checkpoint", EXIT_TRAINING
        return Phase.QUEUED, "being resumed", None

    def initializing(self) -> tuple[Phase, str, int | None]:
        """Return the status of a job whose machines are coming, or what keeps them from coming."""
        return (
            Phase.PROVISIONING,
            causes.waiting(self.evidence, self.cluster, self.reported.get("startTime")) or self.previous(),
            None,
        )

    def running(self) -> tuple[Phase, str, int | None]:
        """Return the status of a job whose cluster is there; the job may be at any point."""
        job_status = self.reported.get("jobStatus") or ""
        if job_status in ("", "PENDING"):
            cause = self.restarted() or causes.submitter_waiting(self.evidence)
            return Phase.PROVISIONING, cause or "the cluster is ready, submitting the job", None
        if job_status == "FAILED":
            phase = Phase.RETRYING if self.failed < self.retries else Phase.RUNNING
            return phase, self.app_failed()[1], None
        if job_status in ("SUCCEEDED", "STOPPED"):
            return Phase.RUNNING, "the program has ended, KubeRay is cleaning up", None
        return Phase.RUNNING, self.evidence.waits or self.restarted() or self.previous(), None

    def retrying(self) -> tuple[Phase, str, int | None]:
        """Return the status between two attempts: reason and message are usually gone already."""
        return Phase.RETRYING, self.failure()[1] if self.reported.get("reason") else self.previous(), None

    def complete(self) -> tuple[Phase, str, int | None]:
        """Return the status of a job that ended by itself or was stopped."""
        job_status = self.reported.get("jobStatus")
        if job_status == "STOPPED":
            return Phase.STOPPED, "stopped; resume goes on from the last checkpoint", EXIT_TRAINING
        if job_status == "FAILED":
            return self.app_failed()
        outcome = self.evidence.outcome or Outcome(exit_code=0)
        verdict = "held by the gate" if outcome.exit_code == EXIT_HELD else ""
        return Phase.SUCCEEDED, outcome.message or verdict or self.restarted(over=True), outcome.exit_code

    def failure(self) -> tuple[Phase, str, int | None]:
        """Return the status of a failed job by KubeRay's reason, and what pods and events add."""
        reason = str(self.reported.get("reason") or "")
        if reason == "AppFailed" or reason not in REASONS:
            return self.app_failed()
        code, cause = REASONS[reason]
        if reason == "PreRunningDeadlineExceeded":
            cause = self.waits_for() or cause
        return Phase.FAILED, cause, code

    def app_failed(self) -> tuple[Phase, str, int | None]:
        """Return the status of a failed entrypoint: memory first, then removed machines, then its own exit code."""
        if "Ray job not found" in self.message:
            return Phase.FAILED, "head lost: the job vanished with its head; resume", EXIT_INFRASTRUCTURE
        memory = causes.out_of_memory(self.message, self.evidence.pods)
        if memory:
            return Phase.FAILED, memory, EXIT_TRAINING
        outcome = self.evidence.outcome or from_message(self.message)
        if outcome is not None and outcome.exit_code == EXIT_HELD:
            return Phase.SUCCEEDED, outcome.message or "held by the gate", EXIT_HELD
        removal = causes.removed(self.evidence.pods)
        if removal:
            return Phase.FAILED, removal, EXIT_INFRASTRUCTURE
        if outcome is None:
            message = " ".join(self.message.split())[: causes.LONGEST]
            return (
                Phase.FAILED,
                message or "the program failed and left no message; its log may say why",
                EXIT_TRAINING,
            )
        code = outcome.exit_code if outcome.exit_code in EXIT_CODES else EXIT_TRAINING
        message = outcome.message or f"the program ended with exit code {outcome.exit_code}"
        return Phase.FAILED, f"{message}; resume goes on from there" if outcome.retryable else message, code

    def invalid(self) -> tuple[Phase, str, int | None]:
        """Return the status of a job that the operator refused, which it never ends."""
        return Phase.INVALID, f"invalid: {' '.join(self.message.split()) or 'no reason given'}", EXIT_USAGE

    def waiting(self) -> tuple[Phase, str, int | None]:
        """Return the status in interactive mode, which we never ask for and which waits forever."""
        return (
            Phase.INVALID,
            "invalid: submissionMode InteractiveMode waits for a job that is never submitted",
            EXIT_USAGE,
        )

    def unknown(self) -> tuple[Phase, str, int | None]:
        """Return a non-terminal status that names a state of a newer KubeRay."""
        return (
            Phase.RUNNING,
            f"KubeRay says {self.reported.get('jobDeploymentStatus')}, which this version does not know",
            None,
        )

    def restarted(self, *, over: bool = False) -> str:
        """Return which pods were replaced without a change of the job's status, and why if a pod says so."""
        evidence = self.evidence.until(self.reported.get("endTime"))
        heads = causes.count_pods(evidence, "head", self.cluster)
        pods = [pod for pod in evidence.pods if causes.cluster(pod) == self.cluster and self.cluster]
        if (
            pods
            and not over
            and not any(causes.role(pod) == "head" and not causes.is_being_deleted(pod) for pod in pods)
        ):
            return "head lost; KubeRay makes a new one and the job starts again from its last checkpoint"
        reason = causes.out_of_memory("", pods) or causes.removed(pods)
        tail = f" ({reason})" if reason else ""
        if heads > 1:
            return f"head restarted, attempt {self.attempt(Phase.RUNNING)} from the last checkpoint{tail}"
        groups = (self.spec.get("rayClusterSpec") or {}).get("workerGroupSpecs") or ()
        planned_workers = sum(int(group.get("replicas") or 0) for group in groups) or 1
        workers = causes.count_pods(evidence, "worker", self.cluster) - planned_workers
        if workers > 0:
            times = f" {workers} times" if workers > 1 else ""
            return (
                f"worker restarted{times}, the run goes on from its last checkpoint{tail}"
                if not over
                else (f"worker restarted{times} on the way{tail}")
            )
        if causes.count_pods(evidence, "submitter", self.cluster) > self.attempt(Phase.RUNNING):
            return "submitter restarted, the job went on"
        return ""

    def waits_for(self) -> str:
        """Return why the machines of this attempt are not ready; empty if nothing says it."""
        return causes.waiting(self.evidence, self.cluster, self.reported.get("startTime"))

    def previous(self) -> str:
        """Return what is known of earlier attempts."""
        if causes.evictions(self.evidence.workload):
            return "preempted earlier, re-admitted; goes on from the last checkpoint"
        if self.failed:
            return f"{self.failed} failed {'attempt' if self.failed == 1 else 'attempts'} before this one"
        return ""


TABLE = {
    "": _JobReader.new,
    "Initializing": _JobReader.initializing,
    "Waiting": _JobReader.waiting,
    "Running": _JobReader.running,
    "Suspending": _JobReader.suspended,
    "Suspended": _JobReader.suspended,
    "Retrying": _JobReader.retrying,
    "Complete": _JobReader.complete,
    "Failed": _JobReader.failure,
    "ValidationFailed": _JobReader.invalid,
}
