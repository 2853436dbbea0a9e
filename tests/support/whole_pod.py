"""Pods of a run on a node as administrators run it: everything that a profile can say, and what was seen in them.

The node has a taint and accelerators that exist for the scheduler alone, a queue of Kueue places pods by a topology,
the proxy to everything outside leads nowhere, and a server beside the cluster has a certificate that only the team's
own authority signed. The run is stopped as soon as its pods were looked at.
"""

from __future__ import annotations

import json
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

from tests.support.faults import spec
from tests.support.node import BRIDGE, CONTEXT, IMAGE, MACHINES, Node, Team

TAINT = {"key": "dedicated", "value": "ml", "effect": "NoSchedule"}
DEVICE = "example.com/nic"
GPU = "nvidia.com/gpu"
RACK = "example.com/rack"
OVERALL = {"cpu": "2", "memory": "16Gi", GPU: "8", DEVICE: "4"}


@dataclass(kw_only=True)
class Seen:
    """What was seen.

    Attributes:
        plan: What `graceful plan` printed before.
        pods: Those that ran, by role.
        words: What commands printed in the worker's pod.
        workload: Kueue's object for the job.
    """

    plan: str = ""
    pods: dict[str, dict[str, Any]] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)
    workload: dict[str, Any] = field(default_factory=dict)


def live(node: Node) -> Seen:
    """Let a team plan and submit a run on such a node, and look at its pods."""
    model = f"m{uuid4().hex[:6]}"
    seen = Seen()
    with _prepared(node, model) as authority, node.team(model, queue={"name": "team", "clusterQueue": model}) as team:
        for name, data in (("corp-ca", {"ca.crt": authority}), ("extra", {"word": "mounted"})):
            team.kube.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data})
        team.install(profile=_profile(model), queue={"name": "team", "clusterQueue": model})
        document = spec(model)
        document["train"] |= {"use_gpu": False}
        path = node.folder / f"{model}-spec.yaml"
        path.write_text(json.dumps(document))
        seen.plan = team.graceful("plan", path).stdout
        run = team.submit(document)
        for role in ("head", "rank", "submitter"):
            seen.pods[role] = _running(team, role, run)
            if role == "rank":
                _look(team, seen)
        (seen.workload,) = team.kube.list("Workload").items
        team.graceful("stop", run)
    return seen


def _running(team: Team, role: str, run: str) -> dict[str, Any]:
    """Wait until the only pod of a role runs."""
    end = time.monotonic() + 1200
    while True:
        pods = team.pods(role, run)
        if pods and pods[0]["status"]["phase"] == "Running":
            return pods[0]
        assert time.monotonic() < end, f"{team.status(run)}\n{team.picture()}"
        time.sleep(2.0)


def _profile(model: str) -> dict[str, Any]:
    """Return what an administrator demands of every pod, and a worker with everything that profiles can say."""
    placed = {"node_selector": {"pool": model}, "tolerations": [TAINT], "priority_class": model}
    scratch = {"name": "scratch", "mountPath": "/scratch"}
    small = {"resources": {"limits": {"cpu": "100m", "memory": "64Mi"}, "requests": {"cpu": "10m", "memory": "64Mi"}}}
    helper = {"image": IMAGE, "imagePullPolicy": "Never", **small, "volumeMounts": [scratch]}
    node_affinity = {"nodeSelectorTerms": [{"matchExpressions": [{"key": RACK, "operator": "In", "values": ["r1"]}]}]}
    return {
        "queue_priority": model,
        "user": 1234,
        "pods": {"labels": {"cost-center": "vision"}, "annotations": {"example.com/owner": "vision"}},
        "proxy": {"http": f"http://{BRIDGE}:9", "https": f"http://{BRIDGE}:9", "direct": [BRIDGE]},
        "ca_bundle": {"config_map": "corp-ca"},
        "deadlines": {"start": 400, "keep": 60},
        "head": {**MACHINES["head"], **placed},
        "worker": {
            **placed,
            "cpu": "2",
            "reserved_cpu": "100m",
            "memory": "3Gi",
            "gpu": 2,
            "shm": "600Mi",
            "local_disk": {"size": "2Gi"},
            "topology": {"required": RACK},
            "resources": {DEVICE: 1},
            "env": {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "WORD": "from the profile"},
            "overrides": {"spec": {
                "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": node_affinity}},
                "topologySpreadConstraints": [{
                    "maxSkew": 1, "topologyKey": RACK, "whenUnsatisfiable": "ScheduleAnyway",
                    "labelSelector": {"matchLabels": {"cost-center": "vision"}},
                }],
                "terminationGracePeriodSeconds": 130,
                "securityContext": {"supplementalGroups": [2345]},
                "volumes": [
                    {"name": "scratch", "emptyDir": {"sizeLimit": "1Gi"}},
                    {"name": "extra", "configMap": {"name": "extra"}},
                ],
                "initContainers": [
                    {"name": "warm", **helper, "command": ["sh", "-c", "echo warmed > /scratch/warm"]},
                    {"name": "beside", **helper, "restartPolicy": "Always",
                     "command": ["sh", "-c", "echo beside > /scratch/beside; while true; do sleep 1; done"]},
                ],
                "containers": [{"name": "main", "volumeMounts": [scratch, {"name": "extra", "mountPath": "/extra"}]}],
            }},
        },
    }  # fmt: skip


def _look(team: Team, seen: Seen) -> None:
    """Ask the worker's pod for what the profile promised."""
    rank = seen.pods["rank"]
    for name, command in (
        ("shm", "df -m --output=size /dev/shm | tail -1"),
        ("scratch", "cat /scratch/warm /scratch/beside"),
        ("extra", "cat /extra/word"),
        ("ids", "id -u; id -G"),
        ("word", "echo $WORD"),
    ):
        seen.words[name] = _inside(team, rank, command)
    with _https(team.node.folder, team.name) as address:
        code = f'import urllib.request as r; print(r.urlopen("{address}", timeout=20).read().decode())'
        seen.words["trusted"] = _inside(team, rank, f"python -c '{code}'")
        seen.words["distrusted"] = _inside(team, rank, f"env -u SSL_CERT_FILE python -c '{code}'")


def _inside(team: Team, pod: Mapping[str, Any], command: str) -> str:
    words = ("kubectl", "-n", team.name, "exec", pod["metadata"]["name"], "-c", "ray-worker", "--", "sh", "-c", command)
    done = team.node.run(*words, check=False)
    return f"{done.stdout}{done.stderr}".strip()


# --- the node and what stands beside it -------------------------------------------------------------------------------


@contextmanager
def _prepared(node: Node, model: str) -> Iterator[str]:
    """Taint, labels, accelerators and a queue; yields the certificate of the team's authority."""
    taint = f"{TAINT['key']}={TAINT['value']}:{TAINT['effect']}"
    for document in _queue_documents(model):
        node.run("kubectl", "apply", "--server-side", "-f", "-", stdin=json.dumps(document))
    node.run("kubectl", "label", "node", CONTEXT, f"pool={model}", f"{RACK}=r1", "--overwrite")
    capacity = {GPU: "8", DEVICE: "4"}
    node.kube("default").patch("Node", CONTEXT, {"status": {"capacity": capacity}}, part="status")
    _wait_for_allocatable(node, capacity)
    node.run("kubectl", "taint", "nodes", "--all", taint, "--overwrite")
    try:
        yield _certificates(node.folder, model)
    finally:
        node.run("kubectl", "taint", "nodes", "--all", f"{TAINT['key']}-")


def _wait_for_allocatable(node: Node, wanted: Mapping[str, str]) -> None:
    """Wait until the kubelet has taken the capacity over; until then no pod that asks for it fits."""
    end = time.monotonic() + 120
    while not wanted.items() <= node.kube("default").get("Node", CONTEXT)["status"]["allocatable"].items():
        assert time.monotonic() < end, f"{CONTEXT} does not offer {wanted}"
        time.sleep(0.5)


def _queue_documents(name: str) -> Iterator[dict[str, Any]]:
    """Yield a queue over one flavour whose nodes have a topology, a priority of pods and one of jobs."""
    kueue = "kueue.x-k8s.io/v1beta2"
    meta = {"metadata": {"name": name}}
    yield {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", **meta, "value": 7}
    yield {"apiVersion": kueue, "kind": "WorkloadPriorityClass", **meta, "value": 77}
    levels = [{"nodeLabel": RACK}, {"nodeLabel": "kubernetes.io/hostname"}]
    yield {"apiVersion": kueue, "kind": "Topology", **meta, "spec": {"levels": levels}}
    flavor = {"nodeLabels": {"pool": name}, "topologyName": name, "tolerations": [TAINT]}
    yield {"apiVersion": kueue, "kind": "ResourceFlavor", **meta, "spec": flavor}
    quotas = [{"name": resource, "nominalQuota": amount} for resource, amount in OVERALL.items()]
    group = {"coveredResources": list(OVERALL), "flavors": [{"name": name, "resources": quotas}]}
    yield {
        "apiVersion": kueue,
        "kind": "ClusterQueue",
        **meta,
        "spec": {"namespaceSelector": {}, "resourceGroups": [group]},
    }


def _certificates(folder: Path, name: str) -> str:
    """Make an authority and a certificate of the bridge's address that it signed; returns the authority's own."""

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True, timeout=60)

    key = ("-newkey", "rsa:2048", "-nodes")
    openssl(
        "req", "-x509", *key, "-keyout", f"{name}-ca.key", "-out", f"{name}-ca.crt", "-subj", "/CN=corp", "-days", "2"
    )
    openssl("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", "/CN=server")
    (folder / f"{name}.ext").write_text(f"subjectAltName=IP:{BRIDGE}\n")
    signer = ("-CA", f"{name}-ca.crt", "-CAkey", f"{name}-ca.key", "-CAcreateserial", "-days", "2")
    openssl("x509", "-req", "-in", f"{name}.csr", *signer, "-extfile", f"{name}.ext", "-out", f"{name}.crt")
    return (folder / f"{name}-ca.crt").read_text()


@contextmanager
def _https(folder: Path, name: str) -> Iterator[str]:
    """Yield a server beside the cluster with that certificate; its address."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "7")
            self.end_headers()
            self.wfile.write(b"trusted")

        def log_message(self, format: str, *args: object) -> None:
            """Log nothing."""

    server = ThreadingHTTPServer((BRIDGE, 0), Answer)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(folder / f"{name}.crt", folder / f"{name}.key")
    server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
    thread.start()
    try:
        yield f"https://{BRIDGE}:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)
