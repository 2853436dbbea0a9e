"""Schedules on a real API server: apply, change, list beside the chart's, pause, run now, delete, refusals."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from graceful import cli
from graceful.errors import SpecError
from graceful.launch import names
from graceful.launch.kuberay import schedule
from graceful.launch.kuberay.cronjob import SCHEDULE
from graceful.launch.kubernetes.kube import Kube
from graceful.launch.outcome import SKIPPED, Outcome
from tests.cluster.conftest import Cluster
from tests.support import launch
from tests.support.kubelet import log_server

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).parents[2]
SPEC = ROOT / "jobs/wine/v1.yaml"
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(
    cluster: Cluster, kube: Kube, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """`graceful WORDS --on` a profile of the test's namespace; returns exit code, stdout and stderr."""
    monkeypatch.setenv("KUBECONFIG", cluster.env["KUBECONFIG"])
    monkeypatch.setenv("GRACEFUL_HOME", str(tmp_path / "home"))
    for account in ("default", "rel-graceful-ray", "rel-graceful-submitter"):
        meta = {"name": account, "namespace": kube.namespace}
        kube.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta}, force=True)
    path = tmp_path / "here.yaml"
    document = {**launch.CLUSTER, "namespace": kube.namespace, "context": cluster.context}
    path.write_text(yaml.safe_dump({**document, "service_account": "rel-graceful-ray"}), encoding="utf-8")

    def run(*words: str) -> tuple[int, str, str]:
        code = cli.main([*words, "--on", str(path)])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


@pytest.fixture
def on(command: Command) -> Command:
    """`graceful schedule WORDS --on` the profile."""
    return lambda *words: command("schedule", *words)


def applied(on: Command, *words: str, cron: str = "0 3 1 1 *") -> str:
    code, stdout, stderr = on("apply", "nightly", str(SPEC), "--cron", cron, *words)
    assert code == 0, stderr
    return stdout


def configs(kube: Kube) -> list[Any]:
    return list(kube.list("ConfigMap", selector=SCHEDULE).items)


def end(kube: Kube, job: str, kind: str, message: str = "") -> None:
    """What the Job controller writes when a pod has ended; it is at work itself, so start when it has started."""
    for _ in range(100):
        started = (kube.get("Job", job).get("status") or {}).get("startTime")
        if started:
            break
        time.sleep(0.1)
    moment = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    before = {"Complete": "SuccessCriteriaMet", "Failed": "FailureTarget"}[kind]
    conditions = [
        {"type": one, "status": "True", "reason": "PodFailurePolicy", "message": message, "lastTransitionTime": moment}
        for one in (before, kind)
    ]
    counts = {"succeeded": 1, "completionTime": moment} if kind == "Complete" else {"failed": 1}
    body = {"status": {"conditions": conditions, "startTime": started, **counts, "active": 0, "ready": 0}}
    kube.patch("Job", job, body, part="status")


def test_apply_twice_changes_nothing_and_a_change_is_shown(on: Command, kube: Kube) -> None:
    stdout = applied(on, "--dry-run")
    assert "create: CronJob nightly" in stdout
    assert kube.list("CronJob").items == ()
    assert configs(kube) == []
    assert "create: CronJob nightly" in applied(on)
    (first,) = kube.list("CronJob").items
    spec = first["spec"]
    assert (spec["concurrencyPolicy"], spec["startingDeadlineSeconds"], spec["timeZone"]) == ("Forbid", 3600, "Etc/UTC")
    assert (spec["successfulJobsHistoryLimit"], spec["failedJobsHistoryLimit"]) == (3, 3)
    (config,) = configs(kube)
    assert [owner["uid"] for owner in config["metadata"]["ownerReferences"]] == [first["metadata"]["uid"]]
    assert yaml.safe_load(config["data"]["spec.yaml"])["task"]["file"] == "/etc/graceful/job/task.py"
    assert yaml.safe_load(config["data"]["spec.yaml"])["if_new_data"] is True
    assert applied(on) == "schedule nightly: unchanged\n"
    assert kube.get("CronJob", "nightly")["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
    stdout = applied(on, "--set", "train.epochs=7", "--always", cron="0 4 1 1 *")
    for line in ("-  schedule: 0 3 1 1 *", "+  schedule: 0 4 1 1 *", "epochs: 7", "if_new_data: false"):
        assert line in stdout
    (changed,) = configs(kube)
    assert changed["metadata"]["name"] != config["metadata"]["name"]


def test_a_backfill_is_scheduled_like_a_refresh(command: Command, on: Command, kube: Kube) -> None:
    asked = ("backfill", "schedule", "nightly", "s3://b/index", "--vectors", "s3://b/v.npz", "--cron", "0 3 1 1 *")
    code, stdout, stderr = command(*asked)
    assert (code, "create: CronJob nightly" in stdout) == (0, True), stderr
    assert command(*asked)[1] == "schedule nightly: unchanged\n"
    assert "stop-at=0.5" in command(*asked, "--stop-at", "0.5")[1]
    code, stdout, stderr = on("run-now", "nightly", "-o", "json")
    assert code == 0, stderr
    fired = json.loads(stdout)
    assert fired["run_id"] == f"backfill-{fired['firing']}"
    (row,) = json.loads(on("list", "-o", "json")[1])
    assert (row["last"]["firing"], row["last"]["outcome"]) == (fired["firing"], "running")
    code, _, stderr = command("backfill", "schedule", "local", "index", "--vectors", "s3://b/v.npz", "--cron", "@daily")
    assert (code, "INDEX index: is on this machine" in stderr) == (2, True)
    assert on("delete", "nightly")[0] == 0


def test_pods_of_a_schedule_are_admitted_under_restricted_or_it_is_not_applied(
    on: Command, kube: Kube, tmp_path: Path
) -> None:
    applied(on)
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    kube.patch("Namespace", kube.namespace, {"metadata": {"labels": labels}})
    template = kube.get("CronJob", "nightly")["spec"]["jobTemplate"]["spec"]["template"]
    meta = {"name": "probe", "namespace": kube.namespace, **template["metadata"]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": template["spec"]}
    assert kube.create(pod, dry_run=True)["metadata"]["name"] == "probe"
    path = tmp_path / "here.yaml"
    loose = {"overrides": {"spec": {"hostNetwork": True}}}
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "scheduled": loose}))
    code, _, errors = on("apply", "loose", str(SPEC), "--cron", "0 3 1 1 *")
    assert code == 2
    assert "pod of the schedule: violates PodSecurity" in errors
    assert [item["metadata"]["name"] for item in kube.list("CronJob").items] == ["nightly"]


def test_a_paused_schedule_stays_paused_until_it_is_resumed(on: Command, kube: Kube) -> None:
    applied(on)
    assert on("pause", "nightly")[1] == "schedule nightly: paused\n"
    assert on("pause", "nightly")[1] == "schedule nightly: paused, as before\n"
    applied(on, cron="0 5 1 1 *")
    assert kube.get("CronJob", "nightly")["spec"]["suspend"] is True
    assert json.loads(on("list", "-o", "json")[1])[0]["next"] is None
    assert on("resume", "nightly")[1] == "schedule nightly: active\n"
    assert json.loads(on("list", "-o", "json")[1])[0]["next"].endswith("-01-01T05:00:00+00:00")


def test_two_presses_start_one_firing_and_none_starts_beside_it(on: Command, kube: Kube) -> None:
    applied(on)
    now = datetime(2026, 11, 22, 3, 0, 10, tzinfo=UTC)
    first = schedule.run_now(kube, "nightly", now=now)
    live = schedule.find(kube, "nightly")
    (job,) = kube.list("Job").items
    assert job["metadata"]["name"] == first
    assert schedule.owned_by(job, live["metadata"]["uid"])
    code, _, stderr = on("run-now", "nightly")
    assert code == 2
    assert f"schedule nightly: {first} is running, two firings never overlap" in stderr
    end(kube, first, "Complete")
    assert schedule.run_now(kube, "nightly", now=now + timedelta(seconds=40)) == first
    assert len(kube.list("Job").items) == 1
    code, stdout, _ = on("run-now", "nightly", "-o", "json")
    sent = json.loads(stdout)
    assert code == 0
    assert sent["run_id"] == f"wine-{sent['firing']}"
    assert len(kube.list("Job").items) == 2


@pytest.mark.parametrize(
    ("kind", "message", "outcome"),
    [
        ("Complete", "", "passed"),
        ("Failed", "Container wait for pod x failed with exit code 3 matching FailJob rule at index 1", "held"),
        ("Failed", "Container wait for pod x failed with exit code 5 matching FailJob rule at index 1", "training"),
        ("Failed", "Job has reached the specified backoff limit", "failed"),
        ("", "", "running"),
    ],
)
def test_the_list_says_how_the_last_firing_ended(
    on: Command, kube: Kube, kind: str, message: str, outcome: str
) -> None:
    applied(on)
    firing = schedule.run_now(kube, "nightly", now=datetime.now(UTC))
    if kind:
        end(kube, firing, kind, message)
    if kind == "Complete":
        finished(kube, f"wine-{firing}")
    (row,) = json.loads(on("list", "-o", "json")[1])
    assert row["last"]["firing"] == firing
    assert row["last"]["outcome"].startswith(outcome)
    assert f" {outcome}" in on("list")[1]


def finished(kube: Kube, name: str) -> None:
    """The run of a firing, at its end."""
    spec = {"entrypoint": "true", "rayClusterSpec": launch_spec(kube)}
    key, value = names.MANAGED_BY
    meta = {"name": name, "namespace": kube.namespace, "labels": {key: value}}
    kube.create({"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": meta, "spec": spec})
    status = {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}
    kube.patch("RayJob", name, {"status": status}, part="status")


def launch_spec(kube: Kube) -> Any:
    from graceful.launch.kuberay import manifests

    made = manifests.rayjob(launch.job(), launch.cluster(namespace=kube.namespace))
    return made["spec"]["rayClusterSpec"]


def test_a_firing_that_found_nothing_new_is_told_from_one_that_passed(
    on: Command, cluster: Cluster, kube: Kube
) -> None:
    pki = Path(cluster.env["KUBECONFIG"]).parent / "pki"
    if not (pki / "kubelet.crt").is_file():
        pytest.skip("no certificate for a node of ours: this is not the test bed")
    applied(on)
    firing = schedule.run_now(kube, "nightly", now=datetime.now(UTC))
    end(kube, firing, "Complete")
    run, node = f"wine-{firing}", f"node-{kube.namespace}"
    finished(kube, run)
    said = Outcome(exit_code=0, message=f"{SKIPPED}no new data since wine@1 (sha256 ab12)").line()
    labels = {names.RUN_ID: run, names.ROLE: "submitter"}
    meta = {"name": "submitter", "namespace": kube.namespace, "labels": labels}
    spec = {"nodeName": node, "containers": [{"name": "c", "image": "localhost/nowhere:1"}]}
    with log_server(kube, pki, node=node, logs={"submitter": [f"2026-11-22T13:00:00.5Z {said}"]}, cuts=[]):
        kube.create({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec})
        kube.patch("Pod", "submitter", {"status": {"phase": "Succeeded"}}, part="status")
        (row,) = json.loads(on("list", "-o", "json")[1])
        assert "skipped: no new data since wine@1 (sha256 ab12)  active" in on("list")[1]
    assert row["last"]["outcome"] == "skipped"


def test_delete_takes_documents_and_finished_firings_and_leaves_what_runs(on: Command, kube: Kube) -> None:
    applied(on)
    done = schedule.run_now(kube, "nightly", now=datetime(2026, 11, 22, 3, tzinfo=UTC))
    end(kube, done, "Complete")
    running = schedule.run_now(kube, "nightly", now=datetime(2026, 11, 22, 4, tzinfo=UTC))
    code, stdout, stderr = on("delete", "nightly")
    assert (code, stdout) == (0, "schedule nightly: deleted\n")
    assert f"{running} still runs" in stderr
    assert [job["metadata"]["name"] for job in kube.list("Job").items] == [running]
    (config,) = configs(kube)
    assert [owner["name"] for owner in config["metadata"]["ownerReferences"]] == [running]
    assert on("delete", "nightly")[0] == 2


def test_a_change_leaves_a_running_firing_what_it_reads(on: Command, kube: Kube) -> None:
    applied(on)
    (before,) = configs(kube)
    schedule.run_now(kube, "nightly", now=datetime(2026, 11, 22, 3, tzinfo=UTC))
    applied(on, "--set", "train.epochs=9")
    assert {before["metadata"]["name"]} < {item["metadata"]["name"] for item in configs(kube)}


@pytest.fixture
def chart(cluster: Cluster, kube: Kube) -> Iterator[None]:
    """The chart's CronJobs, nightly and release, in the test's namespace."""
    where = [f"--kube-context={cluster.context}", f"--namespace={kube.namespace}"]
    values = f"--values={ROOT}/helm/graceful/ci/kuberay-values.yaml"
    rendered = subprocess.run(
        ["helm", "template", "rel", str(ROOT / "helm/graceful"), values, *where],
        env=cluster.env,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout
    for document in yaml.safe_load_all(rendered):
        if document and document["kind"] == "CronJob":
            kube.create(document)
    return


def test_the_charts_schedules_are_listed_paused_and_fired_but_not_changed(on: Command, kube: Kube, chart: None) -> None:
    rows = {row["schedule"]: row for row in json.loads(on("list", "-o", "json")[1])}
    assert {name: row["chart"] for name, row in rows.items()} == {"nightly": "rel", "release": "rel"}
    assert rows["nightly"]["next"] is not None
    assert rows["release"]["paused"] is True
    assert on("pause", "nightly")[0] == 0
    assert kube.get("CronJob", rows["nightly"]["cronjob"])["spec"]["suspend"] is True
    code, stdout, _ = on("run-now", "nightly", "-o", "json")
    assert code == 0
    assert json.loads(stdout)["run_id"].startswith("glyphs-rel-graceful-nightly-")
    for words in (("delete", "nightly"), ("apply", "nightly", str(SPEC), "--cron", "@daily")):
        code, _, stderr = on(*words)
        assert code == 2
        assert "is of the Helm release rel; change its values" in stderr
    assert len(kube.list("CronJob").items) == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("apply", "nightly", str(SPEC), "--cron", "0 25 * * *"), "cron '0 25 * * *': hour '25': must be from 0 to 23"),
        (("apply", "nightly", str(SPEC), "--cron", "@daily", "--time-zone", "Mars"), "time zone 'Mars': not known"),
        (("apply", "Nightly", str(SPEC), "--cron", "@daily"), "schedule 'Nightly': must be lower case"),
        (("apply", "nightly", "nowhere.yaml", "--cron", "@daily"), "nowhere.yaml: no such spec file"),
        (("pause", "weekly"), "no schedule 'weekly' in namespace"),
        (("run-now", "weekly"), "no schedule 'weekly' in namespace"),
    ],
)
def test_what_is_wrong_is_refused_in_one_line_and_nothing_is_sent(
    on: Command, kube: Kube, words: tuple[str, ...], said: str
) -> None:
    code, stdout, stderr = on(*words)
    assert (code, stdout) == (2, "")
    assert said in stderr
    assert stderr.count("\n") == 1
    assert kube.list("CronJob").items == ()


def test_our_reading_of_cron_takes_nothing_that_the_server_refuses(on: Command, kube: Kube) -> None:
    for cron in ("*/7 1-5/2 1,15 jan-MAR sun", "0 3 ? * *", "@yearly", "5/10 * * * MON-fri"):
        applied(on, cron=cron)
        assert kube.get("CronJob", "nightly")["spec"]["schedule"] == cron


def test_two_schedules_of_one_name_are_told_apart_by_their_cronjobs(on: Command, kube: Kube, chart: None) -> None:
    twin = kube.get("CronJob", "rel-graceful-nightly")
    meta = {key: twin["metadata"][key] for key in ("labels", "namespace")} | {"name": "other-nightly"}
    kube.create({"apiVersion": "batch/v1", "kind": "CronJob", "metadata": meta, "spec": twin["spec"]})
    with pytest.raises(SpecError, match="use the CronJob's: other-nightly, rel-graceful-nightly"):
        schedule.find(kube, "nightly")
    assert schedule.find(kube, "other-nightly")["metadata"]["name"] == "other-nightly"
