"""Train jobs in a process of their own: `python -m tests.support.training_main JSON`, one result a line on stdout.

Each job: {"spec": ..., "run_dir": ..., "die_at_step": int or null}; with `die_at_step` the driver kills itself there.
With "ancestors", a list of bundles, the version is trained against them, and every checkpoint is kept.
"""

from __future__ import annotations

import json
import os
import signal
import sys
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


def main(document: str) -> None:
    for job in json.loads(document):
        fatal = job.get("die_at_step")

        def progress(row: Mapping[str, object], fatal: int | None = fatal) -> None:
            if row["event"] == "step" and row["step"] == fatal:
                os.kill(os.getpid(), signal.SIGKILL)

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
