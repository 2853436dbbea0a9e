"""Life-cycles of RayJobs recorded on a real KubeRay operator, as the Kubernetes objects they were seen as.

tests/data/kuberay_sequences.json holds changes of status, pods and warnings over time. `life_cycles` turns each change
into a moment: the RayJob as it was then, and everything a follower had seen until then.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from graceful.launch.evidence import Evidence

DATA = Path(__file__).parent.parent / "data" / "kuberay_sequences.json"
QUEUED_CASE = "preempted by Kueue while running, re-admitted"
Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Moment:
    """One change: seconds since creation, the job, the evidence so far."""

    seconds: float
    job: Json
    evidence: Evidence


@dataclass(frozen=True, kw_only=True)
class LifeCycle:
    """One recorded job from creation to its end."""

    case: str
    name: str
    statuses: tuple[Json, ...]
    moments: tuple[Moment, ...]


@cache
def life_cycles() -> tuple[LifeCycle, ...]:
    """Return all recorded life-cycles."""
    return tuple(map(_life_cycle, json.loads(DATA.read_text(encoding="utf-8"))["cases"]))


def rayjob(name: str, *, case: str = "", namespace: str = "rec", **metadata: Any) -> Json:
    """Return a RayJob such as we would send, without status."""
    run = {"graceful.dev/run-id": name}
    labels = {**run, "app.kubernetes.io/managed-by": "graceful"}
    if case == QUEUED_CASE:
        labels["kueue.x-k8s.io/queue-name"] = "q"
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": name, "namespace": namespace, "labels": labels, "annotations": run, **metadata},
        "spec": {
            "entrypoint": "python -m graceful.programs refresh",
            "backoffLimit": 1 if "one retry" in case else 0,
            "shutdownAfterJobFinishes": True,
            "rayClusterSpec": {
                "headGroupSpec": {"rayStartParams": {}, "template": _template("ray-head")},
                "workerGroupSpecs": [
                    {
                        "groupName": "w",
                        "replicas": 1,
                        "minReplicas": 1,
                        "maxReplicas": 1,
                        "rayStartParams": {},
                        "template": _template("ray-worker"),
                    }
                ],
            },
        },
    }


def _template(name: str) -> Json:
    return {"spec": {"containers": [{"name": name, "image": "localhost/graceful:dev"}]}}


def _life_cycle(recorded: Json) -> LifeCycle:
    name = _name(recorded)
    statuses = tuple({key: value for key, value in change.items() if key != "t"} for change in recorded["status"])
    return LifeCycle(case=recorded["case"], name=name, statuses=statuses, moments=tuple(_moments(recorded, name)))


def _name(recorded: Json) -> str:
    clusters = [change["rayClusterName"] for change in recorded["status"] if "rayClusterName" in change]
    return str(clusters[0].rpartition("-")[0]) if clusters else "inv"


def _moments(recorded: Json, name: str) -> Iterator[Moment]:
    made = {"uid": name, "resourceVersion": "1", "creationTimestamp": "2026-11-22T13:00:00Z"}
    job = rayjob(name, case=recorded["case"], **made)
    pods: dict[str, Json] = {}
    workload: Json | None = None
    events = [_event(warning, name) for warning in recorded.get("warnings", ())]
    changes = [*recorded["status"], *recorded["pods"], *recorded.get("workloads", ())]
    for change in sorted(changes, key=lambda change: (change["t"], "action" not in change)):
        if "action" in change:
            continue
        if "pod" in change:
            if not change["pod"].startswith(f"{name}-"):
                continue
            pods[change["pod"]] = _pod(change, pods.get(change["pod"]))
        elif "workload" in change:
            if change["workload"] != f"rayjob-{name}":
                continue
            workload = {"status": {"conditions": change["conditions"]}}
        else:
            job = {**job, "status": {key: value for key, value in change.items() if key != "t"}}
        seen = Evidence(pods=tuple(pods.values()), events=tuple(events), workload=workload)
        yield Moment(seconds=change["t"], job=job, evidence=seen)


def _pod(change: Json, before: Json | None) -> Json:
    name: str = change["pod"]
    cluster, kind = "", ""
    for kind_there, mark in (("head", "-head-"), ("worker", "-w-worker-")):
        if mark in name:
            cluster, kind = name.partition(mark)[0], kind_there
    labels = {"ray.io/cluster": cluster, "ray.io/node-type": kind} if cluster else {"graceful.dev/role": "submitter"}
    stamp = f"2026-11-22T13:{int(change['t']) // 60:02d}:{int(change['t']) % 60:02d}Z"
    first = before["metadata"]["creationTimestamp"] if before else stamp
    metadata = {"name": name, "uid": name, "labels": labels, "creationTimestamp": first}
    if change.get("deleting"):
        metadata["deletionTimestamp"] = stamp
    conditions = [{"type": "PodScheduled", "status": "False", "reason": one} for one in change.get("unscheduled", ())]
    containers = [{"name": "c", "restartCount": 0, "state": _state(word)} for word in change.get("containers", ())]
    return {
        "kind": "Pod",
        "metadata": metadata,
        "status": {"phase": change["phase"], "conditions": conditions, "containerStatuses": containers},
    }


def _state(word: str) -> Json:
    if word == "running":
        return {"running": {}}
    return {"terminated" if word in ("Completed", "Error", "OOMKilled") else "waiting": {"reason": word}}


def _event(warning: Json, name: str) -> Json:
    return {
        **warning,
        "metadata": {"uid": warning["message"]},
        "involvedObject": {"kind": warning["kind"], "name": name},
    }
