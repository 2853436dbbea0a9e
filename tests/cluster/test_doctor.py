"""`graceful doctor --on NAME` against a real API server: what it finds when all is there, and when something is not."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from graceful.launch.kuberay import checks as checks_kuberay
from graceful.launch.kubernetes.kinds import KINDS, Kind
from graceful.launch.kubernetes.kube import Kube
from tests.cluster.conftest import Cluster
from tests.cluster.test_follow import without_permissions
from tests.support import launch

pytestmark = pytest.mark.cluster
Run = Callable[..., subprocess.CompletedProcess[str]]
PREPARED: dict[str, Any] = {
    "pull_secrets": ["pull"],
    "env_from_secrets": ["s3"],
    "mlflow": {"uri": "http://mlflow.no-such-namespace.svc:5000", "token_secret": "mlflow"},
    "service_account": "graceful-ray",
    "storage": {"claim": "runs"},
}


@pytest.fixture
def prepared(kube: Kube) -> Kube:
    """Everything that the profile names, an operator that is ready, PodSecurity at its strictest."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    kube.patch("Namespace", kube.namespace, {"metadata": {"labels": labels}})
    meta = {"namespace": kube.namespace}
    for name in ("pull", "s3", "mlflow"):
        kube.create({"apiVersion": "v1", "kind": "Secret", "metadata": {**meta, "name": name}})
    kube.create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {**meta, "name": "graceful-ray"}})
    claim = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
    kube.create(
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {**meta, "name": "runs"}, "spec": claim}
    )
    return kube


def states(kube: Kube, **changes: Any) -> dict[str, tuple[str, str]]:
    """State and finding by name; of several of one name the worst."""
    found: dict[str, tuple[str, str]] = {}
    for check in checks_kuberay.checks(kube, launch.cluster(namespace=kube.namespace, **changes)):
        if found.get(check.name, ("ok", ""))[0] != "fail":
            found[check.name] = (check.state, f"{check.found}; {check.remedy}")
    return found


def test_a_prepared_namespace_is_found_well(prepared: Kube) -> None:
    found = states(prepared, **PREPARED)
    well = ("api server", "RayJob", "permissions", "namespace", "secret", "service account", "image")
    assert {name: found[name][0] for name in well} == dict.fromkeys(well, "ok")
    assert found["claim"][0] == "warn"  # nothing provides volumes here
    assert "runs is Pending (ReadWriteMany)" in found["claim"][1]
    assert "PodSecurity restricted" in found["namespace"][1]
    assert "with every field that we send" in found["RayJob"][1]


def test_what_the_profile_names_and_is_not_there_is_a_failure(kube: Kube) -> None:
    found = states(kube, **PREPARED, queue="team", image="localhost/graceful:dev")
    for name, words in {
        "secret": "Secret ",
        "service account": "ServiceAccount graceful-ray is not in namespace",
        "claim": "PersistentVolumeClaim runs is not in namespace",
        "queue": "team",
    }.items():
        assert found[name][0] in ("fail", "warn")
        assert words in found[name][1]
    assert found["namespace"] == (
        "warn",
        f"{kube.namespace}, PodSecurity enforces nothing; `kubectl label namespace {kube.namespace}"
        " pod-security.kubernetes.io/enforce=restricted`; our pods satisfy it",
    )
    assert found["image"][0] == "warn"


def test_an_operator_that_is_not_ready_is_a_failure_and_a_ready_one_is_not(
    kube: Kube, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(KINDS, "Deployment", Kind("apps/v1", "deployments"))  # written to one namespace, read from all
    labels = {"app": "kuberay"}
    containers = [{"name": "c", "image": "quay.io/kuberay/operator:v1.6.1"}]
    pods = {"metadata": {"labels": labels}, "spec": {"schedulerName": "nobody", "containers": containers}}
    meta = {"name": "kuberay-operator", "namespace": kube.namespace}
    spec = {"replicas": 0, "paused": True, "selector": {"matchLabels": labels}, "template": pods}
    made = kube.create({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta, "spec": spec})
    monkeypatch.undo()
    where = f"v1.6.1 in namespace {kube.namespace}"
    found = [(one.state, one.found) for one in checks_kuberay._operator(kube)]
    assert ("fail", f"{where}, 0 ready") in found
    ready = {**made, "status": {"readyReplicas": 1}}
    assert checks_kuberay._version("KubeRay", ready, "x/operator:v1.6.1", "").state == "ok"
    assert checks_kuberay._version("KubeRay", ready, "x/operator:v1.0.0", "").state == "fail"
    assert checks_kuberay._version("KubeRay", ready, "x/operator:nightly", "").state == "warn"


def test_every_missing_permission_is_named(cluster: Cluster, prepared: Kube, tmp_path: Path) -> None:
    nobody = without_permissions(cluster, prepared, tmp_path / "config")
    found = states(nobody, **PREPARED)
    assert found["permissions"][0] == "fail"
    assert "rayjobs.ray.io: create, get, list, watch, patch, delete" in found["permissions"][1]
    assert "pods/log: get" in found["permissions"][1]
    unreadable = ("RayJob", "KubeRay", "namespace", "secret", "service account", "claim")
    assert {name: found[name][0] for name in unreadable} == dict.fromkeys(unreadable, "warn")


def test_a_role_with_exactly_what_we_ask_for_is_enough(cluster: Cluster, prepared: Kube, tmp_path: Path) -> None:
    rules = []
    for resource, verbs in checks_kuberay.RIGHTS.items():
        plural, _, group = resource.partition(".")
        rules.append({"apiGroups": [group], "resources": [plural], "verbs": list(verbs)})
    meta = {"name": "submitter", "namespace": prepared.namespace}
    api = "rbac.authorization.k8s.io"
    subject = {"kind": "ServiceAccount", "name": "nobody", "namespace": prepared.namespace}
    prepared.create({"apiVersion": f"{api}/v1", "kind": "Role", "metadata": meta, "rules": rules})
    prepared.create(
        {
            "apiVersion": f"{api}/v1",
            "kind": "RoleBinding",
            "metadata": meta,
            "roleRef": {"apiGroup": api, "kind": "Role", "name": "submitter"},
            "subjects": [subject],
        }
    )
    nobody = without_permissions(cluster, prepared, tmp_path / "config")
    assert states(nobody, **PREPARED)["permissions"][0] == "ok"


def test_the_command_prints_every_check_and_fails_with_4(
    cluster: Cluster, prepared: Kube, command_line: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", cluster.env["KUBECONFIG"])
    described = {**launch.CLUSTER, **PREPARED, "context": cluster.context, "namespace": prepared.namespace}
    profile = tmp_path / "there.yaml"
    profile.write_text(yaml.safe_dump(described), encoding="utf-8")
    done = command_line("doctor", "--on", str(profile), "-o", "json")
    found = {check["name"]: check["state"] for check in json.loads(done.stdout)}
    assert found["mlflow"] == "warn"  # a name that only pods can resolve
    assert done.returncode == (4 if "fail" in found.values() else 0)
    assert found["permissions"] == "ok"
    profile.write_text(yaml.safe_dump({**described, "namespace": "nowhere-at-all"}), encoding="utf-8")
    nowhere = command_line("doctor", "--on", str(profile), "-o", "json")
    assert nowhere.returncode == 4
    namespace = next(check for check in json.loads(nowhere.stdout) if check["name"] == "namespace")
    assert (namespace["state"], namespace["found"]) == ("fail", "nowhere-at-all does not exist")
