"""Train jobs in a process of their own: `python -m tests.support.training_main JSON`, one result a line on stdout.

Each job: {"spec": ..., "run_dir": ..., "die_at_step": int or null}; with `die_at_step` the driver kills itself there.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

from graceful import spec
from graceful.errors import GracefulError
from graceful.training.driver import TrainingJob, train


def main(document: str) -> None:
    for job in json.loads(document):
        fatal = job.get("die_at_step")

        def progress(row: Mapping[str, object], fatal: int | None = fatal) -> None:
            if row["event"] == "step" and row["step"] == fatal:
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            result = train(TrainingJob(spec=spec.parse(job["spec"]), run_dir=Path(job["run_dir"])), progress=progress)
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
