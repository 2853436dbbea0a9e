"""Reports of a training loop: rows of the trace, and the same rows as progress. Runs in workers."""

from __future__ import annotations

from collections.abc import Mapping

from graceful.training.job import TrainingJob
from graceful.training.rank_context import Clock, PeakMemory, RankContext
from graceful.training.sampler import Sampler
from graceful.training.trace import FILE, Trace


class Reporter:
    """Writes rows on rank 0; on other ranks it writes nothing.

    Args:
        job: What is trained.
        context: Which rank this is, and where.
        steps: The number of steps of the whole run.
    """

    def __init__(self, job: TrainingJob, context: RankContext, *, steps: int) -> None:
        self._job, self._context, self._steps = job, context, steps
        self._clock, self._memory = Clock(), PeakMemory(context.device)
        self._trace: Trace | None = None

    def open(self, *, step: int, samples: int, sampler: Sampler, rates: str | None = None) -> None:
        """Open the trace at a step and say what begins; every rank must call it.

        Args:
            step: From 0.
            samples: The number of samples of the training split.
            sampler: The sampler of this run.
            rates: Learning rates of the parts of the network; None: there is one.

        Raises:
            StorageError: The disk is full or refuses.
        """
        train, ranks = self._job.spec.train, self._context.world_size
        slices = f"{train.accumulation} slices x {sampler.slice_size}"
        self.begin(
            step=step,
            samples=samples,
            batch=f"{ranks} ranks x {slices} = {train.batch_size}",
            engine=train.engine.kind,
            **({} if rates is None else {"learning_rates": rates}),
        )

    def begin(self, *, step: int, samples: int, batch: str, engine: str, **facts: object) -> None:
        """Open the trace at a step and say what begins; every rank must call it.

        Args:
            step: From 0.
            samples: The number of samples of the training split.
            batch: What is computed at once, in words.
            engine: What computes.
            facts: Further columns.

        Raises:
            StorageError: The disk is full or refuses.
        """
        context, train, pids = self._context, self._job.spec.train, self._context.pids()
        if context.rank == 0:
            self._trace = Trace(self._job.run_dir / FILE, step=step)
        self.write(
            event="start",
            step=step,
            steps=self._steps,
            epochs=self._job.epochs,
            pids=pids,
            world_size=context.world_size,
            batch=batch,
            samples=samples,
            seed=self._job.effective_seed,
            engine=engine,
            precision=train.precision,
            device=str(context.device),
            **facts,
        )

    def step(self, means: Mapping[str, float], *, step: int, epoch: int, rate: float, norm: float | None) -> None:
        """Say how a step went.

        Args:
            means: `total`, each part of the loss, and `correct`, over ranks and slices.
            step: From 1.
            epoch: From 0.
            rate: Learning rate.
            norm: The norm of the gradient; None: not known.
        """
        self._clock.tick()
        pace = self._clock.seconds_per_step
        self.write(
            event="step",
            step=step,
            steps=self._steps,
            epoch=epoch + 1,
            loss=means["total"],
            parts={name: number for name, number in means.items() if name not in ("total", "correct")},
            lr=rate,
            grad_norm=norm,
            samples_per_second=round(self._job.spec.train.batch_size / pace, 1) if pace else None,
            memory_mb=self._memory.mb(),
            eta=round((self._steps - step) * pace, 1) if pace else None,
        )

    def write(self, **row: object) -> None:
        """Write a row; rows of epochs survive the death of the machine."""
        if self._trace is not None:
            self._trace.write(row)
            if row["event"] == "epoch":
                self._trace.sync()
        if self._context.report is not None and self._context.rank == 0:
            self._context.report(row)

    def sync(self) -> None:
        """Make everything written survive the death of the machine."""
        if self._trace is not None:
            self._trace.sync()

    def close(self) -> None:
        """Close the trace."""
        if self._trace is not None:
            self._trace.close()
