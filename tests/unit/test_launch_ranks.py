"""How ranks fill pods: what KubeRay is sent, what a plan shows, what it refuses, and what the driver asks Ray for."""

from __future__ import annotations

import json
from typing import Any

import pytest

from graceful.environment import RANK_VARIABLE, WORKERS_VARIABLE
from graceful.errors import SpecError
from graceful.launch.backend import Severity
from graceful.launch.job import Resources
from graceful.launch.kuberay import manifests, pod_templates
from graceful.launch.kuberay.backend import KubeRayBackend
from graceful.spec import Train, parse
from graceful.training import rank_resources
from tests.support.launch import cluster, job

BIG = {"cpu": 32, "memory": "256Gi", "gpu": 8}


def group(workers: int, **worker: Any) -> dict[str, Any]:
    rayjob = manifests.rayjob(job(workers=workers), cluster(worker=worker))
    (only,) = rayjob["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    return dict(only)


def asked(workers: int, **worker: Any) -> dict[str, float]:
    rayjob = manifests.rayjob(job(workers=workers), cluster(worker=worker))
    head = rayjob["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    return dict(json.loads({item["name"]: item["value"] for item in head["env"]}[RANK_VARIABLE]))


@pytest.mark.parametrize(
    ("workers", "worker", "pods", "per_pod", "cpus"),
    [
        (2, {"cpu": 2}, 2, 1, 2),
        (8, BIG, 1, 8, 4),
        (16, BIG, 2, 8, 4),
        (2, {"cpu": 2, "ranks": 2}, 1, 2, 1),
        (2, {"cpu": "500m", "ranks": 2}, 1, 2, 0.5),
        (1, {"cpu": 8, "ranks": 4}, 1, 1, 8),
        (3, {"cpu": 8, "ranks": 3}, 1, 3, 2),
    ],
)
def test_pods_hold_as_many_ranks_as_they_have_accelerators(
    workers: int, worker: dict[str, Any], pods: int, per_pod: int, cpus: float
) -> None:
    found = group(workers, **worker)
    assert (found["replicas"], found["minReplicas"], found["maxReplicas"]) == (pods, pods, pods)
    assert found["resources"] == {"rank": str(per_pod)}
    assert asked(workers, **worker) == {"CPU": cpus, "rank": 1}


@pytest.mark.parametrize(
    ("worker", "size"),
    [
        ({"cpu": 2}, None),
        (BIG, "64Gi"),
        ({**BIG, "shm": "16Gi"}, "16Gi"),
        ({"cpu": 2, "memory": "3Gi", "ranks": 2}, "768Mi"),
        ({"shm": "1Gi"}, "1Gi"),
    ],
)
def test_processes_of_one_pod_share_memory(worker: dict[str, Any], size: str | None) -> None:
    pod = group(8, **worker)["template"]["spec"]
    volumes = [volume["emptyDir"] for volume in pod["volumes"] if volume["name"] == "shared-memory"]
    mounts = [mount["name"] for mount in pod["containers"][0]["volumeMounts"] if mount["mountPath"] == "/dev/shm"]
    assert volumes == ([] if size is None else [{"medium": "Memory", "sizeLimit": size}])
    assert mounts == ([] if size is None else ["shared-memory"])


def test_what_a_rank_needs_at_least_is_given_to_each_rank_of_a_pod() -> None:
    needs = job(workers=4, resources=Resources(cpu=3.0, memory=4 * 2**30))
    pod = pod_templates.worker(needs, cluster(worker={"cpu": 8, "memory": "64Gi", "ranks": 4}))
    assert (pod.cpu, pod.memory) == ("12", "64Gi")


@pytest.mark.parametrize(
    ("workers", "worker", "rule", "severity", "says"),
    [
        (12, BIG, "uneven-ranks", Severity.ERROR, "12 processes do not fill pods of 8"),
        (8, {**BIG, "ranks": 16}, None, None, ""),
        (16, {**BIG, "ranks": 16}, "shared-gpu", Severity.ERROR, "16 processes in a pod of 8 accelerators"),
        (4, BIG, "idle-gpu", Severity.WARNING, "of which 4 stay idle"),
        (2, {"gpu": 2, "gpu_resource": "nvidia.com/mig-1g.5gb"}, "several-slices", Severity.ERROR, "one of them alone"),
        (2, {"memory": "4Gi", "shm": "4Gi"}, "shared-memory", Severity.ERROR, "counts as memory of the pod"),
        (8, BIG, None, None, ""),
    ],
)
def test_ranks_that_do_not_fit_are_said_in_the_plan(
    workers: int, worker: dict[str, Any], rule: str | None, severity: Severity | None, says: str
) -> None:
    planned = KubeRayBackend(profile=cluster(worker=worker), connect=None).plan(job(workers=workers))
    rules = {"uneven-ranks", "shared-gpu", "idle-gpu", "several-slices", "shared-memory"}
    found = [finding for finding in planned.findings if finding.rule in rules]
    assert [(finding.rule, finding.severity) for finding in found] == ([] if rule is None else [(rule, severity)])
    assert all(says in finding.message for finding in found)


def test_the_plan_draws_ranks_and_pods() -> None:
    planned = KubeRayBackend(profile=cluster(worker=BIG), connect=None).plan(job(workers=16))
    assert planned.notes[:3] == (
        "16 ranks in 2 pods, each rank with 4 cores, 32 GiB, 1 accelerator; /dev/shm 64Gi in each pod",
        "  pod 0: ranks 0-7, 8 nvidia.com/gpu",
        "  pod 1: ranks 8-15, 8 nvidia.com/gpu",
    )
    assert planned.gpus == 16


@pytest.mark.parametrize(
    ("resource", "known_to_kuberay"),
    [
        ("nvidia.com/gpu", True),
        ("amd.com/gpu", True),
        ("nvidia.com/mig-1g.5gb", True),
        ("nvidia.com/mig-1g.5gb.me", False),
        ("nvidia.com/gpu.shared", False),
        ("amd.com/cpx_nps4", False),
    ],
)
def test_accelerators_of_any_name_are_planned_and_told_to_ray(resource: str, *, known_to_kuberay: bool) -> None:
    worker = {"gpu": 1, "gpu_resource": resource}
    planned = KubeRayBackend(profile=cluster(worker=worker), connect=None).plan(job(workers=2))
    assert planned.gpus == 2
    assert not planned.errors
    found = group(2, **worker)
    assert found["template"]["spec"]["containers"][0]["resources"]["limits"][resource] == "1"
    assert found["resources"] == {"rank": "1"} | ({} if known_to_kuberay else {"GPU": "1"})


def test_devices_that_training_does_not_use_are_refused() -> None:
    with pytest.raises(SpecError, match=r"gpu_resource.*must end in gpu or be of nvidia.com or amd.com.*gaudi"):
        cluster(worker={"gpu": 1, "gpu_resource": "habana.ai/gaudi"})


@pytest.mark.parametrize("level", ["required", "preferred"])
def test_workers_ask_kueue_for_a_topology(level: str) -> None:
    rack = "cloud.provider.com/topology-rack"
    worker = {"topology": {level: rack}}
    planned = KubeRayBackend(profile=cluster(queue="team", worker=worker), connect=None).plan(job())
    spec = planned.documents[-1]["spec"]["rayClusterSpec"]
    wanted = {f"kueue.x-k8s.io/podset-{level}-topology": rack}
    assert spec["workerGroupSpecs"][0]["template"]["metadata"]["annotations"] == wanted
    assert not any("topology" in key for key in spec["headGroupSpec"]["template"]["metadata"]["annotations"])
    assert "topology-without-queue" not in {finding.rule for finding in planned.findings}
    with pytest.raises(SpecError, match=r"worker.topology in profile: must have either `required` or `preferred`"):
        cluster(worker={"topology": {"required": rack, "preferred": rack}})


@pytest.mark.parametrize(
    ("disk", "source"),
    [
        ({"size": "500Gi"}, {"emptyDir": {"sizeLimit": "500Gi"}}),
        (
            {"size": "1Ti", "storage_class": "local-nvme"},
            {"ephemeral": {"volumeClaimTemplate": {"spec": {
                "accessModes": ["ReadWriteOnce"],
                "storageClassName": "local-nvme",
                "resources": {"requests": {"storage": "1Ti"}},
            }}}},
        ),
    ],
)  # fmt: skip
def test_runs_and_caches_may_lie_on_a_disk_of_the_node(disk: dict[str, str], source: dict[str, Any]) -> None:
    profile = cluster(storage={"uri": "s3://b/p"}, worker={"local_disk": disk})
    rayjob = manifests.rayjob(job(), profile)
    (only,) = rayjob["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert {"name": "runs", **source} in only["template"]["spec"]["volumes"]
    head = rayjob["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    assert {"name": "runs", "emptyDir": {}} in head["volumes"]
    assert KubeRayBackend(profile=profile, connect=None).plan(job()).errors == ()
    with pytest.raises(SpecError, match=r"storage.claim and local_disk both say"):
        cluster(head={"local_disk": disk})


def test_the_driver_asks_ray_for_what_the_plan_gave_a_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rank_resources.per_rank(use_gpu=True) == {"CPU": 1.0, "GPU": 1.0}
    monkeypatch.setenv(RANK_VARIABLE, json.dumps(asked(16, **BIG)))
    assert rank_resources.per_rank(use_gpu=True) == {"CPU": 4.0, "rank": 1.0, "GPU": 1.0}
    two_pods = {"CPU": 64.0, "GPU": 16.0, "rank": 16.0}
    assert rank_resources.fitting(two_pods, use_gpu=True) == 16
    assert rank_resources.fitting({**two_pods, "rank": 8.0}, use_gpu=True) == 8
    assert rank_resources.groups(two_pods, size=4, use_gpu=True) == 4
    assert rank_resources.groups({"CPU": 1.0}, size=4, use_gpu=False) == 1
    options = rank_resources.actor_options(use_gpu=True)
    assert options == {"num_cpus": 4.0, "num_gpus": 1.0, "resources": {"rank": 1.0}}
    monkeypatch.setenv(RANK_VARIABLE, "[1]")
    with pytest.raises(SpecError, match=RANK_VARIABLE):
        rank_resources.per_rank(use_gpu=False)


def test_a_run_may_have_another_number_of_processes_than_its_spec(monkeypatch: pytest.MonkeyPatch) -> None:
    train = Train(num_workers=2, batch_size=16)
    assert rank_resources.workers(train) == 2
    monkeypatch.setenv(WORKERS_VARIABLE, "4")
    assert rank_resources.workers(train) == 4
    assert rank_resources.workers(Train(num_workers=0)) == 0, "without Ray there are none"
    for wrong in ("3", "0", "many"):
        monkeypatch.setenv(WORKERS_VARIABLE, wrong)
        with pytest.raises(SpecError, match=f"GRACEFUL_WORKERS={wrong}: must be a number of processes"):
            rank_resources.workers(train)


def test_an_elastic_run_has_a_number_of_workers_by_which_batches_are_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    train = Train.model_validate({"num_workers": {"min": 2, "max": 8}, "batch_size": 48, "accumulation": 2})
    assert (train.num_workers, train.min_workers) == (8, 2)
    assert Train.model_validate(train.model_dump()) == train
    assert rank_resources.allowed(train) == [2, 3, 4, 6, 8]
    monkeypatch.setenv(WORKERS_VARIABLE, "6")
    assert rank_resources.allowed(train) == [6], "a person said so"


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"num_workers": {"min": 3, "max": 2}}, "train.min_workers in .*: must be at most num_workers = 2, got 3"),
        ({"num_workers": {"min": 1}}, r"train.num_workers in .*: must be a number or \{min: 1, max: 4\}, got"),
        (
            {"num_workers": {"min": 1, "max": 2}, "engine": {"zero_stage": 3}},
            "with zero_stage 3, whose checkpoints keep",
        ),
    ],
)
def test_ranges_of_workers_that_cannot_be_are_refused(train: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse({"model": "m", "name": "v1", "task": {"kind": "digits"}, "train": train})
