"""A real Kubernetes API server for a whole test run: the test bed beside the sources, or a context of the user's.

GRACEFUL_TEST_CONTEXT names a context of the kubeconfig whose cluster may be used; else the test bed is started once and
stopped at the end. Every test has a namespace of its own.
"""

from __future__ import annotations

import base64
import os
import ssl
import subprocess
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from graceful.launch.kubernetes import kubeconfig
from graceful.launch.kubernetes.kube import Kube
from tests.support.node import TESTBED, Node, bed, exports, started

PORT = "21630"
CONTEXT = "GRACEFUL_TEST_CONTEXT"


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """How tests and child processes reach the server.

    Attributes:
        env: Variables for child processes: KUBECONFIG, PATH with kubectl and helm.
        context: Name in the kubeconfig.
    """

    env: dict[str, str]
    context: str

    def kube(self, namespace: str) -> Kube:
        """A client with every permission."""
        files = [Path(part) for part in self.env["KUBECONFIG"].split(os.pathsep)]
        return Kube(access=kubeconfig.load(self.context, files=files), namespace=namespace)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The server; started once."""
    given = os.environ.get(CONTEXT)
    if given:
        config = os.environ.get("KUBECONFIG") or str(Path.home() / ".kube" / "config")
        yield Cluster(env={**os.environ, "KUBECONFIG": config}, context=given)
        return
    if not TESTBED.is_file():
        pytest.skip(f"no Kubernetes: {CONTEXT} is not set and there is no test bed at ../shared/testbed")
    env = {**os.environ, "TESTBED_PORT": os.environ.get("TESTBED_PORT", PORT)}
    try:
        bed(env, "up")
        yield Cluster(env={**env, **exports(bed(env, "env"), env)}, context="testbed")
    finally:
        bed(env, "down", check=False)


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A node with our image, S3 and MLflow; started once, because it takes minutes."""
    if not TESTBED.is_file() or os.environ.get(CONTEXT):
        pytest.skip(
            "no node of our own: pods need our image and servers beside them, which the test bed at ../shared has"
        )
    with started(tmp_path_factory.mktemp("node")) as found:
        yield found


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    """A namespace with the claim that profiles of tests name, gone afterwards."""
    kube = cluster.kube("default")
    name = f"t-{uuid.uuid4().hex[:8]}"
    kube.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    claim = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
    meta = {"name": "graceful-runs", "namespace": name}
    kube.create({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": meta, "spec": claim})
    yield name
    kube.delete("Namespace", name)


@pytest.fixture
def kube(cluster: Cluster, namespace: str) -> Kube:
    """A client of the test's namespace with every permission."""
    return cluster.kube(namespace)


def anonymous(cluster: Cluster, kube: Kube, role: Mapping[str, tuple[list[str], list[str]]] | None = None) -> Kube:
    """A client of an account `reader` that may do what a role says: resources and verbs by API group."""
    meta = {"name": "reader", "namespace": kube.namespace}
    kube.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta})
    rules = [
        {"apiGroups": [group], "resources": resources, "verbs": verbs}
        for group, (resources, verbs) in (role or {}).items()
    ]
    group = "rbac.authorization.k8s.io"
    kube.apply({"apiVersion": f"{group}/v1", "kind": "Role", "metadata": meta, "rules": rules})
    subject = {"kind": "ServiceAccount", "name": "reader", "namespace": kube.namespace}
    binding = {"roleRef": {"apiGroup": group, "kind": "Role", "name": "reader"}, "subjects": [subject]}
    kube.apply({"apiVersion": f"{group}/v1", "kind": "RoleBinding", "metadata": meta, **binding})
    command = ["kubectl", "create", "token", "reader", "-n", kube.namespace]
    done = subprocess.run(command, env=cluster.env, capture_output=True, text=True, check=True, timeout=60)
    token = done.stdout.strip()
    access = replace(kube.access, token=lambda: token, tls=_authority(cluster), identity="reader")
    return Kube(access=access, namespace=kube.namespace)


def _authority(cluster: Cluster) -> ssl.SSLContext:
    """The server's certificate authority without the administrator's certificate."""
    config = yaml.safe_load(Path(cluster.env["KUBECONFIG"]).read_text(encoding="utf-8"))
    (entry, *_) = config["clusters"]
    found = entry["cluster"]
    if "certificate-authority-data" in found:
        return ssl.create_default_context(cadata=base64.b64decode(found["certificate-authority-data"]).decode())
    return ssl.create_default_context(cafile=found["certificate-authority"])


@pytest.fixture
def on_cluster(
    cluster: Cluster, namespace: str, command_line: Callable[..., subprocess.CompletedProcess[str]], monkeypatch: Any
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`graceful ARGUMENTS` against the test's namespace."""
    monkeypatch.setenv("KUBECONFIG", cluster.env["KUBECONFIG"])

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return command_line(*arguments, "--context", cluster.context, "-n", namespace)

    return run
