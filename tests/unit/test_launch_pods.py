"""What a profile says about pods reaches their templates, and what would break them is refused."""

from __future__ import annotations

from typing import Any

import pytest

from graceful.errors import SpecError
from graceful.launch.kuberay import lint, manifests, overrides, preflight, validate
from graceful.launch.kuberay.cronjob import Schedule, render
from graceful.launch.kubernetes import nodes
from tests.support.launch import cluster, job

Json = dict[str, Any]
FIRING = Schedule(name="nightly", cron="0 3 * * *", time_zone="Etc/UTC", model="glyphs", document={}, account="a")


def templates(**profile: Any) -> dict[str, Json]:
    """The templates of a job's pods by role, and of a schedule's."""
    found = cluster(**profile)
    rayjob = manifests.rayjob(job(), found)
    assert validate.validate(rayjob) == ()
    scheduled = render(FIRING, found)[1]["spec"]["jobTemplate"]["spec"]["template"]
    return {**dict(preflight.pods(rayjob)), "scheduled": scheduled}


def test_settings_of_all_pods_reach_each_and_those_of_a_role_win() -> None:
    found = templates(
        pods={
            "labels": {"team": "vision"},
            "annotations": {"linkerd.io/inject": "disabled"},
            "overrides": {"spec": {"containers": [{"name": "main", "env": [{"name": "TIER", "value": "all"}]}]}},
        },
        worker={"labels": {"team": "ranks"}, "overrides": {"spec": {"schedulerName": "volcano"}}},
        scheduled={"annotations": {"linkerd.io/inject": "enabled"}, "memory": "2Gi"},
    )
    assert {role: template["metadata"]["labels"]["team"] for role, template in found.items()} == {
        "head": "vision", "worker": "ranks", "submitter": "vision", "scheduled": "vision",
    }  # fmt: skip
    for template in found.values():
        for container in template["spec"]["containers"]:
            assert {"name": "TIER", "value": "all"} in container["env"]
    assert {"name": "TIER", "value": "all"} in found["scheduled"]["spec"]["initContainers"][0]["env"]
    assert found["scheduled"]["metadata"]["annotations"] == {"linkerd.io/inject": "enabled"}
    assert found["scheduled"]["spec"]["containers"][0]["resources"]["limits"]["memory"] == "2Gi"
    assert found["worker"]["spec"]["schedulerName"] == "volcano"
    assert "schedulerName" not in found["head"]["spec"]


def test_proxies_and_certificates_reach_every_pod() -> None:
    proxy = {"https": "http://proxy:3128", "direct": [".corp"]}
    for template in templates(proxy=proxy, ca_bundle={"config_map": "corp-ca"}).values():
        (container, *_) = template["spec"]["containers"]
        env = {item["name"]: item.get("value") for item in container["env"]}
        assert env["HTTPS_PROXY"] == "http://proxy:3128"
        assert env["NO_PROXY"].split(",")[-3:] == [".cluster.local", "$(KUBERNETES_SERVICE_HOST)", ".corp"]
        assert env["REQUESTS_CA_BUNDLE"] == env["AWS_CA_BUNDLE"] == "/etc/graceful-ca/ca.crt"
        assert {"name": "trusted-certificates", "configMap": {"name": "corp-ca"}} in template["spec"]["volumes"]
        assert any(mount["mountPath"] == "/etc/graceful-ca" for mount in container["volumeMounts"])


def test_the_cluster_may_choose_the_user() -> None:
    for template in templates(user=None).values():
        assert template["spec"]["securityContext"]["runAsNonRoot"] is True
        assert not {"runAsUser", "runAsGroup", "fsGroup"} & set(template["spec"]["securityContext"])
        assert {"name": "USER", "value": "ray"} in template["spec"]["containers"][0]["env"]


def test_what_an_override_adds_is_hardened_and_what_it_weakens_is_a_finding() -> None:
    sidecar = {"name": "watch", "image": "x:1", "restartPolicy": "Always"}
    rayjob = manifests.rayjob(job(), cluster(worker={"overrides": {"spec": {"initContainers": [sidecar]}}}))
    (added,) = dict(preflight.pods(rayjob))["worker"]["spec"]["initContainers"]
    assert added["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert not [finding for finding in lint.lint(rayjob) if finding.rule == "weak-security"]
    weak = {"overrides": {"spec": {"containers": [{"name": "main", "securityContext": {"privileged": True}}]}}}
    (finding,) = [
        found for found in lint.lint(manifests.rayjob(job(), cluster(head=weak))) if found.rule == "weak-security"
    ]
    assert finding.where.endswith("headGroupSpec.template.spec.containers.0.securityContext.privileged")


@pytest.mark.parametrize(
    ("section", "spec", "told"),
    [
        ("submitter", {"containers": [{"name": "proxy", "image": "x"}]}, "proxy would keep the pod from ending"),
        ("pods", {"containers": [{"name": "proxy", "image": "x"}]}, "write it under initContainers"),
        ("worker", {"containers": [{"name": "ray-worker", "$patch": "delete"}]}, "ray-worker must stay"),
        ("worker", {"containers": [{"image": "x"}]}, "profile.worker.overrides.spec.containers.0: an item of"),
        ("worker", {"volumes": {"name": "x"}}, "profile.worker.overrides.spec.volumes: must be a list"),
        (
            "worker",
            {"containers": [{"name": "main", "resources": {"limits": {"memory": "4gb"}}}]},
            "resources.limits.memory: must be a quantity such as",
        ),
    ],
)
def test_what_would_break_a_pod_is_refused(section: str, spec: Json, told: str) -> None:
    with pytest.raises(SpecError, match=told.replace(".", r"\.")):
        manifests.rayjob(job(), cluster(**{section: {"overrides": {"spec": spec}}}))


def test_a_misspelt_field_of_an_override_is_named() -> None:
    rayjob = manifests.rayjob(job(), cluster(worker={"overrides": {"spec": {"afinity": {}}}}))
    (finding,) = validate.validate(rayjob)
    assert finding.message == "unknown field, did you mean affinity?"


def test_a_volume_replaces_ours_and_null_removes_a_key() -> None:
    base = {"spec": {"volumes": [{"name": "runs", "emptyDir": {}}, {"name": "tmp", "emptyDir": {}}], "a": 1}}
    patch = {"spec": {"volumes": [{"name": "runs", "nfs": {"server": "s", "path": "/"}}], "a": None}}
    assert overrides.merged(base, patch, where="x") == {
        "spec": {"volumes": [{"name": "runs", "nfs": {"server": "s", "path": "/"}}, {"name": "tmp", "emptyDir": {}}]}
    }


NODE = {
    "metadata": {"name": "n1", "labels": {"pool": "a", "cores": "16"}},
    "spec": {"taints": [{"key": "gpu", "value": "yes", "effect": "NoSchedule"}]},
    "status": {"allocatable": {"cpu": "16", "memory": "64Gi", "nvidia.com/gpu": "8"}},
}
TOLERANT = {"tolerations": [{"key": "gpu", "operator": "Exists"}]}


def _required(*expressions: Json) -> Json:
    terms = {"nodeSelectorTerms": [{"matchExpressions": list(expressions)}]}
    return {**TOLERANT, "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}}


@pytest.mark.parametrize(
    ("pod", "told"),
    [
        (TOLERANT, ""),
        ({}, "1 with taint gpu=yes:NoSchedule"),
        ({"tolerations": [{"key": "gpu", "operator": "Equal", "value": "no"}]}, "with taint"),
        ({"tolerations": [{"key": "gpu", "value": "yes", "effect": "NoSchedule"}]}, ""),
        ({**TOLERANT, "nodeSelector": {"pool": "b"}}, "1 without label pool=b"),
        (_required({"key": "pool", "operator": "In", "values": ["a", "b"]}), ""),
        (_required({"key": "pool", "operator": "NotIn", "values": ["a"]}), "outside the node affinity"),
        (_required({"key": "cores", "operator": "Gt", "values": ["8"]}), ""),
        (_required({"key": "cores", "operator": "Lt", "values": ["8"]}), "outside the node affinity"),
        (_required({"key": "zone", "operator": "Exists"}), "outside the node affinity"),
        ({**TOLERANT, "containers": [{"resources": {"limits": {"nvidia.com/gpu": "8"}}}]}, ""),
        ({**TOLERANT, "containers": [{"resources": {"requests": {"cpu": "17"}}}]}, "1 with 16 cpu, below"),
        ({**TOLERANT, "containers": [{"resources": {"requests": {"rdma/hca": "1"}}}]}, "with no rdma/hca"),
    ],
)
def test_whether_a_node_could_ever_hold_a_pod(pod: Json, told: str) -> None:
    assert bool(nodes.misfit(pod, [NODE])) == bool(told)
    assert told in nodes.misfit(pod, [NODE])
