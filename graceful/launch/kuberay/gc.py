"""Find and remove the objects that finished runs leave on a cluster. Runs on the client.

KubeRay deletes a finished job's cluster and nothing else. A RayJob takes its submitter and its documents along when it
goes (it owns them); what a submission or a deletion that broke off left behind is found by its label. Stopped runs keep
all they need to resume, unless an age for them is given. What is left in a bucket is found by
`graceful.programs.housekeeping.sweep`, which can reach it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from graceful.launch import names
from graceful.launch.backend import Document, Phase
from graceful.launch.kuberay.runs import STATE
from graceful.launch.kuberay.status import read
from graceful.launch.kubernetes.kube import Kube
from graceful.launch.refusals import ConflictError, NotFoundError

AFTER = timedelta(days=1)


@dataclass(frozen=True, kw_only=True)
class Removal:
    """An object that is no longer needed.

    Attributes:
        kind: RayJob, Job or ConfigMap; Checkpoints for a folder in a bucket.
        name: The name of the object; address of the folder.
        uid: This very object: a successor of the same name is not touched. Empty for a folder.
        why: For people.
    """

    kind: str
    name: str
    uid: str
    why: str


def find(
    kube: Kube, *, now: datetime, min_age: timedelta = AFTER, stopped_age: timedelta | None = None
) -> tuple[Removal, ...]:
    """Return what could be removed: finished jobs, submitters and documents whose run is gone. Changes nothing.

    Args:
        kube: The API server.
        now: With a time zone.
        min_age: Only what ended, or was made, longer ago.
        stopped_age: Records of runs that were stopped longer ago go as well; None: stopped runs stay forever.
    """
    jobs = kube.list("RayJob", selector=names.SELECTOR).items
    submitters = kube.list("Job", selector="ray.io/originated-from-crd=RayJob").items
    documents = kube.list("ConfigMap", selector=f"{names.SELECTOR},{names.RUN_ID}").items
    cutoff = now - min_age
    finished = [
        _removal("RayJob", job, f"{read(job).phase} since {_ended(job):%Y-%m-%d %H:%M}")
        for job in jobs
        if _is_finished(job, cutoff)
    ]
    removed_uids = {removal.uid for removal in finished}
    remaining_jobs = [job for job in jobs if job["metadata"]["uid"] not in removed_uids]
    records = [] if stopped_age is None else _records(documents, now - stopped_age)
    removed_records = {removal.uid for removal in records}
    kept_documents = [item for item in documents if item["metadata"]["uid"] not in removed_records]
    return (
        *finished,
        *_submitters(submitters, jobs, cutoff),
        *records,
        *_documents(kept_documents, remaining_jobs, cutoff),
    )


def remove(kube: Kube, removals: Iterable[Removal]) -> tuple[Removal, ...]:
    """Delete them; what is gone already, or has a successor of the same name, is passed over.

    Returns:
        What was deleted.

    Raises:
        ApiError: A permission is missing; what came before is deleted.
    """
    deleted = []
    for removal in removals:
        with contextlib.suppress(NotFoundError, ConflictError):
            kube.delete(removal.kind, removal.name, uid=removal.uid)
            deleted.append(removal)
    return tuple(deleted)


def _is_finished(job: Document, cutoff: datetime) -> bool:
    """Return whether a job has finished for good: a suspended job is stopped, yet it can resume."""
    suspended = bool((job.get("spec") or {}).get("suspend"))
    phase = read(job).phase
    return phase.terminal and not (suspended and phase is Phase.STOPPED) and _ended(job) < cutoff


def _ended(job: Document) -> datetime:
    end = (job.get("status") or {}).get("endTime")
    return datetime.fromisoformat(end or job["metadata"]["creationTimestamp"])


def _submitters(submitters: Sequence[Document], jobs: Sequence[Document], cutoff: datetime) -> list[Removal]:
    """Return the removals of orphaned submitters: Kubernetes deletes those that a job still owns."""
    owners = {job["metadata"]["uid"] for job in jobs}
    removals = []
    for submitter in submitters:
        labels = submitter["spec"]["template"]["metadata"].get("labels") or {}
        managed = labels.get(names.MANAGED_BY[0]) == names.MANAGED_BY[1]
        owned = any(owner["uid"] in owners for owner in submitter["metadata"].get("ownerReferences") or ())
        if managed and not owned and not (submitter.get("status") or {}).get("active") and _made(submitter) < cutoff:
            removals.append(_removal("Job", submitter, "its RayJob is gone"))
    return removals


def _documents(documents: Sequence[Document], remaining_jobs: Sequence[Document], cutoff: datetime) -> list[Removal]:
    """Return the removals of ConfigMaps of runs that neither run nor are stopped; records of stopped runs stay."""
    runs_in_use = {_run(document) for document in documents if _is_record(document)} | {
        _run(job) for job in remaining_jobs
    }
    unused = [
        item for item in documents if not _is_record(item) and _run(item) not in runs_in_use and _made(item) < cutoff
    ]
    return [_removal("ConfigMap", document, "no job of its run is left") for document in unused]


def _records(documents: Sequence[Document], cutoff: datetime) -> list[Removal]:
    """Return the removals of records of stopped runs that were not resumed for long."""
    return [
        _removal("ConfigMap", document, f"stopped since {_made(document):%Y-%m-%d %H:%M}, can resume no more then")
        for document in documents
        if _is_record(document) and _made(document) < cutoff
    ]


def _is_record(document: Document) -> bool:
    return STATE in document["metadata"]["labels"]


def _run(document: Document) -> str:
    return str((document["metadata"].get("labels") or {}).get(names.RUN_ID, ""))


def _made(document: Document) -> datetime:
    return datetime.fromisoformat(document["metadata"]["creationTimestamp"])


def _removal(kind: str, document: Document, why: str) -> Removal:
    meta = document["metadata"]
    return Removal(kind=kind, name=meta["name"], uid=meta["uid"], why=why)
