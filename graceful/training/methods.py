"""Which run a job asks for: a loop of gradient descent, or the solution of a quadratic. Runs in workers."""

from __future__ import annotations

from typing import Any

from graceful.training import linearised, loop
from graceful.training.job import TrainingJob
from graceful.training.linear_loop import LinearLoop
from graceful.training.nested_loop import NestedLoop
from graceful.training.rank_context import RankContext


def run(job: TrainingJob, context: RankContext, *, digest: str) -> dict[str, Any]:
    """Train a job to its end; arguments, result and errors are those of `loop.run`."""
    method = job.spec.train.method
    if job.together is not None:
        return loop.run(job, context, digest=digest, make=NestedLoop)
    if method.kind == "lqf" and method.solver == "sgd_kfac":
        return loop.run(job, context, digest=digest, make=LinearLoop)
    start = linearised.run if method.kind == "lqf" else loop.run
    return start(job, context, digest=digest)
