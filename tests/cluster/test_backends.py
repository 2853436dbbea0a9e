"""The contract of backends on a real API server, where recorded ends stand in for KubeRay and a kubelet serves logs."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from graceful.launch.backend import Handle
from graceful.launch.kuberay.backend import KubeRayBackend
from graceful.launch.kubernetes.kube import Kube
from graceful.testing.backend import LINES, OUTCOME, BackendContract, BackendUnderTest
from tests.cluster.conftest import Cluster
from tests.support import launch
from tests.support.kubelet import log_server
from tests.support.replay import write_status

pytestmark = pytest.mark.cluster
SAID = "Job entrypoint command failed with exit code {code}, last available logs:\ngraceful: {words}\n"
RUNNING = {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}
COMPLETE = {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}
FAILED = {"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "reason": "AppFailed"}
STATUSES = {
    "passed": COMPLETE,
    "held": COMPLETE,
    "spec": {**FAILED, "message": SAID.format(code=2, words="x.csv: no such file")},
    "failed": {**FAILED, "message": SAID.format(code=5, words="step 7: loss is nan")},
    "endless": RUNNING,
    "endless once": RUNNING,
}
LOGS = {
    "passed": [*LINES, OUTCOME.format(code=0, message="")],
    "held": [*LINES, OUTCOME.format(code=3, message="too many flips")],
}


class TestKubeRay(BackendContract):
    test_a_program_reads_its_document_its_files_and_its_variables = None  # type: ignore[assignment]  # no program runs

    @pytest.fixture
    def target(self, cluster: Cluster, kube: Kube, tmp_path: Path) -> Iterator[BackendUnderTest]:
        pki = Path(cluster.env["KUBECONFIG"]).parent / "pki"
        if not (pki / "kubelet.crt").is_file():
            pytest.skip("no certificate for a node of ours: this is not the test bed")
        node = f"node-{kube.namespace}"
        served: dict[str, list[str]] = {}
        cuts: list[int] = []

        def unfold(handle: Handle, program: str) -> None:
            """What operator, scheduler and kubelet would do, at once."""
            pod = f"{handle.name}-{uuid.uuid4().hex[:5]}"
            cuts.extend([2] if program == "passed" else [])  # whoever reads its log first is cut off
            served[pod] = [f"2026-11-22T13:00:0{number}Z {line}" for number, line in enumerate(LOGS.get(program, []))]
            labels = {"graceful.dev/run-id": handle.name, "graceful.dev/role": "submitter"}
            meta = {"name": pod, "namespace": kube.namespace, "labels": labels}
            spec = {"nodeName": node, "containers": [{"name": "c", "image": "localhost/nowhere:1"}]}
            kube.create({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec})
            phase = "Running" if STATUSES[program] is RUNNING else "Succeeded"
            kube.patch("Pod", pod, {"status": {"phase": phase}}, part="status")
            write_status(kube, handle.name, STATUSES[program])

        with log_server(kube, pki, node=node, logs=served, cuts=cuts):
            backend = KubeRayBackend(profile=launch.cluster(namespace=kube.namespace), connect=lambda: kube)
            yield BackendUnderTest(
                backend=backend,
                python="python",
                folder=tmp_path,
                unfold=unfold,
                runs_programs=False,
                resolution=1.1,  # the server's times have whole seconds
            )
