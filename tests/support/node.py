"""A Kubernetes node for tests: the test bed's, with our image, an S3 server and an MLflow server that pods reach.

Everything that costs minutes is made once and shared: node, image, MLflow. Every test has a namespace of its own that
enforces PodSecurity `restricted`, with the chart installed and a prefix of its own in the bucket.
"""

from __future__ import annotations

import base64
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from graceful.launch.kubernetes import kubeconfig
from graceful.launch.kubernetes.kube import Kube
from graceful.launch.refusals import ConflictError, NotFoundError

ROOT = Path(__file__).parents[2]
TESTBED = ROOT.parent / "shared" / "testbed" / "testbed"
PORT = "22630"
IMAGE = "localhost/graceful:tested"
BRIDGE = "10.244.0.1"
"""Where servers of this machine must listen so that pods reach them."""
BUCKET = "graceful-tests"
CONTEXT = "testbed"
RELEASE = "graceful"
MACHINES = {
    "head": {"cpu": "2", "reserved_cpu": "100m", "memory": "4Gi"},
    "worker": {"cpu": "1", "reserved_cpu": "100m", "memory": "2Gi"},
}
"""Two cores for everything: pods reserve little and share them."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """What tests need to know of it.

    Attributes:
        env: Variables for child processes: KUBECONFIG, PATH with kubectl and helm, AWS_*.
        mlflow: URI of the MLflow server, as pods and tests reach it.
        folder: Scratch of the test run.
        seconds: What starting took, by step.
    """

    env: Mapping[str, str]
    mlflow: str
    folder: Path
    seconds: Mapping[str, float]

    @contextmanager
    def team(self, name: str, *, profile: Mapping[str, Any] | None = None, **values: Any) -> Iterator[Team]:
        """Yield a namespace with the chart in it, gone afterwards.

        Args:
            name: Of namespace, release and prefix in the bucket; unique in the test run.
            profile: Merged into the profile `default` of the chart.
            values: Top-level values of the chart besides.
        """
        admin = self.kube("default")
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        admin.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
        team = Team(node=self, name=name)
        try:
            team.credentials()
            team.install(profile=profile or {}, **values)
            yield team
        finally:
            with suppress(NotFoundError, ConflictError):  # a test deleted it
                admin.delete("Namespace", name)

    def kube(self, namespace: str) -> Kube:
        """Return a client with every permission."""
        return Kube(access=kubeconfig.load(CONTEXT, files=[Path(self.env["KUBECONFIG"])]), namespace=namespace)

    def pid(self, server: str) -> Path:
        """Return the file with the process id of a server: `mlflow`, `s3`, or as in the test bed's table."""
        if server == "mlflow":
            return self.folder / "mlflow.pid"
        run = Path(self.env["KUBECONFIG"]).parent
        return run.parent / "s3" / "pid" if server == "s3" else run / "pid" / server

    def refresh(self, document: Mapping[str, Any]) -> None:
        """Make a version on this machine, in the registry that pods use."""
        path = self.folder / f"{document['model']}-{document['name']}-here.yaml"
        path.write_text(yaml.safe_dump(dict(document)))
        self.graceful("refresh", path)

    def graceful(self, *arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Return the command line of a person who sees the same MLflow server and bucket."""
        return self.run(sys.executable, "-m", "graceful.cli", *arguments, check=check)

    def keys(self, uri: str) -> list[str]:
        """Return the names of all objects below a prefix, relative to it."""
        code = f"from graceful.storage import objects; [print(one.uri) for one in objects.list_objects({uri!r})]"
        return [line.removeprefix(f"{uri}/") for line in self.python(code).splitlines()]

    def python(self, code: str, *arguments: str | Path) -> str:
        """Return what Python code prints, with the node's variables and the interpreter of these tests."""
        return self.run(sys.executable, "-c", code, *arguments).stdout

    def run(
        self, *command: str | Path, check: bool = True, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a program against this node."""
        done = subprocess.run(
            [str(word) for word in command],
            env=dict(self.env),
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=900,
            input=stdin or "",
        )
        assert not check or done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done


@dataclass(frozen=True, kw_only=True)
class Team:
    """One namespace with our chart, as its people use it."""

    node: Node
    name: str

    @property
    def kube(self) -> Kube:
        """Return a client with every permission, in this namespace."""
        return self.node.kube(self.name)

    @property
    def storage(self) -> str:
        """Return where its runs are kept."""
        return f"s3://{BUCKET}/{self.name}"

    def credentials(self) -> None:
        """The Secret from which pods take their access to the bucket."""
        keys = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
        data = {key: self.node.env[key] for key in keys}
        self.kube.create({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s3"}, "stringData": data})

    def install(self, *, profile: Mapping[str, Any], **values: Any) -> None:
        """Install the chart or upgrade it, and fetch the profile that it derives."""
        image, _, tag = IMAGE.rpartition(":")
        known = {
            "image": {"repository": image, "tag": tag, "pullPolicy": "Never"},
            "mlflow": {"uri": self.node.mlflow},
            "s3": {"endpoint": self.node.env["AWS_ENDPOINT_URL"], "region": "us-east-1", "secretName": "s3"},
            "storage": {"uri": self.storage},
            "profiles": {
                "default": {
                    **MACHINES,
                    "retries": {"job": 1, "submitter": 2},
                    "deadlines": {"start": 240, "keep": 1},
                    **profile,
                }
            },
        }
        path = self.node.folder / f"{self.name}-values.yaml"
        path.write_text(yaml.safe_dump({**known, **values}))
        self.node.run("helm", "upgrade", "--install", RELEASE, ROOT / "helm/graceful", "-n", self.name, "-f", path)
        text = self.kube.get("Secret", f"{RELEASE}-profiles")["data"]["default.yaml"]
        self.profile.write_bytes(base64.b64decode(text))

    @property
    def profile(self) -> Path:
        """Return the file for `--on`."""
        return self.node.folder / f"{self.name}.yaml"

    def graceful(self, *arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Return the command line against this namespace."""
        return self.node.graceful(*arguments, "--on", self.profile, check=check)

    def submit(self, spec: Mapping[str, Any]) -> str:
        """Submit a spec; returns its run id."""
        path = self.node.folder / f"{self.name}-{spec['model']}-{spec['name']}.yaml"
        path.write_text(yaml.safe_dump(dict(spec)))
        self.graceful("submit", path, "--yes")
        return f"{spec['model']}-{spec['name']}"

    def status(self, run: str) -> dict[str, Any]:
        """Return what `graceful status` says."""
        found: dict[str, Any] = json.loads(self.graceful("status", run, "-o", "json").stdout)
        return found

    def wait(self, run: str, until: Callable[[dict[str, Any]], bool], *, seconds: float) -> dict[str, Any]:
        """Ask for the status until it is as wanted.

        Raises:
            AssertionError: It was not in time; with the last one and the pods.
        """
        end = time.monotonic() + seconds
        while True:
            found = self.status(run)
            if until(found):
                return found
            assert time.monotonic() < end, f"{found}\n{self.picture()}"
            time.sleep(2.0)

    def finish(self, run: str, *, seconds: float = 600) -> dict[str, Any]:
        """Wait until a run is over."""
        return self.wait(run, lambda found: found["exit_code"] is not None, seconds=seconds)

    def wait_for_checkpoint(self, run: str, *, seconds: float = 300, besides: Collection[str] = ()) -> list[str]:
        """Wait until a run has written one to the bucket, besides some files, and return all its files there."""
        end = time.monotonic() + seconds
        while True:
            found = [key for key in self.node.keys(f"{self.storage}/runs/{run}/ray") if "step-" in key]
            if set(found) - set(besides):
                return found
            now = self.status(run)
            assert now["exit_code"] is None, f"{now}\n{self.picture()}"
            assert time.monotonic() < end, f"{now}\n{self.picture()}"
            time.sleep(1.0)

    def pods(self, role: str, run: str) -> list[dict[str, Any]]:
        """Return the live pods of a run: head, rank or submitter."""
        selector = f"graceful.dev/role={role},graceful.dev/run-id={run}"
        found = self.kube.list("Pod", selector=selector).items
        return [pod for pod in found if not pod["metadata"].get("deletionTimestamp")]

    def picture(self) -> str:
        """Pods and events, for the message of a test that failed."""
        pods = self.node.run(
            "kubectl", "-n", self.name, "get", "rayjobs,rayclusters,pods,jobs", "-o", "wide", check=False
        )
        events = self.node.run("kubectl", "-n", self.name, "get", "events", "--sort-by=.lastTimestamp", check=False)
        return f"{pods.stdout}\n{events.stdout[-3000:]}"


@contextmanager
def started(folder: Path) -> Iterator[Node]:
    """Start node, Kueue, S3 and MLflow, build the image; end them all."""
    shell = {**os.environ, "TESTBED_PORT": os.environ.get("TESTBED_NODE_PORT", PORT)}
    try:
        begun = time.monotonic()
        bed(shell, "up", "--kueue")
        bed(shell, "s3", "up")
        seconds = {"cluster, operators, S3 started": round(time.monotonic() - begun, 1)}
        found = exports(bed(shell, "env"), shell)
        env = {**shell, **found, "OMP_NUM_THREADS": "1", "GRACEFUL_HOME": str(folder / "home"), "NO_PROXY": BRIDGE}
        seconds["image built and loaded"] = round(build_image(env), 1)
        with mlflow(folder, env) as uri:
            _bucket(env)
            yield Node(env={**env, "MLFLOW_TRACKING_URI": uri}, mlflow=uri, folder=folder, seconds=seconds)
    finally:
        bed(shell, "s3", "down", check=False)
        bed(shell, "down", check=False)


def build_image(env: Mapping[str, str]) -> float:
    """Build cluster/Dockerfile onto the node; seconds it took."""
    begun = time.monotonic()
    base = "localhost/python:3.11-slim"
    bed(env, "image", "base")
    bed(env, "image", "build", IMAGE, str(ROOT), str(ROOT / "cluster/Dockerfile"), "--", "--build-arg", f"BASE={base}")
    return time.monotonic() - begun


@contextmanager
def mlflow(folder: Path, env: Mapping[str, str]) -> Iterator[str]:
    """Yield an MLflow server that pods reach, with sqlite and local artifacts."""
    with socket.socket() as probe:
        probe.bind((BRIDGE, 0))
        port = probe.getsockname()[1]
    uri = f"http://{BRIDGE}:{port}"
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", BRIDGE, "--port", str(port), "--workers", "1",
        "--allowed-hosts", f"{BRIDGE}:{port}", "--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}",
        "--artifacts-destination", (folder / "artifacts").as_uri(),
    ]  # fmt: skip
    variables = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "mlflow.log").open("wb") as log:
        server = subprocess.Popen(
            command, env={**env, **variables}, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    pid_file = folder / "mlflow.pid"
    pid_file.write_text(str(server.pid))
    try:
        _answering(f"{uri}/health", server)
        yield uri
    finally:
        with suppress(ProcessLookupError):
            os.killpg(int(pid_file.read_text()), signal.SIGTERM)
        server.wait(timeout=30)


def _answering(address: str, server: subprocess.Popen[bytes], *, seconds: float = 120) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        try:
            opener.open(address, timeout=5).close()
        except OSError:
            time.sleep(0.5)
        else:
            return
    raise AssertionError(f"{address} does not answer; see mlflow.log")


def _bucket(env: Mapping[str, str]) -> None:
    code = "import sys; from graceful.storage import server; server.client().create_bucket(Bucket=sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", code, BUCKET], env=dict(env), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 or "BucketAlready" in done.stderr, done.stderr


def bed(env: Mapping[str, str], *words: str, check: bool = True) -> str:
    """Return its output; through a file, because the servers that it starts would hold a pipe open."""
    with tempfile.TemporaryFile("w+") as output:
        done = subprocess.run(
            [TESTBED, *words],
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            timeout=1500,
            check=False,
        )
        output.seek(0)
        text = output.read()
    assert not check or done.returncode == 0, f"testbed {' '.join(words)}: {text[-4000:]}"
    return text


def exports(text: str, env: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of `testbed env`, one or several in a line."""
    found: dict[str, str] = {}
    for line in (line for line in text.splitlines() if line.startswith("export ")):
        for word in shlex.split(line.removeprefix("export ")):
            name, _, value = word.partition("=")
            found[name] = value.replace("$PATH", env["PATH"])
    return found
