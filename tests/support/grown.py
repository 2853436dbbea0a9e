"""A run on one node that another node joins: `python -m tests.support.grown FOLDER`.

Both nodes are on this machine. Then the same run follows without Ray and undisturbed. Writes what came out as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from graceful import spec
from graceful.training import ray_fit
from graceful.training.driver import TrainingJob, train
from tests.support.preempted import NODE, TASK, start_node

EPOCHS, EVERY = 8, 5
"""What one worker alone would need two minutes for, and steps between checkpoints."""


def job(folder: Path, *, workers: Any, seconds: float) -> TrainingJob:
    """Return a run whose steps take that long on one worker, and no time on two."""
    document = {
        "model": "points",
        "name": "v1",
        "task": {"kind": "python", "file": str(TASK), "options": {"seconds": seconds}},
        "train": {
            "epochs": EPOCHS,
            "batch_size": 8,
            "engine": {"kind": "torch"},
            "checkpoint_every": EVERY,
            "num_workers": workers,
        },
    }
    return TrainingJob(spec=spec.parse(document), run_dir=folder)


def main(root: Path) -> None:
    """Train twice."""
    ray_fit.RESIZE_SECONDS = 5.0
    cluster = Cluster(initialize_head=True, head_node_args=NODE)
    cluster.wait_for_nodes()
    os.environ["RAY_ADDRESS"] = cluster.address
    joined: list[subprocess.Popen[bytes]] = []

    def progress(row: Mapping[str, object]) -> None:
        if row["event"] == "step" and row["step"] == EVERY + 1:
            joined.append(start_node(cluster.address))

    grown = train(job(root / "grown", workers={"min": 1, "max": 2}, seconds=0.5), progress=progress)
    ray.shutdown()
    for node in joined:
        node.terminate()
        node.wait(timeout=120)
    cluster.shutdown()
    whole = train(job(root / "whole", workers=0, seconds=0.0))
    answer = {"resumed_from": grown.resumed_from, "steps": grown.steps, "whole": whole.steps}
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
