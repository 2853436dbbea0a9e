"""Records lives of runs on a real node into tests/data/kuberay_lives.json, which `kuberay_lives` reads.

python -m tests.support.kuberay_recorder [CASE ...]    needs the test bed and root; takes a minute for each case
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from graceful.launch.kubernetes.kube import Kube
from graceful.launch.refusals import ApiError, NotFoundError
from tests.support.faults import spec
from tests.support.kuberay_lives import DATA
from tests.support.node import CONTEXT, Node, Team, started

POLL = 0.5
Json = dict[str, Any]


class Recorder:
    """What a job, its pods and its namespace looked like at each change."""

    def __init__(self, case: str, kube: Kube, name: str) -> None:
        self.case, self.kube, self.name = case, kube, name
        self.begun = time.monotonic()
        self.status: list[Json] = []
        self.pods: list[Json] = []
        self.namespace: list[Json] = []
        self.warnings: dict[str, Json] = {}
        self._last: dict[str, Json] = {}

    @contextmanager
    def running(self) -> Iterator[None]:
        """Look twice a second until the block ends."""
        over = threading.Event()

        def look() -> None:
            while not over.wait(POLL):
                with contextlib.suppress(ApiError):
                    self._look()

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(timeout=30)

    def recorded(self) -> Json:
        """Return the case as the file holds it."""
        return {
            "case": self.case,
            "name": self.name,
            "seconds": round(time.monotonic() - self.begun, 1),
            "status": self.status,
            "pods": self.pods,
            "warnings": sorted(self.warnings.values(), key=lambda warning: warning["last"]),
            **({"namespace": self.namespace} if self.namespace else {}),
        }

    def _look(self) -> None:
        try:
            job = self.kube.get("RayJob", self.name)
        except NotFoundError:
            self._changed(self.status, "", {"gone": True})
        else:
            self._changed(self.status, "", _job(job))
        live = {pod["metadata"]["name"]: _pod(pod) for pod in self.kube.list("Pod").items}
        for name, pod in live.items():
            self._changed(self.pods, name, pod)
        for name in self._last.keys() - live.keys() - {"", "/namespace"}:
            self._changed(self.pods, name, {"pod": name, "gone": True})
        for event in self.kube.list("Event", fields="type=Warning").items:
            self.warnings[event["metadata"]["uid"]] = _warning(event)
        phase = (self.kube.get("Namespace", self.kube.namespace).get("status") or {}).get("phase")
        if phase != "Active":
            self._changed(self.namespace, "/namespace", {"phase": phase})

    def _changed(self, changes: list[Json], key: str, now: Json) -> None:
        if self._last.get(key) != now and not (key == "" and not changes and now.get("gone")):
            self._last[key] = now
            changes.append({"t": round(time.monotonic() - self.begun, 1), **now})


def _job(job: Mapping[str, Any]) -> Json:
    kept = (
        "jobDeploymentStatus",
        "jobStatus",
        "reason",
        "message",
        "rayClusterName",
        "jobId",
        "failed",
        "startTime",
        "endTime",
    )
    status = job.get("status") or {}
    meta = job["metadata"]
    deleting = {"deleting": True} if meta.get("deletionTimestamp") else {}
    said = {key: status[key] for key in kept if status.get(key)}
    return {**said, "uid": meta["uid"], "created": meta["creationTimestamp"], **deleting}


def _pod(pod: Mapping[str, Any]) -> Json:
    status, meta = pod.get("status") or {}, pod["metadata"]
    unscheduled = [
        one.get("reason", "")
        for one in status.get("conditions") or ()
        if one["type"] == "PodScheduled" and one["status"] == "False"
    ]
    return {
        "pod": meta["name"],
        "phase": status.get("phase", ""),
        **({"unscheduled": unscheduled} if unscheduled else {}),
        **({"node": True} if pod["spec"].get("nodeName") else {}),
        "created": meta["creationTimestamp"],
        **({"deleting": True} if meta.get("deletionTimestamp") else {}),
    }


def _warning(event: Mapping[str, Any]) -> Json:
    subject = event["involvedObject"]
    last = event.get("lastTimestamp") or event.get("eventTime")
    facts = {"type": "Warning", "reason": event["reason"], "message": event["message"], "last": last}
    return {"kind": subject["kind"], "name": subject["name"], **facts}


# --- the lives --------------------------------------------------------------------------------------------------------


def _refused(team: Team, model: str, recorder: Recorder) -> None:
    """A pod that mounts a volume that is not there, so that no server takes it; then the run as it should be."""
    team.submit(spec(model, epochs=2))
    job = _taken_away(team, recorder.name)
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    mounts = group["template"]["spec"]["containers"][0]["volumeMounts"]
    mounts.append({"name": "nowhere", "mountPath": "/nowhere"})
    team.kube.create(job)
    with recorder.running():
        team.wait(recorder.name, lambda found: "invalid pod" in found["cause"], seconds=120)
        time.sleep(5.0)
        mounts.pop()
        team.kube.delete("RayJob", recorder.name)
        _until_gone(team, recorder.name)
        team.kube.create(job)
        _until_pods_run(team, recorder.name)


def _unschedulable(team: Team, model: str, recorder: Recorder) -> None:
    """No node takes pods; later one does."""
    team.node.run("kubectl", "cordon", CONTEXT)
    try:
        team.submit(spec(model, epochs=2))
        with recorder.running():
            team.wait(recorder.name, lambda found: "unschedulable" in found["cause"], seconds=120)
            time.sleep(10.0)
            team.node.run("kubectl", "uncordon", CONTEXT)
            _until_pods_run(team, recorder.name)
    finally:
        team.node.run("kubectl", "uncordon", CONTEXT)


def _namespace_gone(team: Team, model: str, recorder: Recorder) -> None:
    """The namespace is deleted when the pods of the run have just started."""
    run = team.submit(spec(model, epochs=40))
    with recorder.running():
        _until_pods_run(team, run)
        team.node.kube("default").delete("Namespace", team.name)
        _until_gone(team, run)


def _taken_away(team: Team, name: str) -> Json:
    """Delete a job that was just sent; as it can be sent again."""
    job = team.kube.get("RayJob", name)
    volumes = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["volumes"]
    (document,) = [volume["configMap"]["name"] for volume in volumes if volume["name"] == "spec"]
    config = team.kube.get("ConfigMap", document)
    team.kube.create({**config, "metadata": {"name": f"{document}-kept"}})  # the other goes with its job
    for template in _templates(job):
        for volume in template["spec"]["volumes"]:
            if volume["name"] == "spec":
                volume["configMap"]["name"] = f"{document}-kept"
    team.kube.delete("RayJob", name)
    _until_gone(team, name)
    meta = {key: job["metadata"][key] for key in ("name", "namespace", "labels", "annotations")}
    return {key: job[key] for key in ("apiVersion", "kind", "spec")} | {"metadata": meta}


def _templates(job: Json) -> list[Json]:
    cluster = job["spec"]["rayClusterSpec"]
    return [cluster["headGroupSpec"]["template"], *(group["template"] for group in cluster["workerGroupSpecs"])]


def _until_pods_run(team: Team, name: str) -> None:
    """Wait for head and workers, and a moment longer."""
    end = time.monotonic() + 600
    while True:
        pods = [*team.pods("head", name), *team.pods("rank", name)]
        if len(pods) == 3 and all(pod["status"]["phase"] == "Running" for pod in pods):
            time.sleep(5.0)
            return
        assert time.monotonic() < end, team.picture()
        time.sleep(0.5)


def _until_gone(team: Team, name: str) -> None:
    end = time.monotonic() + 240
    while True:
        try:
            team.kube.get("RayJob", name)
        except NotFoundError:
            return
        assert time.monotonic() < end, team.picture()
        time.sleep(0.5)


CASES: Mapping[str, Callable[[Team, str, Recorder], None]] = {
    "refused pod, then repaired": _refused,
    "no node takes pods, then one does": _unschedulable,
    "namespace deleted when its pods had started": _namespace_gone,
}


def record(node: Node, case: str) -> None:
    """Live through a case and put it into the file, in place of an older recording."""
    model = f"m{uuid4().hex[:6]}"
    with node.team(model, profile={"retries": {"job": 0}}) as team:
        recorder = Recorder(case, team.kube, f"{model}-v1")
        CASES[case](team, model, recorder)
    document = json.loads(DATA.read_text(encoding="utf-8"))
    document["cases"] = [one for one in document["cases"] if one["case"] != case] + [recorder.recorded()]
    DATA.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, started(Path(folder)) as bed:
        for chosen in sys.argv[1:] or CASES:
            record(bed, chosen)
