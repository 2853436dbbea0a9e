"""Find, list, stop and resume runs on a cluster. Client.

Deleting a RayJob stops its program first (KubeRay's finalizer does), suspending it does not: stop writes the job down
in a ConfigMap, which takes over the documents that the job owned, and deletes it; resume sends the job again under the
same run id, and the run goes on from its checkpoints.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from graceful.environment import RESUMES_VARIABLE
from graceful.errors import EXIT_TRAINING, InfrastructureError, SpecError
from graceful.launch import names
from graceful.launch.backend import Document, Handle, Phase, Status
from graceful.launch.kuberay.observe import Observer
from graceful.launch.kuberay.status import RESUMES, handle, read
from graceful.launch.kubernetes.kube import Kube
from graceful.launch.refusals import ConflictError, ForbiddenError, NotFoundError
from graceful.patience import Patience

STATE = f"{names.PREFIX}state"
STOPPED = "stopped"
JOB_FILE, STATUS_FILE = "rayjob.json", "status.json"
DELETION_SECONDS = 120.0
"""How long resume waits for the old job to go: a driver may take 90 s to write its checkpoint."""
REMEDY = "`graceful list` shows what there is"


def name_of(run: str, *, namespace: str) -> str:
    """Return the job's name for what people type: a run id, a job's name, or a handle.

    Raises:
        SpecError: A handle of another backend or another namespace.
    """
    if "://" not in run:
        return names.job_name(run)
    handle = Handle.parse(run)
    if handle.scheme != "kuberay" or handle.location != namespace:
        raise SpecError(f"{run}: not in namespace {namespace}; choose it with --namespace or --on")
    return handle.name


def status(kube: Kube, name: str) -> Status:
    """Return what a run is doing; the status of a stopped one comes from its record.

    Raises:
        SpecError: There is neither.
    """
    try:
        return Observer(kube=kube, name=name).current_status()
    except NotFoundError as e:
        return _recorded(_record(kube, name, e))


def listing(kube: Kube) -> Sequence[Status]:
    """Return every run of graceful in the namespace, newest first; causes as far as the jobs themselves show them."""
    statuses = [read(job) for job in kube.list("RayJob", selector=names.SELECTOR).items]
    known_handles = {status.handle for status in statuses}
    with contextlib.suppress(ForbiddenError):
        records = kube.list("ConfigMap", selector=f"{names.SELECTOR},{STATE}={STOPPED}").items
        statuses += [status for status in map(_recorded, records) if status.handle not in known_handles]
    return sorted(statuses, key=lambda status: (status.created or _LONG_AGO, status.run_id), reverse=True)


def stop(kube: Kube, name: str) -> Status:
    """Write the job down and delete it, which stops its program first; what has succeeded stays as it is.

    A failed run loses its pods, if it still has some, and can resume.

    Raises:
        SpecError: There is no such run.
        ApiError: A permission is missing; nothing has been deleted then.
    """
    try:
        job = kube.get("RayJob", name)
    except NotFoundError as e:
        return _recorded(_record(kube, name, e))
    current = Observer(kube=kube, name=name).status_of(job)
    if current.phase.terminal and current.phase is not Phase.FAILED:
        return current
    failed = f"failed ({current.cause}) and removed"
    cause = failed if current.phase is Phase.FAILED else f"stopped while {current.phase}"
    stopped = replace(current, phase=Phase.STOPPED, cause=f"{cause}; resume goes on", exit_code=EXIT_TRAINING)
    _delete(kube, job, stopped)
    return stopped


Renew = Callable[[Document], dict[str, Any]]
"""The job that was sent -> the job to send."""


def resume(kube: Kube, name: str, *, patience: Patience | None = None, renew: Renew = dict) -> Status:
    """Send a stopped or failed run again, under the same run id; one that is running is left alone.

    Args:
        kube: The API server.
        name: The name of the job.
        patience: With the deletion of the old job.
        renew: Makes the job to send of the one that was sent.

    Raises:
        SpecError: No such run, it has succeeded, it is invalid, or the document that it reads is gone.
        InfrastructureError: The old job does not go away.
    """
    try:
        job = kube.get("RayJob", name)
    except NotFoundError as e:
        record = _record(kube, name, e)
        return _send_again(kube, renew(json.loads(record["data"][JOB_FILE])))
    now = read(job)
    if now.phase in (Phase.SUCCEEDED, Phase.INVALID):
        raise SpecError(f"{now.run_id}: {now.phase}; nothing to resume, submit its spec again under a new name")
    if job["metadata"].get("deletionTimestamp"):
        _wait_until_deleted(kube, job, patience or kube.patience)
        return _send_again(kube, renew(as_sent(job)))
    if not now.phase.terminal:
        return now
    if (job.get("spec") or {}).get("suspend"):
        return read(kube.patch("RayJob", name, {"spec": {"suspend": False}}))
    again = renew(as_sent(job))  # before anything is deleted
    _delete(kube, job, now)
    _wait_until_deleted(kube, job, patience or kube.patience)
    return _send_again(kube, again)


def sent(kube: Kube, name: str) -> Document | None:
    """Return the job of a stopped or failed run as it was sent; None: the run is not over.

    Raises:
        SpecError: There is no such run.
    """
    try:
        job = kube.get("RayJob", name)
    except NotFoundError as e:
        document: Document = json.loads(_record(kube, name, e)["data"][JOB_FILE])
        return document
    return as_sent(job) if read(job).phase is Phase.FAILED else None


def as_sent(job: Document) -> dict[str, Any]:
    """Return the job as it was sent: without what the server and the operator added."""
    meta = job["metadata"]
    annotations = {key: value for key, value in (meta.get("annotations") or {}).items() if "kubectl" not in key}
    spec = {key: value for key, value in job["spec"].items() if key not in ("suspend", "jobId")}
    identity = {"name": meta["name"], "namespace": meta["namespace"], "labels": meta.get("labels") or {}}
    return {
        "apiVersion": job["apiVersion"],
        "kind": "RayJob",
        "metadata": {**identity, "annotations": annotations},
        "spec": spec,
    }


def _delete(kube: Kube, job: Document, stopped: Status) -> None:
    """Record first: should we die in between, nothing is lost."""
    record = kube.apply(_new_record(job, stopped), force=True)
    _hand_over(kube, job, record)
    with contextlib.suppress(NotFoundError):
        kube.delete("RayJob", job["metadata"]["name"], uid=job["metadata"]["uid"])


def _send_again(kube: Kube, document: dict[str, Any]) -> Status:
    annotations = document["metadata"].setdefault("annotations", {})
    annotations[RESUMES] = str(int(annotations.get(RESUMES, "0")) + 1)
    _set_resumes(document, annotations[RESUMES])
    try:
        job = kube.create(document)
    except ConflictError:  # another client has resumed it already
        job = kube.get("RayJob", document["metadata"]["name"])
    _hand_over(kube, document, job)
    with contextlib.suppress(NotFoundError):
        kube.delete("ConfigMap", record_name(document["metadata"]["name"]))
    return read(job)


def _set_resumes(document: dict[str, Any], resumes: str) -> None:
    """Let the driver know that a person asked again: what it gave up on before may be repaired."""
    for container in document["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"]:
        variables = [variable for variable in container.get("env") or () if variable["name"] != RESUMES_VARIABLE]
        container["env"] = [*variables, {"name": RESUMES_VARIABLE, "value": resumes}]


def _wait_until_deleted(kube: Kube, job: Document, patience: Patience) -> None:
    """Wait until this very job is deleted."""
    end = patience.now() + DELETION_SECONDS
    name, uid = job["metadata"]["name"], job["metadata"]["uid"]
    while patience.now() < end:
        try:
            if kube.get("RayJob", name)["metadata"]["uid"] != uid:
                return
        except NotFoundError:
            return
        patience.sleep(1.0)
    raise InfrastructureError(f"{name}: its old job is still being deleted after {DELETION_SECONDS:g} s; resume later")


def _hand_over(kube: Kube, job: Document, owner: Document) -> None:
    """Let the documents that a job reads live as long as another object."""
    reference = {"apiVersion": owner["apiVersion"], "kind": owner["kind"]}
    reference |= {"name": owner["metadata"]["name"], "uid": owner["metadata"]["uid"]}
    body = {"metadata": {"ownerReferences": [reference]}}
    template = job["spec"].get("rayClusterSpec", {}).get("headGroupSpec", {}).get("template", {})
    for volume in template.get("spec", {}).get("volumes") or ():
        name = (volume.get("configMap") or {}).get("name")
        if name:
            try:
                kube.patch("ConfigMap", name, body)
            except NotFoundError as e:  # without it the head would wait for its volume forever
                raise SpecError(f"ConfigMap {name}: gone, so the run cannot resume; submit its spec again") from e


def record_name(name: str) -> str:
    """Return the name of the ConfigMap that records a stopped job."""
    return f"{name}-{STOPPED}"


def _new_record(job: Document, stopped: Status) -> dict[str, Any]:
    meta = job["metadata"]
    key, value = names.MANAGED_BY
    labels = {key: value, STATE: STOPPED, names.RUN_ID: (meta.get("labels") or {}).get(names.RUN_ID, meta["name"])}
    facts = {
        "run_id": stopped.run_id,
        "attempt": stopped.attempt,
        "attempts": stopped.attempts,
        "cause": stopped.cause,
        "created": None if stopped.created is None else stopped.created.isoformat(),
    }
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": record_name(meta["name"]), "namespace": meta["namespace"], "labels": labels},
        "data": {JOB_FILE: json.dumps(as_sent(job)), STATUS_FILE: json.dumps(facts)},
    }


def _record(kube: Kube, name: str, missing: NotFoundError) -> Document:
    try:
        return kube.get("ConfigMap", record_name(name))
    except NotFoundError:
        where = f"namespace {kube.namespace}, context {kube.access.context}"
        raise SpecError(f"no run {name!r} in {where}; {REMEDY}") from missing


def _recorded(record: Document) -> Status:
    data: Mapping[str, str] = record["data"]
    facts, job = json.loads(data[STATUS_FILE]), json.loads(data[JOB_FILE])
    return Status(
        handle=handle(job),
        run_id=facts["run_id"],
        phase=Phase.STOPPED,
        attempt=facts["attempt"],
        attempts=facts["attempts"],
        cause=facts["cause"],
        exit_code=EXIT_TRAINING,
        created=datetime.fromisoformat(facts["created"]) if facts["created"] else None,
    )


_LONG_AGO = datetime.min.replace(tzinfo=UTC)
