"""A Ray worker is killed in mid-epoch: does the run finish, and is its trace that of an undisturbed run?

python -m benchmarks.worker_loss    # two fits of glyphs on two workers, writes benchmarks/results/worker_loss.json
"""

from __future__ import annotations

import json
import os
import signal
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from benchmarks import results
from graceful import spec
from graceful.storage import sha256_file
from graceful.training.driver import TrainingJob, train

KILL_AT = 0.6
"""Share of all steps after which a worker is killed; checkpoints are written at every epoch, so this is mid-epoch."""


def fit(folder: Path, *, kill: bool) -> dict[str, Any]:
    """Train one run, if asked with the loss of a worker on the way; its trace and weights."""
    wanted = spec.parse(
        {
            "model": "bench",
            "name": "v1",
            "task": {"kind": "glyphs", "fonts": 0.4, "network": {"size": "xs", "head": "cosine"}},
            "train": {"epochs": 4, "num_workers": 2},
        }
    )
    killed: list[int] = []
    pids: list[int] = []

    def watch(row: Mapping[str, object]) -> None:
        if row.get("event") == "start":
            pids[:] = json.loads(json.dumps(row["pids"]))
            steps.append(int(str(row["steps"])))
        if kill and not killed and row.get("event") == "step" and int(str(row["step"])) >= KILL_AT * steps[0]:
            killed.append(int(str(row["step"])))
            os.kill(pids[1], signal.SIGKILL)

    steps: list[int] = []
    start = time.perf_counter()
    done = train(TrainingJob(spec=wanted, run_dir=folder), progress=watch)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        "worker_killed_after_step": killed[0] if killed else None,
        "starts": len(steps),
        "steps": done.steps,
        "trace": [(row["step"], row["loss"], row["grad_norm"]) for row in rows if row["event"] == "step"],
        "weights_sha256": sha256_file(done.weights),
        "seconds": round(time.perf_counter() - start, 1),
    }


def main() -> None:
    """Run both fits and compare them step by step."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        undisturbed = fit(Path(scratch) / "undisturbed", kill=False)
        disturbed = fit(Path(scratch) / "disturbed", kill=True)
    same = undisturbed["trace"] == disturbed["trace"]
    rows = [
        {
            "run": name,
            **{key: value for key, value in run.items() if key != "trace"},
            "final_loss": run["trace"][-1][1],
            "trace_equals_undisturbed": run["trace"] == undisturbed["trace"],
        }
        for name, run in (("undisturbed", undisturbed), ("worker killed", disturbed))
    ]
    for row in rows:
        print(row)
    print(f"{len(undisturbed['trace'])} steps, loss and gradient norm equal to the last bit: {same}")
    print(results.write("worker_loss", rows, seconds=time.perf_counter() - start))


if __name__ == "__main__":
    main()
