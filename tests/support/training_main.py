"""Train jobs in a process of their own: `python -m tests.support.training_main JSON`, one result a line on stdout.

Each job: {"spec": ..., "run_dir": ..., "die_at_step": int or null}; with `die_at_step` the driver kills itself there,
when the checkpoint before that step, which is written beside training, is whole.
With "ancestors", a list of bundles, the version is trained against them, and every checkpoint is kept.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from graceful import spec
from graceful.errors import GracefulError
from graceful.training import checkpoint
from graceful.training.driver import TrainingJob, TrainingResult, train
from tests.support.runs import train as train_version


def plain(job: Mapping[str, Any]) -> TrainingJob:
    return TrainingJob(spec=spec.parse(job["spec"]), run_dir=Path(job["run_dir"]))


def constrained(job: Mapping[str, Any]) -> TrainingResult:
    checkpoint.KEEP = 99
    run_dir, ancestors = Path(job["run_dir"]), [Path(folder) for folder in job["ancestors"]]
    return train_version(spec.parse(job["spec"]), run_dir=run_dir, home=run_dir / "home", ancestors=ancestors).result


def die(wanted: spec.RefreshSpec, run_dir: Path, step: int) -> None:
    """Kill this process once the last checkpoint up to a step is there."""
    every = wanted.train.checkpoint_every
    due = step // every * every if every else 0
    while due and not (run_dir / "checkpoints" / checkpoint.name_of(due)).exists():
        time.sleep(0.01)  # for another thread of this process
    os.kill(os.getpid(), signal.SIGKILL)


def main(document: str) -> None:
    for job in json.loads(document):

        def progress(row: Mapping[str, object], job: Mapping[str, Any] = job) -> None:
            if row["event"] == "step" and row["step"] == job.get("die_at_step"):
                die(spec.parse(job["spec"]), Path(job["run_dir"]), job["die_at_step"])

        try:
            result = constrained(job) if "ancestors" in job else train(plain(job), progress=progress)
        except GracefulError as e:
            answer: dict[str, object] = {"error": type(e).__name__, "message": e.message}
        else:
            answer = {
                "steps": result.steps,
                "resumed_from": result.resumed_from,
                "validation_error": result.validation_error,
                "seconds": result.seconds,
            }
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1])
