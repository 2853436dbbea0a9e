"""A real Kubernetes API server for a whole test run: the test bed beside the sources, or a context of the user's.

GRACEFUL_TEST_CONTEXT names a context of the kubeconfig whose cluster may be used; else the test bed is started once and
stopped at the end. Every test has a namespace of its own.
"""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from graceful.launch.kuberay import kubeconfig
from graceful.launch.kuberay.kube import Kube
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
    """An empty namespace, gone afterwards."""
    kube = cluster.kube("default")
    name = f"t-{uuid.uuid4().hex[:8]}"
    kube.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    yield name
    kube.delete("Namespace", name)


@pytest.fixture
def kube(cluster: Cluster, namespace: str) -> Kube:
    """A client of the test's namespace with every permission."""
    return cluster.kube(namespace)


@pytest.fixture
def on_cluster(
    cluster: Cluster, namespace: str, command_line: Callable[..., subprocess.CompletedProcess[str]], monkeypatch: Any
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`graceful ARGUMENTS` against the test's namespace."""
    monkeypatch.setenv("KUBECONFIG", cluster.env["KUBECONFIG"])

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return command_line(*arguments, "--context", cluster.context, "-n", namespace)

    return run
