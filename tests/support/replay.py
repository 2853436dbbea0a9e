"""Write recorded life-cycles to a real API server that has no operator: statuses, pods, events, as KubeRay would."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from graceful.launch.kubernetes.kube import Kube
from graceful.launch.refusals import NotFoundError
from tests.support.kuberay_sequences import LifeCycle, rayjob

STATUS_KEYS = (
    "jobDeploymentStatus", "jobStatus", "reason", "message", "failed", "succeeded", "rayClusterName", "jobId"
)  # fmt: skip


def create(kube: Kube, name: str, *, case: str = "", **changes: Any) -> Mapping[str, Any]:
    """Return a RayJob that no operator runs."""
    return kube.create({**rayjob(name, case=case, namespace=kube.namespace), **changes})


def write_status(kube: Kube, name: str, status: Mapping[str, Any]) -> None:
    """Replace the status of a RayJob."""
    kube.patch("RayJob", name, {"status": {key: status.get(key) for key in STATUS_KEYS}}, part="status")


def write_pod(kube: Kube, run: str, pod: Mapping[str, Any]) -> None:
    """Make a pod look as it was recorded; it belongs to no node and no scheduler looks at it."""
    meta = pod["metadata"]
    labels = {**meta["labels"], "graceful.dev/run-id": run}
    body = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": meta["name"], "namespace": kube.namespace, "labels": labels},
        "spec": {"schedulerName": "nobody", "containers": [{"name": "c", "image": "localhost/nowhere:1"}]},
    }
    try:
        kube.get("Pod", meta["name"])
    except NotFoundError:
        kube.create(body)
    containers = [
        {"name": "c", "image": "localhost/nowhere:1", "imageID": "", "ready": False, "restartCount": 0, **state}
        for state in ({"state": _complete(one["state"])} for one in pod["status"]["containerStatuses"])
    ]
    conditions = [{**condition, "message": ""} for condition in pod["status"]["conditions"]]
    status = {"phase": pod["status"]["phase"], "containerStatuses": containers, "conditions": conditions}
    kube.patch("Pod", meta["name"], {"status": status}, part="status")


def write_event(kube: Kube, event: Mapping[str, Any]) -> None:
    """A warning about something of ours."""
    kube.create(
        {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"e-{uuid.uuid4().hex}", "namespace": kube.namespace},
            "involvedObject": {**event["involvedObject"], "namespace": kube.namespace},
            **{key: event[key] for key in ("type", "reason", "message")},
        }
    )


def replay(kube: Kube, cycle: LifeCycle, *, name: str) -> None:
    """The whole life-cycle, as fast as the server takes it, under another name of the same length or more."""
    for event in cycle.moments[-1].evidence.events:
        write_event(kube, {**event, "involvedObject": {**event["involvedObject"], "name": name}})
    written: dict[str, Any] = {}
    status: Any = None
    for moment in cycle.moments:
        for pod in moment.evidence.pods:
            if written.get(pod["metadata"]["uid"]) != pod:
                written[pod["metadata"]["uid"]] = pod
                write_pod(kube, name, pod)
        if moment.job.get("status") not in (None, {}, status):
            status = moment.job["status"]
            write_status(kube, name, status)


def _complete(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a terminated state with an exit code, which the API server requires."""
    if "terminated" in state:
        return {"terminated": {"exitCode": 1, **state["terminated"]}}
    return state
