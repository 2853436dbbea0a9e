"""What profiles say about pods, as a real API server takes it: defaulted, admitted under `restricted`, and refused."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from graceful.launch.backend import Severity
from graceful.launch.kuberay import overrides, preflight
from graceful.launch.kuberay.backend import KubeRayBackend
from graceful.launch.kubernetes.kube import Kube
from tests.cluster.conftest import Cluster, anonymous
from tests.support import launch
from tests.support.launch import job

pytestmark = pytest.mark.cluster
Json = dict[str, Any]
ACCELERATOR = {"nvidia.com/gpu": "8", "rdma/hca": "4", "hugepages-2Mi": "2Gi"}


@pytest.fixture
def team(kube: Kube) -> Iterator[Kube]:
    """A namespace under `restricted` with what profiles name, and one node with a taint and pretended accelerators."""
    kube.patch(
        "Namespace", kube.namespace, {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
    )
    for kind, name in (
        ("ServiceAccount", "default"),
        ("ServiceAccount", "ray"),
        ("Secret", "s3"),
        ("ConfigMap", "corp-ca"),
    ):
        kube.apply(
            {"apiVersion": "v1", "kind": kind, "metadata": {"name": name, "namespace": kube.namespace}}, force=True
        )
    kube.create(
        {
            "apiVersion": "scheduling.k8s.io/v1",
            "kind": "PriorityClass",
            "metadata": {"name": kube.namespace},
            "value": 7,
        }
    )
    size = {"cpu": "64", "memory": "512Gi", "pods": "100", "ephemeral-storage": "1Ti", **ACCELERATOR}
    taint = {"key": "dedicated", "value": "gpu", "effect": "NoSchedule"}
    kube.create(
        {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": kube.namespace, "labels": {"pool": kube.namespace}},
            "spec": {"taints": [taint]},
        }
    )
    kube.patch("Node", kube.namespace, {"status": {"capacity": size, "allocatable": size}}, part="status")
    yield kube
    kube.delete("Node", kube.namespace)
    kube.delete("PriorityClass", kube.namespace)


def profile(kube: Kube, **changes: Any) -> KubeRayBackend:
    """A cluster as an administrator runs it."""
    placed = {
        "node_selector": {"pool": kube.namespace},
        "tolerations": [{"key": "dedicated", "value": "gpu", "effect": "NoSchedule"}],
        "priority_class": kube.namespace,
    }
    spread = {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway"}
    affinity = {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
        {"weight": 1, "podAffinityTerm": {"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": "x"}}}}
    ]}}  # fmt: skip
    worker = {
        **placed,
        "cpu": "8", "memory": "64Gi", "gpu": 8, "shm": "4Gi",
        "resources": {"rdma/hca": 4, "hugepages-2Mi": "1Gi", "ephemeral-storage": "20Gi"},
        "annotations": {"karpenter.sh/do-not-disrupt": "true"},
        "overrides": {"spec": {
            "affinity": affinity,
            "topologySpreadConstraints": [{**spread, "labelSelector": {"matchLabels": {"team": "vision"}}}],
            "schedulerName": "volcano",
            "terminationGracePeriodSeconds": 300,
            "initContainers": [
                {"name": "warm", "image": "busybox:1", "resources": {"limits": {"cpu": "1", "memory": "1Gi"}}},
                {"name": "watch", "image": "busybox:1", "restartPolicy": "Always"},
            ],
            "volumes": [
                {"name": "scratch", "ephemeral": {"volumeClaimTemplate": {"spec": {
                    "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Ti"}}}}}},
                {"name": "data", "csi": {"driver": "s3.csi.example.com"}},
                {"name": "keys", "projected": {"sources": [{"secret": {"name": "s3"}}]}},
            ],
            "containers": [{
                "name": "main",
                "volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}, {"name": "data", "mountPath": "/data"}],
                "resources": {"claims": [{"name": "gpus"}]},
            }],
            "resourceClaims": [{"name": "gpus", "resourceClaimTemplateName": "eight"}],
            "securityContext": {"supplementalGroups": [2000], "seLinuxOptions": {"level": "s0:c1,c2"}},
        }},
    }  # fmt: skip
    settings: Json = {
        "service_account": "ray",
        "storage": {"uri": "s3://b/p"},
        "env_from_secrets": ["s3"],
        "ca_bundle": {"config_map": "corp-ca"},
        "proxy": {"https": "http://proxy:3128"},
        "user": None,
        "pods": {"labels": {"team": "vision", "azure.workload.identity/use": "true"},
                 "annotations": {"linkerd.io/inject": "disabled"}},
        "head": {**placed, "overrides": {"spec": {"securityContext": {"runAsUser": 1000650000}}}},
        "worker": worker,
        "submitter": {"env": {"TIER": "small"}},
        **changes,
    }  # fmt: skip
    return KubeRayBackend(profile=launch.cluster(namespace=kube.namespace, **settings), connect=lambda: kube)


def admitted(kube: Kube, template: Json) -> Json:
    """The pod as admission would let it in."""
    metadata = {**template["metadata"], "name": "probe", "namespace": kube.namespace}
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
    return dict(kube.create(body, dry_run=True))


def test_every_setting_is_seen_in_pods_that_a_restricted_namespace_admits(team: Kube) -> None:
    planned = profile(team).plan(job(workers=8))
    assert [finding.line() for finding in planned.findings] == []
    assert not any("not asked" in note for note in planned.notes)
    pods = {role: admitted(team, template) for role, template in preflight.pods(planned.documents[-1])}
    for pod in pods.values():
        assert pod["spec"]["priority"] == 7
        assert pod["spec"]["nodeSelector"] == {"pool": team.namespace}
        assert pod["metadata"]["labels"]["azure.workload.identity/use"] == "true"
        env = {item["name"]: item.get("value") for item in pod["spec"]["containers"][0]["env"]}
        assert env["SSL_CERT_FILE"] == "/etc/graceful-ca/ca.crt"
        assert env["HTTPS_PROXY"] == "http://proxy:3128"
    assert pods["head"]["spec"]["securityContext"]["runAsUser"] == 1000650000
    assert pods["head"]["metadata"]["annotations"]["karpenter.sh/do-not-disrupt"] == "true"
    worker = pods["worker"]["spec"]
    container = worker["containers"][0]
    assert container["resources"]["limits"].items() >= {"rdma/hca": "4", "hugepages-2Mi": "1Gi"}.items()
    assert container["resources"]["requests"]["ephemeral-storage"] == "20Gi"
    assert {"/scratch", "/data", "/dev/shm", "/tmp"} <= {mount["mountPath"] for mount in container["volumeMounts"]}
    assert (worker["schedulerName"], worker["terminationGracePeriodSeconds"]) == ("volcano", 300)
    assert worker["topologySpreadConstraints"][0]["topologyKey"] == "kubernetes.io/hostname"
    assert worker["resourceClaims"][0]["resourceClaimTemplateName"] == "eight"
    assert [item["name"] for item in worker["initContainers"]] == ["warm", "watch"]
    assert worker["securityContext"]["seLinuxOptions"] == {"level": "s0:c1,c2"}


@pytest.mark.parametrize(
    ("changes", "rule", "told"),
    [
        ({"env_from_secrets": ["gone"]}, "absent", "profile.env_from_secrets: Secret gone is not in namespace"),
        ({"service_account": "gone"}, "absent", "profile.service_account: ServiceAccount gone is not in"),
        ({"ca_bundle": {"config_map": "gone"}}, "absent", "profile.ca_bundle.config_map: ConfigMap gone"),
        ({"head": {"priority_class": "gone"}}, "absent", "profile.head.priority_class: PriorityClass gone is not"),
        ({"storage": {"claim": "gone"}}, "absent", "profile.storage.claim: PersistentVolumeClaim gone"),
        ({"queue": "team"}, "no-kueue", "profile.queue: team, but Kueue is not installed there"),
        ({"worker": {"overrides": {"spec": {"hostNetwork": True}}}}, "pod-refused", "violates PodSecurity"),
        ({"worker": {"overrides": {"spec": {"runtimeClassName": "gone"}}}}, "pod-refused", 'RuntimeClass "gone"'),
        (
            {"worker": {"overrides": {"spec": {"containers": [
                {"name": "main", "volumeMounts": [{"name": "nowhere", "mountPath": "/x"}]}]}}}},
            "pod-refused",
            'Not found: "nowhere"',
        ),
        ({"worker": {"node_selector": {"pool": "none"}}}, "no-node", "without label pool=none"),
        ({"worker": {"cpu": 65}}, "no-node", "pod of the worker: no node of"),
    ],
)  # fmt: skip
def test_a_plan_names_what_the_cluster_lacks(team: Kube, changes: Json, rule: str, told: str) -> None:
    findings = profile(team, **changes).plan(job()).findings
    (finding,) = [found for found in findings if found.rule == rule and told in found.line()]
    assert finding.severity is (Severity.WARNING if rule == "no-node" else Severity.ERROR)


def test_a_plan_of_somebody_who_may_not_ask_says_so_and_finds_no_fault(cluster: Cluster, team: Kube) -> None:
    poor = anonymous(cluster, team, role={"ray.io": (["rayjobs"], ["get", "create", "patch"])})
    planned = KubeRayBackend(profile=profile(team).profile, connect=lambda: poor).plan(job(document=None))
    assert planned.errors == ()
    (note,) = [note for note in planned.notes if note.startswith("not asked")]
    assert note == (
        "not asked, because we may not: Secret s3, ServiceAccount ray, ConfigMap corp-ca, "
        f"PriorityClass {team.namespace}, pods by a dry run, nodes"
    )


BASE = {
    "metadata": {"labels": {"a": "1"}},
    "spec": {
        "containers": [
            {"name": "c", "image": "i", "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}],
             "volumeMounts": [{"name": "v", "mountPath": "/v"}], "ports": [{"containerPort": 1, "name": "p"}]}
        ],
        "volumes": [{"name": "v", "emptyDir": {}}],
        "tolerations": [{"key": "a", "operator": "Exists"}],
        "nodeSelector": {"x": "1"},
    },
}  # fmt: skip
PATCHES: list[Json] = [
    {"containers": [{"name": "c", "image": "j", "env": [{"name": "B", "value": "3"}, {"name": "C", "value": "4"}]}]},
    {
        "containers": [
            {"name": "c", "env": [{"name": "A", "$patch": "delete"}], "ports": None},
            {"name": "d", "image": "k"},
        ]
    },
    {"containers": [{"name": "c", "volumeMounts": [{"mountPath": "/v", "name": "v", "readOnly": True}]}]},
    {"containers": [{"name": "c", "env": [{"$patch": "replace"}, {"name": "Z", "value": "9"}]}]},
    {"volumes": [{"name": "v", "emptyDir": {"sizeLimit": "1Gi"}}, {"name": "w", "secret": {"secretName": "s"}}]},
    {"tolerations": [{"key": "b", "operator": "Exists"}], "nodeSelector": {"x": None, "y": "2"}},
    {"nodeSelector": {"$patch": "replace", "z": "3"}, "hostAliases": [{"ip": "10.0.0.1", "hostnames": ["h"]}]},
    {"topologySpreadConstraints": [{"topologyKey": "zone", "maxSkew": 1, "whenUnsatisfiable": "DoNotSchedule"}]},
]


@pytest.mark.parametrize("patch", PATCHES)
def test_overrides_merge_as_kubectl_does(cluster: Cluster, patch: Json, tmp_path: Path) -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", **BASE, "metadata": {**BASE["metadata"], "name": "p"}}
    path = tmp_path / "pod.yaml"
    path.write_text(yaml.safe_dump(pod))
    command = [
        "kubectl",
        "patch",
        "--local",
        "--type=strategic",
        "-o",
        "yaml",
        "-f",
        path,
        "-p",
        json.dumps({"spec": patch}),
    ]
    done = subprocess.run(command, env=cluster.env, capture_output=True, text=True, check=True, timeout=60)
    assert _sorted(overrides.merged(pod, {"spec": patch}, where="x")["spec"]) == _sorted(
        yaml.safe_load(done.stdout)["spec"]
    )


def _sorted(node: Any) -> Any:
    """Lists in one order: kubectl puts new items first, we last, so that Ray's container stays the first."""
    if isinstance(node, dict):
        return {key: _sorted(value) for key, value in node.items()}
    return sorted(map(_sorted, node), key=str) if isinstance(node, list) else node
