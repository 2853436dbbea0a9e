"""A run on two nodes, one of which is announced to go away and goes: `python -m tests.support.preempted FOLDER HOW`.

HOW is `announced`: somebody tells Ray, waits for checkpoints and ends the node; or `evicted`: the node's `ray start`
gets SIGTERM, as in a pod that Kubernetes evicts. Both nodes are on this machine. Then the same run follows without Ray
and undisturbed. Writes what came out as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2

from graceful import spec
from graceful.training.driver import TrainingJob, train

TASK = Path(__file__).with_name("slow_task.py")
EPOCHS = 20
NODE = {"num_cpus": 1, "object_store_memory": 100_000_000, "include_dashboard": False}
DRAIN_SECONDS = 60
"""How long an evicted node waits for its workers to leave, below what Kubernetes waits for it."""
PREEMPTION = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")


def job(folder: Path, *, workers: Any) -> TrainingJob:
    """Return a run whose checkpoints are those of announcements alone, and the one at the end."""
    document = {
        "model": "points",
        "name": "v1",
        "task": {"kind": "python", "file": str(TASK), "options": {"seconds": 0.5}},
        "train": {
            "epochs": EPOCHS,
            "batch_size": 16,
            "engine": {"kind": "torch"},
            "checkpoint_every": 10**6,
            "num_workers": workers,
        },
    }
    return TrainingJob(spec=spec.parse(document), run_dir=folder)


def take_away(cluster: Cluster, node: Any, folder: Path) -> None:
    """Announce the end of a node, wait until both ranks have saved, end it."""
    gcs = GcsClient(address=cluster.address)
    gcs.drain_node(node.node_id, PREEMPTION, "test", int(time.time() * 1000) + 60_000)
    end = time.monotonic() + 300
    while not any((folder / "ray").rglob("manifest-00001.json")) and time.monotonic() < end:
        time.sleep(0.1)
    time.sleep(1.0)  # until Ray knows of the checkpoint
    cluster.remove_node(node, allow_graceful=False)


def start_node(address: str) -> subprocess.Popen[bytes]:
    """Begin to start a node as KubeRay starts a worker's; it leaves when it gets SIGTERM."""
    options = ["--num-cpus", "1", "--object-store-memory", str(NODE["object_store_memory"]), "--block"]
    command = [Path(sys.executable).with_name("ray"), "start", "--address", address, *options]
    env = {**os.environ, "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": str(DRAIN_SECONDS)}
    return subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def wait_for_cpus(count: int, address: str) -> None:
    """Wait until nodes with so many CPUs have joined."""
    ray.init(address, log_to_driver=False)
    end = time.monotonic() + 300
    while ray.cluster_resources().get("CPU", 0) < count:
        assert time.monotonic() < end, "the node did not join"
        time.sleep(0.5)
    ray.shutdown()


def main(root: Path, how: str) -> None:
    """Train twice."""
    cluster = Cluster(initialize_head=True, head_node_args=NODE)
    if how == "evicted":
        leaving = threading.Thread(target=start_node(cluster.address).terminate)
        wait_for_cpus(2, cluster.address)
    else:
        node = cluster.add_node(**NODE)
        cluster.wait_for_nodes()
        leaving = threading.Thread(target=take_away, args=(cluster, node, root / "moved"))
    os.environ["RAY_ADDRESS"] = cluster.address

    def progress(row: Mapping[str, object]) -> None:
        if row["event"] == "step" and leaving.ident is None:
            leaving.start()

    moved = train(job(root / "moved", workers={"min": 1, "max": 2}), progress=progress)
    ray.shutdown()
    cluster.shutdown()
    whole = train(job(root / "whole", workers=0))
    answer = {"resumed_from": moved.resumed_from, "steps": moved.steps, "whole": whole.steps}
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
