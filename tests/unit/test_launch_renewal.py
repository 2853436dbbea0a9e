"""A failed or stopped run resumes with what its profile says today: shown, asked about, sent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from graceful.cli import following, locations
from graceful.environment import FIRING_VARIABLE
from graceful.errors import SpecError
from graceful.launch.backend import Handle, Phase
from graceful.launch.job import JobSpec
from graceful.launch.kuberay import manifests, renewal, runs
from graceful.launch.kuberay.backend import KubeRayBackend
from tests.support.launch import Server, cluster, job
from tests.unit.test_launch_gc import FAILED, RUNNING, Memory, kube

DOCUMENT = json.dumps({"model": "glyphs", "train": {"num_workers": 2, "use_gpu": None}})
HANDLE = Handle(scheme="kuberay", location="team-a", name="glyphs-v2")


def sent(memory: Memory, status: dict[str, Any], *, one: JobSpec | None = None, **profile: Any) -> None:
    config, rayjob = manifests.render(one or job(document=DOCUMENT), cluster(**profile))
    memory.namespace = rayjob["metadata"]["namespace"]
    memory.create(config)
    memory.create({**rayjob, "status": status})


def backend(memory: Memory, **profile: Any) -> KubeRayBackend:
    return KubeRayBackend(profile=cluster(**profile), connect=lambda: kube(memory))


def memory_of(rayjob: dict[str, Any]) -> str:
    (group,) = rayjob["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    return str(group["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"])


@pytest.mark.parametrize("stopped_first", [False, True])
def test_a_run_that_was_out_of_memory_resumes_with_more(stopped_first: bool) -> None:
    memory = Memory()
    sent(memory, FAILED, worker={"memory": "2Gi"})
    if stopped_first:
        runs.stop(kube(memory), "glyphs-v2")
    there = backend(memory, worker={"memory": "8Gi"}, service_account="trainer")
    lines = there.renewal(HANDLE)
    changed = [line.strip() for line in lines if line.startswith(("+", "-")) and not line.startswith(("+++", "---"))]
    assert [line for line in changed if "memory" in line and "2Gi" in line]
    assert [line for line in changed if "memory" in line and "8Gi" in line]
    assert [line for line in changed if "trainer" in line]
    resumed = there.resume(HANDLE)
    assert resumed.phase is not Phase.FAILED
    after = memory.get("RayJob", "glyphs-v2")
    assert memory_of(after) == "8Gi"
    assert after["metadata"]["annotations"]["graceful.dev/config-hash"] == "c0ffee"
    assert there.renewal(HANDLE) == (), "what was sent now is what the profile says"


def test_the_same_profile_changes_nothing_and_a_run_that_is_not_over_is_not_compared() -> None:
    memory = Memory()
    sent(memory, FAILED)
    assert backend(memory).renewal(HANDLE) == ()
    before = memory.get("RayJob", "glyphs-v2")["spec"]
    backend(memory).resume(HANDLE)
    after = memory.get("RayJob", "glyphs-v2")["spec"]
    head = after["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    head["env"] = [item for item in head["env"] if item["name"] != "GRACEFUL_RESUMES"]
    assert after == before
    running = Memory()
    sent(running, RUNNING)
    assert backend(running, worker={"memory": "8Gi"}).renewal(HANDLE) == ()


def test_what_belongs_to_the_run_is_kept() -> None:
    one = job(document=DOCUMENT, env={FIRING_VARIABLE: "nightly-1"}, files={"task.py": "x = 1"}, queue="team")
    config, rayjob = manifests.render(one, cluster())
    found = renewal.job_of(rayjob, config["data"])
    kept = ("run_id", "command", "env", "document", "files", "workers", "queue", "labels")
    assert {key: getattr(found, key) for key in kept} == {key: getattr(one, key) for key in kept}


def test_a_plan_warns_that_submitting_leaves_a_job_that_is_there() -> None:
    server, one = Server(), job(document=DOCUMENT)
    small = KubeRayBackend(profile=cluster(worker={"memory": "2Gi"}), connect=lambda: server)  # type: ignore[arg-type, return-value]  # as much of a server as planning uses
    small.submit(small.plan(one))
    large = KubeRayBackend(profile=cluster(worker={"memory": "8Gi"}), connect=lambda: server)  # type: ignore[arg-type, return-value]
    rules = [[finding.rule for finding in there.plan(one).findings] for there in (small, large)]
    assert [names.count("left-as-it-is") for names in rules] == [0, 1]


class Terminal:
    """A standard input that people sit at, or that nobody does."""

    def __init__(self, *, people: bool) -> None:
        self._people = people

    def isatty(self) -> bool:
        return self._people


def test_a_difference_is_shown_and_nobody_resumes_by_accident(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    memory = Memory()
    sent(memory, FAILED, worker={"memory": "2Gi"})
    location = locations.RunLocation(on="team")
    monkeypatch.setitem(location.__dict__, "runs", backend(memory, worker={"memory": "8Gi"}))
    monkeypatch.setattr("sys.stdin", Terminal(people=False))
    with pytest.raises(SpecError, match=r"differently than it was sent .* add --yes"):
        following.resume("kuberay://team-a/glyphs-v2", location, yes=False, output="table")
    assert "8Gi" in capsys.readouterr().err
    assert memory.deleted == []
    assert following.resume("kuberay://team-a/glyphs-v2", location, yes=True, output="table") == 0
    assert memory_of(memory.get("RayJob", "glyphs-v2")) == "8Gi"


SIXTEEN = json.dumps({"model": "glyphs", "train": {"num_workers": 2, "batch_size": 16, "accumulation": 2}})


def test_a_run_goes_on_with_another_number_of_workers_and_stays_the_same_run() -> None:
    memory = Memory()
    sent(memory, FAILED, one=job(document=SIXTEEN), worker={"cpu": 2, "ranks": 2})
    there = backend(memory, worker={"cpu": 2, "ranks": 2})
    for workers, pods in ((1, 1), (4, 2), (2, 1)):
        there.with_workers(workers).resume(HANDLE)
        after = memory.get("RayJob", "glyphs-v2")
        (group,) = after["spec"]["rayClusterSpec"]["workerGroupSpecs"]
        head = after["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
        assert group["replicas"] == pods
        assert {"name": "GRACEFUL_WORKERS", "value": str(workers)} in head["env"]
        assert after["metadata"]["annotations"]["graceful.dev/config-hash"] == "c0ffee"
        assert there.renewal(HANDLE) == (), "the number stays until another one is named"
        after["status"] = FAILED
        memory.objects["RayJob", "glyphs-v2"] = after
    with pytest.raises(SpecError, match=r"--workers 3: .*write one of 1, 2, 4, 8"):
        there.with_workers(3).resume(HANDLE)
