"""The cause of a wait, a restart or a failure in one line, from pods, events and the queue. Pure functions. Client."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from graceful.launch import names
from graceful.launch.backend import Document
from graceful.launch.evidence import CLUSTER_LABEL, Evidence, newest_first

TYPE_LABEL = "ray.io/node-type"
IMAGE_REASONS = {"ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName", "RegistryUnavailable"}
CONTAINER_REASONS = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError", "CrashLoopBackOff"}
LONGEST = 300


def role(pod: Document) -> str:
    """Return head, worker or submitter."""
    labels = pod["metadata"].get("labels") or {}
    kind = labels.get(TYPE_LABEL) or {"rank": "worker"}.get(labels.get(names.ROLE, ""), labels.get(names.ROLE, ""))
    return kind if kind in ("head", "worker") else "submitter"


def cluster(pod: Document) -> str:
    """Name of the RayCluster a pod belongs to; empty for submitters."""
    return str((pod["metadata"].get("labels") or {}).get(CLUSTER_LABEL, ""))


def waiting(evidence: Evidence, ray_cluster: str, started: str | None = None) -> str:
    """Return why machines are not ready (image, scheduling, quota, admission, a missing secret), or an empty text.

    Pods say it first; where they are gone, events do, which the server keeps for an hour.

    Args:
        evidence: The evidence of the job.
        ray_cluster: The RayCluster of the attempt.
        started: When the attempt started, as the status of a job writes it.
    """
    evidence = evidence.of_attempt(ray_cluster, started)
    current = [pod for pod in evidence.pods if not is_being_deleted(pod)]
    events = evidence.about_waiting_pods()
    return (
        _first(map(_image, current))
        or _first(map(_container, current))
        or _refused(events)
        or _first(_unschedulable(pod, events) for pod in current)
        or _from_events(events)
    )


def submitter_waiting(evidence: Evidence) -> str:
    """Return why the pod that submits has not started, or an empty text; the machines of the job are there."""
    pods = [pod for pod in evidence.pods if role(pod) == "submitter" and not is_being_deleted(pod)]
    reason = (
        _first(map(_image, pods))
        or _first(map(_container, pods))
        or _first(_unschedulable(pod, evidence.events) for pod in pods)
    )
    return f"the pod that submits the job is waiting: {reason}" if reason else ""


def out_of_memory(message: str, pods: Sequence[Document]) -> str:
    """Return how Ray's monitor or the kernel killed something for its memory; empty if neither did.

    Ray's monitor acts at 95 percent of the limit, before the kernel: no pod says OOMKilled then.
    """
    if "running low on memory" in message or "OOM kill" in message:
        used = re.search(r"was (\S+ used / \S+ limit)", message)
        return f"out of memory: Ray's monitor killed the process{f' at {used[1]}' if used else ''}; raise memory"
    for pod in pods:
        for state in _container_states(pod):
            if (state.get("terminated") or {}).get("reason") == "OOMKilled":
                return f"out of memory: the kernel killed the {role(pod)} {pod['metadata']['name']}; raise its memory"
    return ""


def removed(pods: Sequence[Document]) -> str:
    """Return how the cluster took a pod away (preempted, evicted, drained); empty if it took none."""
    for pod in pods:
        status = pod.get("status") or {}
        if status.get("reason") == "Evicted":
            return f"{role(pod)} evicted: {_one_line(status.get('message', 'no reason given'))}"
        for condition in _true(status.get("conditions"), "DisruptionTarget"):
            verb = "preempted" if "Preempt" in condition.get("reason", "") else "removed"
            return f"{role(pod)} {verb} ({condition.get('reason', '')}): {_one_line(condition.get('message', ''))}"
    return ""


def queued(workload: Document | None, queue: str) -> str:
    """Return Kueue's reason for a waiting job: preempted, over quota, or merely waiting; and its place if known."""
    place = str((workload or {}).get("waiting") or "")
    reason = _why_queued(((workload or {}).get("status") or {}).get("conditions"))
    return "; ".join(filter(None, (reason, place))) or f"waiting in queue {queue}"


def _why_queued(conditions: Sequence[Mapping[str, Any]] | None) -> str:
    for kind in ("Preempted", "Evicted"):
        for condition in _true(conditions, kind):
            verb = "preempted" if "Preempt" in kind + condition.get("reason", "") else "evicted from the queue"
            return f"{verb}: {_one_line(condition.get('message', ''))}"
    for condition in conditions or ():
        if condition["type"] == "QuotaReserved" and condition["status"] == "False" and condition.get("message"):
            said = _one_line(condition["message"])
            return f"no room in the topology: {said}" if "topology" in said else f"over quota: {said}"
    return ""


def evictions(workload: Document | None) -> int:
    """Return how often the queue took the job's machines away."""
    status = (workload or {}).get("status") or {}
    entries = ((status.get("schedulingStats") or {}).get("evictions")) or ()
    total = sum(int(entry.get("count", 0)) for entry in entries)
    evicted = any(condition["type"] == "Evicted" for condition in status.get("conditions") or ())
    return total or int(evicted)


def count_pods(evidence: Evidence, pod_role: str, ray_cluster: str) -> int:
    """Return how many pods of a role were created in one cluster, plus restarts of their containers: 1 head is normal.

    KubeRay makes a new head or worker in silence: the job's status does not change.

    Args:
        evidence: Pods by uid, and the events in which KubeRay says it made one.
        pod_role: head, worker or submitter.
        ray_cluster: The cluster; submitters belong to none.
    """
    cluster_name = "" if pod_role == "submitter" else ray_cluster
    pods = {
        pod["metadata"]["uid"]: pod for pod in evidence.pods if role(pod) == pod_role and cluster(pod) == cluster_name
    }
    reported = sum(
        max(1, int(event.get("count") or 1))
        for event in evidence.events
        if _reports_creation(event, pod_role, ray_cluster)
    )
    restarts = sum(int(state.get("restartCount") or 0) for pod in pods.values() for state in _statuses(pod))
    return max(len(pods), reported) + restarts


def _reports_creation(event: Document, pod_role: str, ray_cluster: str) -> bool:
    """Return whether an event reports that a pod was created: submitters by their Job, the others by KubeRay."""
    subject = event.get("involvedObject", {})
    if pod_role == "submitter":
        return event.get("reason") == "SuccessfulCreate" and subject.get("kind") == "Job"
    return event.get("reason") == f"Created{pod_role.capitalize()}Pod" and subject.get("name") == ray_cluster


def is_being_deleted(pod: Document) -> bool:
    """Return whether the API server is deleting a pod."""
    return "deletionTimestamp" in pod["metadata"]


def _image(pod: Document) -> str:
    for state in _statuses(pod):
        waiting_state = (state.get("state") or {}).get("waiting") or {}
        if waiting_state.get("reason") in IMAGE_REASONS:
            image = state.get("image") or "the image"
            never = waiting_state["reason"] == "ErrImageNeverPull"
            remedy = "the node has no such image and pull_policy is Never" if never else "check name and credentials"
            return f"image pull: {role(pod)} cannot get {image} ({waiting_state['reason']}); {remedy}"
    return ""


def _container(pod: Document) -> str:
    for state in _statuses(pod):
        waiting_state = (state.get("state") or {}).get("waiting") or {}
        if waiting_state.get("reason") in CONTAINER_REASONS:
            message = _one_line(waiting_state.get("message", ""))
            return f"{role(pod)} cannot start ({waiting_state['reason']}){f': {message}' if message else ''}"
    return ""


def _unschedulable(pod: Document, events: Sequence[Document]) -> str:
    for condition in (pod.get("status") or {}).get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            message = condition.get("message") or _message(events, "FailedScheduling")
            return f"unschedulable: {role(pod)}: {_one_line(message)}"
    return ""


def _refused(events: Sequence[Document]) -> str:
    """Return why KubeRay could not create a pod, which only events of the cluster say; empty if they do not."""
    for event in newest_first(events):
        message = event.get("message", "")
        if not event.get("reason", "").startswith("FailedToCreate") or "already exists" in message:
            continue
        _, invalid, problem = message.partition(" is invalid: ")
        if invalid:
            return f"invalid pod: {_one_line(problem)}; correct the profile"
        _, quota, detail = message.partition("exceeded quota: ")
        if quota:
            return f"over quota: {_one_line(detail)}"
        if "PodSecurity" in message:
            return f"refused by PodSecurity: {_one_line(message.partition('PodSecurity')[2].lstrip(': '))}"
        if "forbidden" in message or "denied" in message:
            return f"refused by the cluster: {_one_line(message)}"
    return ""


def _from_events(events: Sequence[Document]) -> str:
    for event in newest_first(events):
        message, reason = event.get("message", ""), event.get("reason", "")
        if reason in IMAGE_REASONS or (reason == "Failed" and "image" in message.lower()):
            return f"image pull: {_one_line(message)}; check name and credentials"
        if reason == "FailedScheduling":
            return f"unschedulable: {_one_line(message)}"
        if reason == "FailedMount":
            return f"volume: {_one_line(message)}"
    return ""


def _message(events: Sequence[Document], reason: str) -> str:
    return _first(str(event.get("message", "")) for event in newest_first(events) if event.get("reason") == reason)


def _statuses(pod: Document) -> list[Mapping[str, Any]]:
    status = pod.get("status") or {}
    return [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]


def _container_states(pod: Document) -> list[Mapping[str, Any]]:
    return [state.get(key) or {} for state in _statuses(pod) for key in ("state", "lastState")]


def _true(conditions: Iterable[Mapping[str, Any]] | None, kind: str) -> list[Mapping[str, Any]]:
    return [condition for condition in conditions or () if condition["type"] == kind and condition["status"] == "True"]


def _first(texts: Iterable[str]) -> str:
    return next((text for text in texts if text), "")


def _one_line(text: str) -> str:
    line = " ".join(str(text).split())
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…"
