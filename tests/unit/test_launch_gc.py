"""Stop, resume, list and gc against an API server in memory: what is deleted, what is kept, who owns what."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from graceful.cli import following, locations
from graceful.environment import RESUMES_VARIABLE
from graceful.errors import InfrastructureError, SpecError
from graceful.launch.backend import Phase
from graceful.launch.kuberay import gc, runs
from graceful.launch.kuberay.backend import KubeRayRuns
from graceful.launch.kubernetes.kube import Kube, Listing
from graceful.launch.kubernetes.kubeconfig import Access
from graceful.launch.refusals import ConflictError, NotFoundError
from graceful.patience import Patience
from tests.support.kuberay_sequences import rayjob

Json = dict[str, Any]
NOW = datetime(2026, 11, 22, 13, 0, tzinfo=UTC)


@dataclass
class Memory:
    """As much of `Kube` as runs and gc use; deletion is immediate unless it is held up."""

    objects: dict[tuple[str, str], Json] = field(default_factory=dict)
    deleted: list[tuple[str, str]] = field(default_factory=list)
    held: bool = False
    made: int = 0
    namespace: str = "rec"
    access: Access = field(default_factory=lambda: Access(server="http://k", context="c", identity="me"))
    patience: Patience = field(
        default_factory=lambda: Patience(sleep=lambda seconds: None, now=iter(range(9999)).__next__)
    )

    def get(self, kind: str, name: str) -> Json:
        if (kind, name) not in self.objects:
            raise NotFoundError(f"{kind} {name}")
        return copy.deepcopy(self.objects[kind, name])

    def list(self, kind: str, *, selector: str = "", fields: str = "") -> Listing:
        wanted = [part.partition("=") for part in selector.split(",") if part]
        found = [one for (of, _), one in self.objects.items() if of == kind and _matches(one, wanted)]
        bare = ({key: value for key, value in one.items() if key != "kind"} for one in found)  # as the server lists
        return Listing(items=tuple(bare), resource_version="1")

    def create(self, document: Mapping[str, Any], *, dry_run: bool = False) -> Json:
        key = (document["kind"], document["metadata"]["name"])
        if key in self.objects:
            raise ConflictError(str(key))
        if dry_run:
            return copy.deepcopy({**document})
        self.made += 1
        meta = {"uid": f"u{self.made}", "creationTimestamp": NOW.isoformat(), **document["metadata"]}
        self.objects[key] = copy.deepcopy({**document, "metadata": meta})
        return self.get(*key)

    def apply(self, document: Mapping[str, Any], *, force: bool) -> Json:
        self.objects.pop((document["kind"], document["metadata"]["name"]), None)
        return self.create(document)

    def patch(self, kind: str, name: str, body: Mapping[str, Any]) -> Json:
        self.get(kind, name)
        for part, changes in body.items():
            self.objects[kind, name].setdefault(part, {}).update(changes)
        return self.get(kind, name)

    def delete(self, kind: str, name: str, *, uid: str = "") -> None:
        there = self.get(kind, name)
        if uid and there["metadata"]["uid"] != uid:
            raise ConflictError("another one")
        self.deleted.append((kind, name))
        if not self.held:
            del self.objects[kind, name]


def _matches(document: Json, wanted: list[tuple[str, str, str]]) -> bool:
    labels = document["metadata"].get("labels") or {}
    return all(labels.get(key) == value if equals else key in labels for key, equals, value in wanted)


def kube(memory: Memory) -> Kube:
    client: Kube = memory  # type: ignore[assignment]
    return client


def job(memory: Memory, name: str, status: Json, **metadata: Any) -> Json:
    document = rayjob(name, **metadata)
    template = document["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]
    template["spec"]["volumes"] = [
        {"name": "runs", "emptyDir": {}},
        {"name": "s", "configMap": {"name": f"{name}-doc"}},
    ]
    made = memory.create({**document, "status": status})
    memory.create(config_map(f"{name}-doc", name, ownerReferences=[{"kind": "RayJob", "uid": made["metadata"]["uid"]}]))
    return made


def config_map(name: str, run: str, **metadata: Any) -> Json:
    labels = {"app.kubernetes.io/managed-by": "graceful", "graceful.dev/run-id": run}
    return {"kind": "ConfigMap", "metadata": {"name": name, "namespace": "rec", "labels": labels, **metadata}}


RUNNING = {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}
FAILED = {"jobDeploymentStatus": "Failed", "reason": "DeadlineExceeded", "failed": 1}
DONE = {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}


def owner(memory: Memory, name: str) -> str:
    return str(memory.objects["ConfigMap", name]["metadata"]["ownerReferences"][0]["kind"])


def test_stop_writes_the_job_down_before_it_deletes_it_and_keeps_its_document() -> None:
    memory = Memory()
    job(memory, "a", RUNNING)
    stopped = runs.stop(kube(memory), "a")
    assert (stopped.phase, stopped.exit_code) == (Phase.STOPPED, 5)
    assert memory.deleted == [("RayJob", "a")]
    assert owner(memory, "a-doc") == "ConfigMap"
    assert runs.status(kube(memory), "a") == stopped
    assert runs.stop(kube(memory), "a") == stopped
    assert list(runs.listing(kube(memory))) == [stopped]


def test_stopping_a_failed_run_takes_its_pods_away_and_keeps_why_it_failed() -> None:
    memory = Memory()
    job(memory, "a", FAILED)
    stopped = runs.stop(kube(memory), "a")
    assert stopped.phase is Phase.STOPPED
    assert stopped.cause.startswith("failed (")
    assert memory.deleted == [("RayJob", "a")]
    assert runs.status(kube(memory), "a") == stopped


@pytest.mark.parametrize("status", [DONE, {"jobDeploymentStatus": "ValidationFailed"}])
def test_stopping_what_is_over_changes_nothing(status: Json) -> None:
    memory = Memory()
    job(memory, "a", status)
    assert runs.stop(kube(memory), "a").phase.terminal
    assert memory.deleted == []


@pytest.mark.parametrize("status", [RUNNING, FAILED])
def test_a_stopped_or_failed_run_resumes_with_the_same_job(status: Json) -> None:
    memory = Memory()
    before = job(memory, "a", status)
    runs.stop(kube(memory), "a")
    resumed = runs.resume(kube(memory), "a")
    after = memory.get("RayJob", "a")
    (head,) = after["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"]
    assert head.pop("env") == [{"name": RESUMES_VARIABLE, "value": "1"}]
    assert after["spec"] == before["spec"]
    assert after["metadata"]["uid"] != before["metadata"]["uid"]
    assert "status" not in after
    assert resumed.attempt == 2
    assert owner(memory, "a-doc") == "RayJob"
    assert ("ConfigMap", "a-stopped") not in memory.objects


def test_a_running_run_is_left_alone_and_a_finished_one_refused() -> None:
    memory = Memory()
    job(memory, "a", RUNNING)
    job(memory, "b", DONE)
    assert runs.resume(kube(memory), "a").phase is Phase.RUNNING
    with pytest.raises(SpecError, match="b: SUCCEEDED; nothing to resume"):
        runs.resume(kube(memory), "b")
    assert memory.deleted == []


def test_a_suspended_job_is_merely_let_go() -> None:
    memory = Memory()
    job(memory, "a", {"jobDeploymentStatus": "Suspended"})
    memory.objects["RayJob", "a"]["spec"]["suspend"] = True
    assert not runs.resume(kube(memory), "a").phase.terminal
    assert memory.objects["RayJob", "a"]["spec"]["suspend"] is False


def test_an_old_job_that_does_not_go_away_is_told_and_nothing_is_lost() -> None:
    memory = Memory(held=True)
    job(memory, "a", FAILED)
    with pytest.raises(InfrastructureError, match="still being deleted after 120 s"):
        runs.resume(kube(memory), "a")
    record = memory.objects["ConfigMap", "a-stopped"]
    assert json.loads(record["data"]["rayjob.json"])["metadata"]["name"] == "a"


def test_what_does_not_exist_is_a_usage_error() -> None:
    for act in (runs.status, runs.stop, runs.resume):
        with pytest.raises(SpecError, match="no run 'x' in namespace rec, context c"):
            act(kube(Memory()), "x")


def test_runs_are_named_by_id_or_handle() -> None:
    assert runs.name_of("glyphs-v2", namespace="rec") == "glyphs-v2"
    assert runs.name_of("kuberay://rec/glyphs-v2", namespace="rec") == "glyphs-v2"
    with pytest.raises(SpecError, match="not in namespace rec"):
        runs.name_of("kuberay://other/glyphs-v2", namespace="rec")


def names(removals: tuple[gc.Removal, ...]) -> list[str]:
    return [f"{one.kind} {one.name}" for one in removals]


def test_gc_takes_finished_jobs_and_orphans_and_keeps_what_can_resume() -> None:
    memory = Memory()
    job(memory, "done", DONE)
    job(memory, "failed", {**FAILED, "endTime": (NOW + timedelta(hours=20)).isoformat()})
    job(memory, "running", RUNNING)
    job(memory, "stopped", RUNNING)
    runs.stop(kube(memory), "stopped")
    memory.create(config_map("orphan", "gone"))
    memory.create(submitter("orphaned", "somebody"))
    memory.create(submitter("owned", memory.objects["RayJob", "running"]["metadata"]["uid"]))
    memory.deleted.clear()
    found = gc.find(kube(memory), now=NOW + timedelta(days=1, hours=1))
    assert names(found) == ["RayJob done", "Job orphaned", "ConfigMap done-doc", "ConfigMap orphan"]
    assert memory.deleted == []
    assert gc.remove(kube(memory), found) == found
    assert gc.remove(kube(memory), found) == ()
    assert {one.run_id for one in runs.listing(kube(memory))} == {"failed", "running", "stopped"}
    later = NOW + timedelta(days=31)
    assert "ConfigMap stopped-stopped" not in names(gc.find(kube(memory), now=later))
    found = gc.find(kube(memory), now=later, stopped_age=timedelta(days=30))
    assert {"ConfigMap stopped-stopped", "ConfigMap stopped-doc"} <= set(names(found))


def submitter(name: str, owner_uid: str) -> Json:
    labels = {"app.kubernetes.io/managed-by": "graceful"}
    meta = {"name": name, "labels": {"ray.io/originated-from-crd": "RayJob"}, "ownerReferences": [{"uid": owner_uid}]}
    return {"kind": "Job", "metadata": meta, "spec": {"template": {"metadata": {"labels": labels}}}}


def test_gc_spares_what_is_young_suspended_or_was_replaced_meanwhile() -> None:
    memory = Memory()
    job(memory, "a", DONE)
    job(memory, "b", {"jobDeploymentStatus": "Suspended"})
    memory.objects["RayJob", "b"]["spec"]["suspend"] = True
    assert gc.find(kube(memory), now=NOW + timedelta(hours=23)) == ()
    found = gc.find(kube(memory), now=NOW + timedelta(days=2))
    assert names(found) == ["RayJob a", "ConfigMap a-doc"]
    memory.objects["RayJob", "a"]["metadata"]["uid"] = "successor"
    assert names(gc.remove(kube(memory), found[:1])) == []


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("15m", 900), ("24h", 86400), ("7d", 604800)])
def test_durations_are_read(text: str, seconds: int) -> None:
    assert following.duration(text).total_seconds() == seconds


@pytest.mark.parametrize("text", ["", "15", "m", "-1h", "1.5h", "1w"])
def test_what_is_no_duration_is_a_usage_error(text: str) -> None:
    with pytest.raises(SpecError, match="such as 90s"):
        following.duration(text)


def test_ctrl_c_detaches_and_says_how_to_come_back(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*arguments: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(KubeRayRuns, "logs", interrupted)
    monkeypatch.setattr(locations.RunLocation, "kube", kube(Memory()))
    place = locations.RunLocation(on="kind", namespace="team")
    assert following.logs("glyphs-v2", place, follow=True, since=None) == 130
    assert "`graceful logs -f glyphs-v2 --on kind -n team`" in capsys.readouterr().err
