"""Render a job for KubeRay: a ConfigMap with what it reads and a RayJob. Pure functions, no templates. Client.

Retries make new clusters, so everything that must survive lies under the run's folder; names follow from the run id,
so that the same run is the same object. KubeRay's traps that shape these documents are named where they bite.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Any

from graceful.errors import SpecError
from graceful.launch import names
from graceful.launch.job import JobSpec
from graceful.launch.kuberay import pod_templates

if TYPE_CHECKING:
    from graceful.launch.kuberay.profile import KubeRay

LARGEST = 1_000_000
"""Bytes that a ConfigMap holds, with some room for its own fields."""
HEAD = {"num-cpus": "0"}
"""How Ray starts on heads: they schedule nothing."""
_PLAIN = re.compile(r"[A-Za-z0-9_./:=,@%+-]+")
Json = dict[str, Any]


def render(job: JobSpec, profile: KubeRay) -> tuple[Json, ...]:
    """Return the documents in the order in which they are sent: ConfigMap (if the job reads a document), RayJob.

    Raises:
        SpecError: The command holds characters that the submitter's shell would read, or the document is too large.
    """
    return (*((config_map(job, profile),) if job.document is not None else ()), rayjob(job, profile))


def config_map(job: JobSpec, profile: KubeRay) -> Json:
    """Return the ConfigMap with the document that the driver reads, named by its content and immutable.

    Raises:
        SpecError: It is too large.
    """
    size = sum(len(text.encode()) for text in pod_templates.data(job).values())
    if size > LARGEST:
        raise SpecError(f"{job.name}: spec and files hold {size} bytes, a ConfigMap at most {LARGEST}; build an image")
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": pod_templates.config_name(job),
            "namespace": profile.namespace,
            "labels": pod_templates.labels(job),
        },
        "immutable": True,
        "data": pod_templates.data(job),
    }


def rayjob(job: JobSpec, profile: KubeRay) -> Json:
    """Return the RayJob that computes the run."""
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {
            "name": names.job_name(job.run_id),
            "namespace": profile.namespace,
            "labels": {**pod_templates.labels(job), **_queue(job, profile)},
            "annotations": _annotations(job, profile),
        },
        "spec": {
            "submissionMode": "K8sJobMode",  # the submitter's log outlives the cluster, and its pod can be hardened
            "entrypoint": entrypoint(job.command),
            "backoffLimit": profile.retries.job if job.retries is None else job.retries,
            "submitterConfig": {"backoffLimit": profile.retries.submitter},
            "preRunningDeadlineSeconds": profile.deadlines.start,  # without it, a job waits forever
            **_deadline(job, profile),
            "shutdownAfterJobFinishes": True,  # the default leaves machines running; Kueue demands it too
            "ttlSecondsAfterFinished": profile.deadlines.keep,
            "submitterPodTemplate": pod_templates.submitter_template(job, profile),
            "rayClusterSpec": {
                "rayVersion": profile.ray_version,
                "enableInTreeAutoscaling": False,  # fixed size: gang scheduling and quota stay simple
                "authOptions": {"mode": "token"},
                "headGroupSpec": {"rayStartParams": dict(HEAD), "template": pod_templates.head(job, profile)},
                "workerGroupSpecs": [pod_templates.group(job, profile)] if job.workers else [],
            },
        },
    }


def entrypoint(command: tuple[str, ...]) -> str:
    """Return the command as one line.

    KubeRay pastes it unquoted into a shell script that runs in the submitter, so that only plain words are safe.

    Raises:
        SpecError: A word holds anything that a shell would read.
    """
    unsafe = next((word for word in command if not _PLAIN.fullmatch(word)), None)
    if unsafe is not None:
        raise SpecError(f"command word {unsafe!r}: a shell would read it; use letters, digits and _./:=,@%+- only")
    return " ".join(command)


def _queue(job: JobSpec, profile: KubeRay) -> dict[str, str]:
    queue = job.queue or profile.queue
    priority = {names.QUEUE_PRIORITY: profile.queue_priority} if profile.queue_priority else {}
    return {names.QUEUE: queue, **priority} if queue else {}


def _annotations(job: JobSpec, profile: KubeRay) -> dict[str, str]:
    image = job.image or profile.image
    digest = hashlib.sha256((job.document or entrypoint(job.command)).encode()).hexdigest()
    facts = {
        "config-hash": digest,
        **job.labels,
        "run-id": job.run_id,
        **({"image-digest": image.partition("@")[2]} if "@" in image else {}),
    }
    return {f"{names.PREFIX}{key}": facts[key] for key in sorted(facts)}


def _deadline(job: JobSpec, profile: KubeRay) -> Json:
    seconds = profile.deadlines.run if job.deadline is None else int(job.deadline)
    return {"activeDeadlineSeconds": seconds} if seconds else {}
