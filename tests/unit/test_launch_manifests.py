"""What KubeRay is sent: golden documents, hardening of every pod, and the facts that retries and resumption rest on."""

from __future__ import annotations

import inspect
import json
import string
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graceful import documents
from graceful.errors import SpecError
from graceful.launch import names, plan, profile
from graceful.launch.job import Resources
from graceful.launch.kuberay import cronjob, manifests
from graceful.launch.kuberay.profile import KubeRay
from tests.support.launch import cluster, job

ROOT = Path(__file__).parents[2]
Golden = Callable[[str, str], None]


def pods(rayjob: dict[str, Any]) -> Iterator[dict[str, Any]]:
    spec = rayjob["spec"]
    yield spec["submitterPodTemplate"]
    yield spec["rayClusterSpec"]["headGroupSpec"]["template"]
    for group in spec["rayClusterSpec"]["workerGroupSpecs"]:
        yield group["template"]


def variables(pod: dict[str, Any]) -> dict[str, str]:
    return {item["name"]: item["value"] for item in pod["spec"]["containers"][0]["env"]}


@pytest.mark.parametrize("name", ["kind", "gpu-spot", "queue"])
def test_golden_manifests(name: str, golden: Golden) -> None:
    chosen = profile.load(name, folder=ROOT / "cluster")
    assert isinstance(chosen, KubeRay)
    golden(f"launch/{name}.yaml", plan.as_yaml(*manifests.render(job(), chosen)))


def test_ray_accepts_how_every_group_starts() -> None:
    """The options of `ray start`, read by its own parser and checked as it checks them; a node learns it only then."""
    from ray._private.parameter import RayParams
    from ray.scripts.scripts import start

    *_, rayjob = manifests.render(job(), cluster())
    spec = rayjob["spec"]["rayClusterSpec"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        given = group["rayStartParams"]
        read = start.make_context("start", [f"--{name}={value}" for name, value in given.items()]).params
        options = {name.replace("-", "_") for name in given} & inspect.signature(RayParams).parameters.keys()
        RayParams(**{name: read[name] for name in options})
    assert spec["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}


def test_a_plan_shows_every_text_as_it_is() -> None:
    document = {"a": "one\ntwo", "b": "one\x85two\u2028three"}
    assert documents.parse(plan.as_yaml(document), where="the plan") == document


def test_the_same_run_is_the_same_documents() -> None:
    assert manifests.render(job(), cluster()) == manifests.render(job(), cluster())


def test_the_head_reads_the_very_document_from_the_configmap() -> None:
    config, rayjob = manifests.render(job(files={"task.py": "x = 1\n"}), cluster())
    assert config["data"] == {"spec.json": job().document, "task.py": "x = 1\n"}
    assert config["immutable"] is True
    for pod in list(pods(rayjob))[1:]:
        mounted = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
        assert mounted["spec"]["configMap"]["name"] == config["metadata"]["name"]
        mounts = {mount["name"]: mount["mountPath"] for mount in pod["spec"]["containers"][0]["volumeMounts"]}
        assert mounts["spec"] == "/etc/graceful"
    head = list(pods(rayjob))[1]
    assert variables(head)["GRACEFUL_RUN_SPEC"] == "/etc/graceful/spec.json"


@pytest.mark.parametrize("changes", [{"document": "{}"}, {"files": {"task.py": "x = 2\n"}}])
def test_another_content_is_another_configmap(changes: dict[str, Any]) -> None:
    before, after = (manifests.render(one, cluster())[0]["metadata"]["name"] for one in (job(), job(**changes)))
    assert before != after


def test_a_job_without_a_document_is_a_rayjob_alone() -> None:
    (rayjob,) = manifests.render(job(document=None), cluster())
    assert "GRACEFUL_RUN_SPEC" not in json.dumps(rayjob)
    assert "/etc/graceful" not in json.dumps(rayjob)


@pytest.mark.parametrize("user", [1000, 2345])
def test_every_container_meets_pod_security_restricted(user: int) -> None:
    for pod in pods(manifests.rayjob(job(), cluster(user=user))):
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] == spec["securityContext"]["fsGroup"] == user
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert all(set(volume) - {"name"} <= ALLOWED_VOLUMES for volume in spec["volumes"])
        for container in spec["containers"]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["readOnlyRootFilesystem"] is True
            assert context["capabilities"] == {"drop": ["ALL"]}
            mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
            assert {"/tmp", "/home/ray"} <= set(mounts)
            assert len(mounts) == len(set(mounts))


HEAD = {
    "node_selector": {"pool": "jobs"},
    "tolerations": [{"key": "dedicated", "operator": "Exists", "effect": "NoSchedule"}],
    "priority_class": "high",
}
PLACED = {
    "nodeSelector": {"pool": "jobs"},
    "tolerations": [{"key": "dedicated", "operator": "Exists", "effect": "NoSchedule"}],
    "priorityClassName": "high",
}


@pytest.mark.parametrize(
    ("submitter", "expected"),
    [
        ({}, PLACED),
        ({"node_selector": {}, "tolerations": []}, {"priorityClassName": "high"}),
        ({"node_selector": {"pool": "small"}}, {**PLACED, "nodeSelector": {"pool": "small"}}),
    ],
)
def test_pods_that_submit_are_placed_as_the_head_unless_the_profile_says_otherwise(
    submitter: dict[str, Any], expected: dict[str, Any]
) -> None:
    chosen = cluster(head=HEAD, submitter={**submitter, "memory": "2Gi", "env": {"HTTPS_PROXY": "http://proxy:3128"}})
    planned = cronjob.Schedule(
        name="nightly", cron="0 3 * * *", time_zone="UTC", model="glyphs", document={}, account="submitter"
    )
    scheduled = cronjob.render(planned, chosen)[1]["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    for spec in (manifests.rayjob(job(), chosen)["spec"]["submitterPodTemplate"]["spec"], scheduled):
        assert {key: spec[key] for key in PLACED if key in spec} == expected
        for container in (*spec["containers"], *spec.get("initContainers", ())):
            assert container["resources"]["limits"] == {"cpu": "1", "memory": "2Gi"}
            assert container["resources"]["requests"] == {"cpu": "100m", "memory": "1Gi"}
            assert {"name": "HTTPS_PROXY", "value": "http://proxy:3128"} in container["env"]


ALLOWED_VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}


def test_pods_carry_the_labels_that_a_rayjob_does_not_pass_on() -> None:
    rayjob = manifests.rayjob(job(), cluster())
    roles = []
    for pod in pods(rayjob):
        assert pod["metadata"]["labels"][names.RUN_ID] == "glyphs-v2"
        roles.append(pod["metadata"]["labels"][names.ROLE])
    assert roles == ["submitter", "head", "rank"]


def test_a_node_is_drained_before_it_is_killed() -> None:
    for pod in list(pods(manifests.rayjob(job(), cluster())))[1:]:
        drain = float(variables(pod)["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
        assert pod["spec"]["terminationGracePeriodSeconds"] > drain


def test_a_job_without_workers_has_no_worker_group() -> None:
    assert manifests.rayjob(job(workers=0), cluster())["spec"]["rayClusterSpec"]["workerGroupSpecs"] == []


def test_the_number_of_workers_is_fixed() -> None:
    (group,) = manifests.rayjob(job(workers=5), cluster())["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert group["replicas"] == group["minReplicas"] == group["maxReplicas"] == 5


def test_requests_equal_limits_and_accelerators_are_in_both() -> None:
    rayjob = manifests.rayjob(
        job(), cluster(worker={"cpu": 8, "memory": "64Gi", "gpu": 2, "gpu_resource": "amd.com/gpu"})
    )
    resources = list(pods(rayjob))[2]["spec"]["containers"][0]["resources"]
    assert resources["requests"] == resources["limits"] == {"cpu": "8", "memory": "64Gi", "amd.com/gpu": "2"}
    assert "DS_ACCELERATOR" not in variables(list(pods(rayjob))[2])


def test_without_accelerators_deepspeed_is_told_so() -> None:
    assert all(variables(pod)["DS_ACCELERATOR"] == "cpu" for pod in list(pods(manifests.rayjob(job(), cluster())))[1:])


def test_a_job_raises_the_profiles_worker_and_never_lowers_it() -> None:
    needs = Resources(cpu=2.5, memory=1024**3)
    (group,) = manifests.rayjob(job(resources=needs), cluster())["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits == {"cpu": "2500m", "memory": "4Gi"}


def test_the_jobs_wishes_win_over_the_profiles_defaults() -> None:
    rayjob = manifests.rayjob(
        job(image="other:1", retries=0, deadline=60, queue="fast", env={"A": "job"}),
        cluster(queue="slow", retries={"job": 3}, deadlines={"run": 99}, env={"A": "profile", "B": "profile"}),
    )
    assert {pod["spec"]["containers"][0]["image"] for pod in pods(rayjob)} == {"other:1"}
    assert rayjob["spec"]["backoffLimit"] == 0
    assert rayjob["spec"]["activeDeadlineSeconds"] == 60
    assert rayjob["metadata"]["labels"][names.QUEUE] == "fast"
    head = variables(list(pods(rayjob))[1])
    assert (head["A"], head["B"]) == ("job", "profile")


def test_secrets_are_named_never_copied() -> None:
    rayjob = manifests.rayjob(job(), cluster(env_from_secrets=["s3"], mlflow={"token_secret": "mlflow"}))
    submitter, head, rank = pods(rayjob)
    wanted = [{"secretRef": {"name": "s3"}}, {"secretRef": {"name": "mlflow"}}]
    assert head["spec"]["containers"][0]["envFrom"] == rank["spec"]["containers"][0]["envFrom"] == wanted
    assert "envFrom" not in submitter["spec"]["containers"][0]


def test_facts_become_annotations_and_the_image_names_its_digest() -> None:
    annotations = manifests.rayjob(job(labels={"config-hash": "abc", "user": "ann"}), cluster())["metadata"][
        "annotations"
    ]
    assert annotations[names.CONFIG_HASH] == "abc"
    assert annotations["graceful.dev/user"] == "ann"
    assert annotations["graceful.dev/image-digest"] == "sha256:" + "0" * 64
    assert annotations[names.RUN_ID] == "glyphs-v2"


def test_without_a_given_digest_the_content_is_the_config_hash() -> None:
    hashes = {
        manifests.rayjob(job(labels={}, document=text), cluster())["metadata"]["annotations"][names.CONFIG_HASH]
        for text in ("{}", "{ }", "{}")
    }
    assert len(hashes) == 2


@pytest.mark.parametrize(
    "character", sorted(set(string.printable) - set(string.ascii_letters + string.digits + "_./:=,@%+-"))
)
def test_a_command_that_a_shell_would_read_is_refused(character: str) -> None:
    with pytest.raises(SpecError, match="a shell would read it"):
        manifests.entrypoint(("python", f"a{character}b"))


@settings(deadline=None)
@given(st.lists(st.text(alphabet=string.ascii_letters + string.digits + "_./:=,@%+-", min_size=1), min_size=1))
def test_a_plain_command_is_pasted_as_it_is(words: list[str]) -> None:
    assert manifests.entrypoint(tuple(words)).split(" ") == words


def test_a_driver_that_trains_alone_has_no_accelerator() -> None:
    head = list(pods(manifests.rayjob(job(workers=0), cluster(worker={"gpu": 1}))))[1]
    assert variables(head)["DS_ACCELERATOR"] == "cpu"


def test_a_document_that_no_configmap_holds_is_refused_before_it_is_sent() -> None:
    with pytest.raises(SpecError, match="a ConfigMap at most 1000000"):
        manifests.render(job(document="x" * 1_000_001), cluster())
