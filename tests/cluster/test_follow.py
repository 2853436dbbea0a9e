"""Status, logs, stop, resume, list and gc against a real API server; recorded life-cycles stand in for the operator."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from graceful.launch.backend import Phase, Status
from graceful.launch.kuberay import gc, logs, runs
from graceful.launch.kuberay.observe import Observer, follow
from graceful.launch.kubernetes import kubeconfig
from graceful.launch.kubernetes.kube import Kube
from graceful.launch.refusals import ConflictError, ForbiddenError, InvalidObjectError, NotFoundError
from graceful.patience import Patience
from tests.cluster.conftest import Cluster, anonymous
from tests.support.apiserver_proxy import Fault, Weather, proxied
from tests.support.kubelet import log_server
from tests.support.kuberay_sequences import LifeCycle, life_cycles, rayjob
from tests.support.replay import create, replay, write_status

pytestmark = pytest.mark.cluster
Run = Callable[..., subprocess.CompletedProcess[str]]
CAUSES = {
    "image does not exist, preRunningDeadlineSeconds 30": "image pull: head",
    "worker unschedulable, preRunningDeadlineSeconds 30": "unschedulable: worker: 0/1 nodes",
    "ResourceQuota exceeded by the worker, preRunningDeadlineSeconds 30": "over quota: rq",
    "head out of memory": "out of memory: Ray's monitor",
    "head pod deleted while running, one retry": "head restarted",
    "invalid: ttl without shutdown": "TTLSecondsAfterFinished",
    "application error, no retry": "exit code 7",
    "activeDeadlineSeconds 45 exceeded": "out of time",
}


@pytest.mark.parametrize("cycle", life_cycles(), ids=lambda cycle: cycle.case)
def test_a_recorded_life_cycle_ends_for_a_follower_and_for_a_single_look(cycle: LifeCycle, kube: Kube) -> None:
    create(kube, "job", case=cycle.case)
    seen: list[Status] = []
    follower = threading.Thread(target=lambda: seen.extend(follow(Observer(kube=kube, name="job"))), daemon=True)
    follower.start()
    replay(kube, cycle, name="job")
    follower.join(timeout=60)
    assert not follower.is_alive()
    look = runs.status(kube, "job")
    recorded = {"Failed": Phase.FAILED, "Complete": Phase.SUCCEEDED, "ValidationFailed": Phase.INVALID}
    assert seen[-1].phase is look.phase is recorded[cycle.statuses[-1]["jobDeploymentStatus"]]
    assert CAUSES.get(cycle.case, "") in look.cause
    assert [one.phase.terminal for one in seen] == [False] * (len(seen) - 1) + [True]


def test_waiting_ends_with_the_exit_code_of_the_run(kube: Kube, on_cluster: Run) -> None:
    create(kube, "glyphs-v2")
    said = "Job entrypoint command failed with exit code 2, last available logs:\ngraceful: x.csv: no such file\n"
    failed = {"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "reason": "AppFailed", "message": said}
    write_status(kube, "glyphs-v2", failed)
    done = on_cluster("status", "glyphs-v2", "--wait")
    assert (done.returncode, "x.csv: no such file" in done.stdout) == (2, True)
    told = json.loads(on_cluster("status", "glyphs-v2", "-o", "json").stdout)
    assert told["phase"] == "FAILED"
    assert told["handle"] == f"kuberay://{kube.namespace}/glyphs-v2"


def test_an_unknown_run_is_a_usage_error_in_every_command(on_cluster: Run) -> None:
    for command in ("status", "logs", "stop", "resume"):
        done = on_cluster(command, "nowhere")
        assert done.returncode == 2
        assert "no run 'nowhere' in namespace" in done.stderr


def document(name: str, namespace: str) -> dict[str, Any]:
    labels = {"graceful.dev/run-id": "glyphs-v2", "app.kubernetes.io/managed-by": "graceful"}
    meta = {"name": name, "namespace": namespace, "labels": labels}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"spec.json": "{}"}}


def submitted(kube: Kube) -> Mapping[str, Any]:
    """A running job that reads a document which it owns."""
    spec = rayjob("glyphs-v2")["spec"]
    spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["volumes"] = [
        {"name": "spec", "configMap": {"name": "doc"}}
    ]
    job = create(kube, "glyphs-v2", spec=spec)
    owner = {"apiVersion": "ray.io/v1", "kind": "RayJob", "name": "glyphs-v2", "uid": job["metadata"]["uid"]}
    map_ = document("doc", kube.namespace)
    map_["metadata"]["ownerReferences"] = [owner]
    kube.create(map_)
    write_status(kube, "glyphs-v2", {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"})
    return job


def owners(kube: Kube) -> list[str]:
    return [owner["kind"] for owner in kube.get("ConfigMap", "doc")["metadata"]["ownerReferences"]]


def test_a_stopped_run_is_remembered_and_resumes_under_the_same_run_id(kube: Kube, on_cluster: Run) -> None:
    before = submitted(kube)
    stopped = on_cluster("stop", "glyphs-v2")
    assert stopped.returncode == 0
    assert "STOPPED: stopped while RUNNING" in stopped.stdout
    with pytest.raises(NotFoundError):
        kube.get("RayJob", "glyphs-v2")
    assert owners(kube) == ["ConfigMap"]
    assert json.loads(on_cluster("status", "glyphs-v2", "-o", "json").stdout)["phase"] == "STOPPED"
    assert [one.phase for one in runs.listing(kube)] == [Phase.STOPPED]
    assert on_cluster("stop", "glyphs-v2").returncode == 0

    assert on_cluster("resume", "glyphs-v2").returncode == 0
    after = kube.get("RayJob", "glyphs-v2")
    (head,) = after["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"]
    assert head.pop("env") == [{"name": "GRACEFUL_RESUMES", "value": "1"}]
    assert after["spec"] == before["spec"]
    assert after["metadata"]["annotations"]["graceful.dev/run-id"] == "glyphs-v2"
    assert runs.status(kube, "glyphs-v2").attempt == 2
    assert owners(kube) == ["RayJob"]
    with pytest.raises(NotFoundError):
        kube.get("ConfigMap", runs.record_name("glyphs-v2"))


def test_a_failed_run_resumes_and_a_running_or_finished_one_does_not(kube: Kube, on_cluster: Run) -> None:
    uid = submitted(kube)["metadata"]["uid"]
    assert on_cluster("resume", "glyphs-v2").returncode == 0
    assert kube.get("RayJob", "glyphs-v2")["metadata"]["uid"] == uid
    write_status(kube, "glyphs-v2", {"jobDeploymentStatus": "Failed", "reason": "DeadlineExceeded"})
    assert on_cluster("resume", "glyphs-v2").returncode == 0
    assert kube.get("RayJob", "glyphs-v2")["metadata"]["uid"] != uid
    write_status(kube, "glyphs-v2", {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"})
    done = on_cluster("resume", "glyphs-v2")
    assert (done.returncode, "nothing to resume" in done.stderr) == (2, True)


def test_a_run_whose_document_is_gone_says_so_in_place_of_waiting_for_ever(kube: Kube, on_cluster: Run) -> None:
    submitted(kube)
    kube.delete("ConfigMap", "doc")
    write_status(kube, "glyphs-v2", {"jobDeploymentStatus": "Failed", "reason": "DeadlineExceeded"})
    done = on_cluster("resume", "glyphs-v2")
    assert (done.returncode, "ConfigMap doc: gone" in done.stderr) == (2, True)
    assert kube.get("RayJob", "glyphs-v2")


def test_deleting_a_run_that_is_followed_ends_the_following(kube: Kube) -> None:
    create(kube, "job")
    seen: list[Status] = []
    following = follow(Observer(kube=kube, name="job"))
    seen.append(next(following))
    kube.delete("RayJob", "job")
    seen.extend(following)
    assert seen[-1].phase is Phase.STOPPED
    assert seen[-1].cause == "deleted while it was followed"


def test_a_finished_run_that_goes_with_its_namespace_stays_what_it_was(kube: Kube) -> None:
    create(kube, "job")
    write_status(kube, "job", {"jobDeploymentStatus": "Running", "jobStatus": "SUCCEEDED"})
    following = follow(Observer(kube=kube, name="job"))
    assert next(following).phase is Phase.RUNNING
    kube.delete("RayJob", "job")
    (ended,) = list(following)[-1:]
    assert (ended.phase, ended.exit_code) == (Phase.SUCCEEDED, 0)
    assert ended.cause == "deleted after its program had ended"


def test_followers_tell_a_verdict_as_one_event_of_the_job(kube: Kube) -> None:
    create(kube, "job")
    followings = [follow(Observer(kube=kube, name="job")) for _ in range(2)]
    for following in followings:
        next(following)
    said = "Job entrypoint command failed with exit code 3, last available logs:\ngraceful: held: too many flips\n"
    write_status(
        kube, "job", {"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "reason": "AppFailed", "message": said}
    )
    for following in followings:
        assert list(following)[-1].exit_code == 3
    (event,) = kube.list("Event", fields="reason=GateHeld").items
    assert (event["type"], event["involvedObject"]["name"]) == ("Warning", "job")
    assert event["message"] == "job is registered and not promoted: held: too many flips"


@pytest.mark.parametrize("deleted", [True, False])
def test_a_role_that_is_taken_away_is_told_apart_from_a_namespace_that_is_deleted(
    cluster: Cluster, kube: Kube, *, deleted: bool
) -> None:
    """Of a namespace that is deleted, roles go while KubeRay's finalizer still stops the program."""
    reading = ["get", "list", "watch"]
    poor = anonymous(cluster, kube, role={"ray.io": (["rayjobs"], reading), "": (["pods", "events"], reading)})
    create(kube, "job", metadata={**rayjob("job", namespace=kube.namespace)["metadata"], "finalizers": ["a.b/c"]})
    write_status(kube, "job", {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"})
    following = follow(Observer(kube=poor, name="job", starting=1.0, running=1.0))
    assert next(following).phase is Phase.RUNNING
    if deleted:
        kube.delete("RayJob", "job")
        assert next(following).cause == "being deleted; its program is stopped first"
    kube.delete("RoleBinding", "reader")
    try:
        if deleted:
            (ended,) = following
            assert (ended.phase, ended.exit_code) == (Phase.STOPPED, 5)
            assert ended.cause == "deleted while it was followed, with its namespace"
        else:
            with pytest.raises(ForbiddenError, match="allowed before: the namespace was deleted, or a role was taken"):
                list(following)
    finally:
        kube.patch("RayJob", "job", {"metadata": {"finalizers": None}})


def test_gc_removes_what_is_finished_and_orphaned_and_nothing_else(kube: Kube, on_cluster: Run) -> None:
    submitted(kube)
    create(kube, "done")
    write_status(kube, "done", {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"})
    orphan = document("orphan", kube.namespace)
    orphan["metadata"]["labels"]["graceful.dev/run-id"] = "gone"
    kube.create(orphan)
    later = datetime.now(UTC) + timedelta(days=2)
    found = gc.find(kube, now=later)
    assert [(one.kind, one.name) for one in found] == [("RayJob", "done"), ("ConfigMap", "orphan")]
    assert gc.find(kube, now=datetime.now(UTC)) == ()
    shown = on_cluster("gc", "--older-than", "0s", "--dry-run", "-o", "json")
    assert {one["name"] for one in json.loads(shown.stdout)} >= {"done"}
    assert kube.get("RayJob", "done")
    assert gc.remove(kube, found) == found
    assert gc.remove(kube, found) == ()
    assert [one.run_id for one in runs.listing(kube)] == ["glyphs-v2"]
    assert kube.get("ConfigMap", "doc")


def test_every_job_is_listed(kube: Kube, on_cluster: Run) -> None:
    for number in range(12):
        create(kube, f"job-{number}")
    done = on_cluster("list")
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 13
    assert len(json.loads(on_cluster("list", "-o", "json").stdout)) == 12


LINES = [f"2026-11-22T13:00:0{number}.{number}5Z line {number}" for number in range(8)]


def submitter(kube: Kube, node: str) -> None:
    labels = {"graceful.dev/run-id": "job", "graceful.dev/role": "submitter"}
    meta = {"name": "job-abcde", "namespace": kube.namespace, "labels": labels}
    spec = {"nodeName": node, "containers": [{"name": "c", "image": "localhost/nowhere:1"}]}
    kube.create({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec})
    set_phase(kube, "Running")


def set_phase(kube: Kube, phase: str) -> None:
    kube.patch("Pod", "job-abcde", {"status": {"phase": phase}}, part="status")


def test_logs_come_once_across_cut_connections_and_the_end_of_the_run(cluster: Cluster, kube: Kube) -> None:
    pki = Path(cluster.env["KUBECONFIG"]).parent / "pki"
    if not (pki / "kubelet.crt").is_file():
        pytest.skip("no certificate for a node of ours: this is not the test bed")
    node = f"node-{kube.namespace}"
    create(kube, "job")
    write_status(kube, "job", {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"})
    served = {"job-abcde": LINES[:4]}

    def sleep(seconds: float) -> None:
        """Each pause, the world goes on: more lines, then the end of the pod, then of the job."""
        if len(served["job-abcde"]) < len(LINES):
            served["job-abcde"] = LINES
        else:
            set_phase(kube, "Succeeded")
            write_status(kube, "job", {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"})

    weather = Weather(faults=(Fault.DROPPED, Fault.BROKEN), chance=0.3, only="/log", seed=3)
    with log_server(kube, pki, node=node, logs=served, cuts=[2, 1]) as asked, proxied(kube.access, weather) as access:
        submitter(kube, node)
        patience = Patience(sleep=sleep, random=lambda: 0.0)
        through = Kube(access=access, namespace=kube.namespace)
        found = list(logs.lines(through, "job", follow=True, patience=patience))
    assert found == [f"line {number}" for number in range(8)]
    assert any("sinceTime" in query for query in asked)


def test_errors_say_what_the_caller_can_do(kube: Kube) -> None:
    create(kube, "job")
    with pytest.raises(ConflictError, match="already exists"):
        create(kube, "job")
    with pytest.raises(InvalidObjectError, match="unknown field"):
        create(kube, "other", spec={**rayjob("other")["spec"], "entrypiont": "x"})
    with pytest.raises(InvalidObjectError, match="entrypiont"):
        kube.apply({**rayjob("other", namespace=kube.namespace), "spec": {"entrypiont": "x"}})


def test_a_refusal_names_verb_resource_identity_and_the_role_to_grant(
    cluster: Cluster, kube: Kube, tmp_path: Path
) -> None:
    nobody = without_permissions(cluster, kube, tmp_path / "config")
    with pytest.raises(ForbiddenError) as refused:
        nobody.list("RayJob")
    for word in ("list rayjobs.ray.io", f"namespace {kube.namespace}", "grant a Role", 'verbs: ["list"]', "nobody"):
        assert word in refused.value.message
    assert not nobody.can_i("create", "rayjobs.ray.io")
    assert kube.can_i("create", "rayjobs.ray.io")


def without_permissions(cluster: Cluster, kube: Kube, path: Path) -> Kube:
    """A client with the token of a service account that may do nothing, read from a kubeconfig."""
    kubectl = ["kubectl", "-n", kube.namespace, "--context", cluster.context]
    for words in (["create", "serviceaccount", "nobody"], ["create", "token", "nobody"]):
        done = subprocess.run(
            [*kubectl, *words], env=cluster.env, capture_output=True, text=True, check=True, timeout=60
        )
    config = yaml.safe_load(Path(cluster.env["KUBECONFIG"]).read_text(encoding="utf-8"))
    config["users"] = [{"name": entry["name"], "user": {"token": done.stdout.strip()}} for entry in config["users"]]
    path.write_text(json.dumps(config), encoding="utf-8")
    return Kube(access=kubeconfig.load(cluster.context, files=[path]), namespace=kube.namespace)


def test_the_server_tells_its_version(kube: Kube) -> None:
    assert kube.version().startswith("v1.")
