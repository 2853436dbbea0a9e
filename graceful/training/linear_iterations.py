"""Iterations of conjugate gradients in a run: trace, checkpoints, and how a run is taken up again. In workers."""

from __future__ import annotations

import math
import tempfile
import time
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from graceful.errors import SpecError, TrainingError
from graceful.lqf import pcg
from graceful.training import checkpoint
from graceful.training.job import TrainingJob
from graceful.training.rank_context import RankContext, out_of_time, together, unanimous
from graceful.training.reporting import Reporter

VECTORS = "iterations.safetensors"
SAVE_EVERY = 50
"""Iterations between checkpoints, where `train.checkpoint_every` is not set."""


class Iterations:
    """One rank's view of the iterations; vectors are the same on all ranks, and rank 0 writes them.

    Args:
        job: What is solved.
        context: The rank.
        reporter: Writes the trace.
        digest: The digest of the job's identity; a checkpoint of another one is refused.
        most: Iterations at most.
    """

    def __init__(self, job: TrainingJob, context: RankContext, reporter: Reporter, *, digest: str, most: int) -> None:
        self._job, self._context, self._reporter, self._digest, self._most = job, context, reporter, digest, most
        self._begun = time.monotonic()

    def took(self, state: pcg.State) -> None:
        """Write a row, and a checkpoint where it is time for one.

        Raises:
            TrainingError: The numbers are not finite, or time is up.
        """
        self._reporter.write(
            event="step",
            step=state.iteration,
            steps=self._most,
            epoch=1,
            relative_gradient=state.relative,
            seconds=round(time.monotonic() - self._begun, 3),
        )
        if not math.isfinite(state.relative):
            raise unanimous(TrainingError(f"LQF: iteration {state.iteration} is not finite; write a larger penalty"))
        if self._context.deadline is not None and time.monotonic() > self._context.deadline:
            raise out_of_time(self._job.spec.train.timeout)
        if state.iteration % (self._job.spec.train.checkpoint_every or SAVE_EVERY) == 0:
            self._save(state)

    def resumed(self) -> pcg.State | None:
        """Return the state of the newest checkpoint; None where there is none.

        Raises:
            SpecError, IntegrityError: It is of another spec, or damaged.
        """
        with self._context.restore() as folder:
            if folder is None:
                return None
            numbers = together(self._context, lambda: self._verified(folder))
            vectors = {name: tensor.to(self._context.device) for name, tensor in load_file(folder / VECTORS).items()}
        return pcg.State(**vectors, **numbers)

    def _save(self, state: pcg.State) -> None:
        context = self._context
        with checkpoint.writing(context.scratch or Path(tempfile.gettempdir())):
            part = Path(tempfile.mkdtemp(prefix=".part-", dir=context.scratch))
        if context.rank == 0:
            vectors = {"delta": state.delta, "gradient": state.gradient, "direction": state.direction}
            with checkpoint.writing(part):
                save_file({name: vector.cpu().contiguous() for name, vector in vectors.items()}, part / VECTORS)
        numbers = {"product": state.product, "first": state.first, "iteration": state.iteration}
        document = {"schema": 1, "digest": self._digest, "lqf": numbers}
        self._reporter.sync()
        metrics = {"step": state.iteration, "relative_gradient": state.relative}
        rank, world_size = context.rank, context.world_size
        context.publish(
            checkpoint.Part(
                folder=part, step=state.iteration, metrics=metrics, state=document, rank=rank, world_size=world_size
            )
        )

    def _verified(self, folder: Path) -> dict[str, Any]:
        document = checkpoint.verify(folder)
        if document["digest"] != self._digest or "lqf" not in document:
            raise SpecError(f"{folder}: checkpoint of another spec; choose another name, or delete {self._job.run_dir}")
        numbers: dict[str, Any] = document["lqf"]
        return numbers
