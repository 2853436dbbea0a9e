"""Runs recorded on a real KubeRay operator over several jobs: stopped and sent again, deleted with their namespace.

tests/data/kuberay_lives.json has the form of kuberay_sequences.json, with the uid and the time of each job, and the
times of pods and events, by which these belong to one job or another. `lives` turns each change into a moment.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from graceful.launch.evidence import Evidence
from tests.support.kuberay_sequences import Moment, rayjob

DATA = Path(__file__).parent.parent / "data" / "kuberay_lives.json"
_KIND = re.compile(r"(?P<cluster>.+)-(head|workers-worker)-[a-z0-9]+")
Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Life:
    """One recorded run; moments at which its job was there."""

    case: str
    moments: tuple[Moment, ...]


@cache
def lives() -> tuple[Life, ...]:
    """Return all recorded runs."""
    cases = json.loads(DATA.read_text(encoding="utf-8"))["cases"]
    return tuple(Life(case=one["case"], moments=tuple(_moments(one))) for one in cases)


def _moments(recorded: Json) -> Iterator[Moment]:
    events = tuple(_event(warning) for warning in recorded["warnings"])
    pods: dict[str, Json] = {}
    job: Json | None = None
    uids: list[str] = []
    namespace = [{"t": change["t"], "namespace": change["phase"]} for change in recorded.get("namespace", ())]
    ends = False
    for change in sorted([*recorded["status"], *recorded["pods"], *namespace], key=lambda change: change["t"]):
        if "namespace" in change:
            ends = change["namespace"] == "Terminating"
        elif "pod" in change:
            pods[change["pod"]] = _pod(change, pods.get(change["pod"]))
        elif "uid" not in change:  # gone, or not to be read
            job = None
            continue
        else:
            uids += [change["uid"]] if change["uid"] not in uids else []
            job = _job(recorded["name"], change, sent_again=len(uids) - 1)
        if job is not None:
            seen = Evidence(pods=tuple(pods.values()), events=events, namespace_ends=ends)
            yield Moment(seconds=change["t"], job=job, evidence=seen)


def _job(name: str, change: Json, *, sent_again: int) -> Json:
    made = {"uid": change["uid"], "resourceVersion": "1", "creationTimestamp": change["created"]}
    job = rayjob(name, **made, **({"deletionTimestamp": change["created"]} if change.get("deleting") else {}))
    job["metadata"]["annotations"] |= {"graceful.dev/resumes": str(sent_again)}
    job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["replicas"] = 2
    own = ("t", "uid", "created", "deleting")
    return {**job, "status": {key: value for key, value in change.items() if key not in own}}


def _pod(change: Json, before: Json | None) -> Json:
    if change.get("gone"):  # as a follower keeps it
        assert before is not None
        return {**before, "metadata": {**before["metadata"], "deletionTimestamp": "unknown"}}
    match = _KIND.fullmatch(change["pod"])
    kind = "submitter" if match is None else match[2].rpartition("-")[2]
    labels = {"graceful.dev/role": "submitter"}
    if match is not None:
        labels = {"ray.io/cluster": match["cluster"], "ray.io/node-type": kind}
    metadata = {"name": change["pod"], "uid": change["pod"], "labels": labels, "creationTimestamp": change["created"]}
    if change.get("deleting"):
        metadata["deletionTimestamp"] = change["created"]
    conditions = [{"type": "PodScheduled", "status": "False", "reason": one} for one in change.get("unscheduled", ())]
    spec = {"nodeName": "n"} if change.get("node") else {}
    status = {"phase": change["phase"], "conditions": conditions}
    return {"kind": "Pod", "metadata": metadata, "spec": spec, "status": status}


def _event(warning: Json) -> Json:
    subject = {"kind": warning["kind"], "name": warning["name"]}
    return {
        **warning,
        "metadata": {"uid": warning["message"]},
        "involvedObject": subject,
        "lastTimestamp": warning["last"],
    }
