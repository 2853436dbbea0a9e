"""A run on two nodes, one of which is evicted: `python -m tests.support.preempted FOLDER`.

The node's `ray start` gets SIGTERM, as in a pod that Kubernetes evicts; it announces to Ray that it will go, and goes.
Both nodes are on this machine. Then the same run follows without Ray and undisturbed. Writes what came out as JSON.
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
from ray.cluster_utils import Cluster

from graceful import spec
from graceful.training.driver import TrainingJob, train

TASK = Path(__file__).with_name("slow_task.py")
EPOCHS = 20
NODE = {"num_cpus": 1, "object_store_memory": 100_000_000, "include_dashboard": False}
DRAIN_SECONDS = 60
"""How long an evicted node waits for its workers to leave, below what Kubernetes waits for it."""


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


def start_node(address: str) -> subprocess.Popen[bytes]:
    """Begin to start a node as KubeRay starts a worker's; it leaves when it gets SIGTERM."""
    options = ["--num-cpus", "1", "--object-store-memory", str(NODE["object_store_memory"]), "--block"]
    command: list[str | Path] = [Path(sys.executable).with_name("ray"), "start", "--address", address, *options]
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


def main(root: Path) -> None:
    """Train twice."""
    cluster = Cluster(initialize_head=True, head_node_args=NODE)
    leaving = threading.Thread(target=start_node(cluster.address).terminate)
    wait_for_cpus(2, cluster.address)
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
    main(Path(sys.argv[1]))
