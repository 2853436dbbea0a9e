"""The training loop of one rank: steps, epochs, evaluation, checkpoints. Runs in Ray workers, or inline without Ray.

Every decision that ends the loop (non-finite loss, collapse) is taken from all-reduced numbers, so all ranks take it in
the same step. A step's random state follows from (seed, step, rank): nothing random needs saving.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, distributed, nn

from graceful import learners, tasks
from graceful.chain.multipliers import strengths
from graceful.errors import NonFiniteError, SpecError, TrainingError
from graceful.models.base import CODE_FAULTS, Outputs
from graceful.models.weights import load_own
from graceful.storage import sha256_file
from graceful.tasks.base import Samples, Task
from graceful.tasks.portions import portion
from graceful.training import batches, checkpoint, engine, seeds, stops
from graceful.training.budget_multipliers import BEST, budget_multipliers_of
from graceful.training.collapse import PATIENCE, HeldOut
from graceful.training.job import PROFILE, WEIGHTS, TrainingJob, first_line, write_weights
from graceful.training.objective import Objective, ObjectiveValue
from graceful.training.rank_context import RankContext, out_of_time, together, unanimous
from graceful.training.rates import described
from graceful.training.readings import PREEMPTED, Numbers, Readings, Unread, read_all
from graceful.training.reporting import Reporter
from graceful.training.sampler import Sampler, shard
from graceful.training.schedule import learning_rate
from graceful.training.speed import Speedometer, StepProfiler
from graceful.training.start import weights_of
from graceful.training.stops import Progress

_EVALUATION_BATCH = 512


def run(job: TrainingJob, context: RankContext, *, digest: str, make: type[Loop] | None = None) -> dict[str, Any]:
    """Train to the end, from the newest checkpoint if there is one.

    Args:
        job: What to train.
        context: The rank, its device and where checkpoints go.
        digest: The digest of the job's identity; a checkpoint of another one is refused.
        make: The loop; None: that of gradient descent on all weights.

    Returns:
        `steps`, `validation_error`, `weights_sha256`, `resumed_from`; the weights lie in the run's folder.

    Raises:
        NonFiniteError, CollapsedError, TrainingError, DataError, SpecError, IntegrityError: On all ranks alike where
            the fact `unanimous` is set.
    """
    if context.device.type == "cuda":
        torch.cuda.set_device(context.device)
    torch.set_num_threads(1 if context.world_size > 1 else torch.get_num_threads())
    loop = together(context, lambda: (make or Loop)(job, context, digest=digest))
    loop.start()
    try:
        while loop.progress.step < loop.steps:
            loop.epoch()
        return loop.finish()
    finally:
        loop.close()


class Loop:
    """One rank's run. Making it opens data and predecessors and talks to no other rank."""

    def __init__(self, job: TrainingJob, context: RankContext, *, digest: str) -> None:
        self.job, self.context, self.digest = job, context, digest
        self.train = job.spec.train
        task = job.task or tasks.build(job.spec.task)
        self.materials = batches.gather(job, task, device=context.device)
        self.sampler = Sampler(
            samples=self.materials.train.training_rows,
            batch_size=self.train.batch_size,
            accumulation=self.train.accumulation,
            world_size=context.world_size,
            seed=job.effective_seed,
            runs=self.materials.train.runs,
            in_order=self.materials.stream is not None,
        )
        self.steps = job.epochs * self.sampler.steps_per_epoch
        self.objective = Objective(
            job.compatibility,
            task.classes,
            self.materials.versions,
            context.device,
            groups=self.materials.groups,
            task_loss=self._task_loss,
            task_weight=job.task_weight,
        )
        self.budgets = budget_multipliers_of(job, task)
        fixed = strengths(job.compatibility.weighting, [version.name for version in self.materials.versions])
        self.objective.strengths = self.budgets.strengths if self.budgets else fixed
        self.best: dict[str, Tensor] | None = None
        torch.manual_seed(job.effective_seed)
        self.network = self._network(task)
        self.progress, self.reporter = Progress(), Reporter(job, context, steps=self.steps)
        self.resumed_from: int | None = None
        self.speed = Speedometer(self.train, context)
        self.profiler = StepProfiler(None, context.device)
        self.announced = self._left = False
        self.readings, self.sound = Readings(), torch.ones((), dtype=torch.bool, device=context.device)

    def _network(self, task: Task) -> nn.Module:
        """Return the network with its initial weights, whole or in shards."""
        job = self.job
        with engine.construction(self.train, device=self.context.device):
            network = task.network(task.classes)
        if job.start is not None:
            load_own(network, weights_of(job.start, network, task=task, head=self.train.start == "head"))
        if not engine.is_sharded(self.train):
            batches.try_out(task, network, self.materials.train)
        return network

    def _task_loss(self, outputs: Outputs, batch: learners.Batch, labels: Tensor) -> Tensor:
        return self.materials.learner.task_loss(outputs, batch, labels)

    def start(self) -> None:
        """Build the engine, take up the newest checkpoint, open the trace."""
        forward = partial(learners.run, self.materials.learner)
        self.engine = engine.build(self.train, self.network, device=self.context.device, run=forward)
        with self.context.restore() as folder:
            if folder is not None:
                self._resume(folder)
        self.materials.remix(self.objective.strengths)
        if self.job.profile and self.context.rank == 0:
            self.profiler = StepProfiler(self.job.run_dir / PROFILE, self.context.device)
        rates = described(self.train.optimizer, self.network)
        self.reporter.open(step=self.progress.step, samples=self.sampler.samples, sampler=self.sampler, rates=rates)

    def epoch(self) -> None:
        """Train to the end of the current epoch, evaluate, save."""
        epoch, steps_done = divmod(self.progress.step, self.sampler.steps_per_epoch)
        if steps_done == 0:
            self.progress.loss_sum, self.progress.right = 0.0, 0
        order = self.sampler.slices(epoch, first_step=steps_done, rank=self.context.rank)
        begun, first_step = time.monotonic(), self.progress.step
        self.speed.mark("data")
        for slices in self.materials.slices(order, epoch=epoch):
            self.speed.mark("data")
            self.speed.count(self.network, self.materials.learner, slices[0].batch)
            self._step(slices, epoch=epoch)
            self.profiler.step()
            if self.progress.step % self.sampler.steps_per_epoch == 0:
                self._read()
                self._evaluate(epoch, seconds=time.monotonic() - begun, steps=self.progress.step - first_step)
                self.speed.mark("evaluation")
            interval = self.train.checkpoint_every or self.sampler.steps_per_epoch
            leaving = self.announced and not self._left
            if self.progress.step % interval == 0 or self.progress.step == self.steps or leaving:
                self._save()
                self._left = self.announced
                self.speed.mark("checkpoint")

    def finish(self) -> dict[str, Any]:
        """Export the weights; what rank 0 returns is the outcome."""
        state = self.engine.export()
        path = self.job.run_dir / WEIGHTS
        if state is None:
            return {}
        error, extra = self.progress.validation_error, {}
        if self.budgets is not None and self.best is not None:
            state, error, extra = self.best, self.budgets.best_error, self.budgets.outcome
        write_weights(path, state)
        return {
            "steps": self.progress.step,
            "validation_error": error,
            "weights_sha256": sha256_file(path),
            "resumed_from": self.resumed_from,
            "silent": self.objective.silent,
            **extra,
        }

    def close(self) -> None:
        """Close the trace, and the profile if there is one."""
        self.profiler.close()
        self.reporter.close()

    # --- steps --------------------------------------------------------------------------------------------------------

    def _step(self, slices: list[batches.Slice], *, epoch: int) -> None:
        step, every = self.progress.step, self.context.read_every
        seeds.reseed(self.job.effective_seed, step, self.context.rank, device=self.context.device)
        preempted = self.context.preempted
        numbers = Numbers(self.context.world_size, preempted=None if preempted is None else preempted())
        for batch_slice in slices:
            self._learn(batch_slice, numbers)
        means, read_rows = numbers.means(), None
        if every == 1:
            read_rows = read_all(means)
            for batch_slice, row in zip(slices, numbers.named(read_rows), strict=True):
                self._check(row, batch_slice, step=step, epoch=epoch)
        if self.context.deadline is not None and time.monotonic() > self.context.deadline:
            raise out_of_time(self.train.timeout)
        base, warmup, schedule = self.train.optimizer.lr, self.train.warmup, self.train.schedule
        rate = learning_rate(step, total=self.steps, base=base, warmup=warmup, schedule=schedule)
        norm = self._update(rate, means, step=step, epoch=epoch)
        self.progress.step += 1
        positions = [batch_slice.positions for batch_slice in slices]
        self.readings.add(
            Unread(
                step=step,
                epoch=epoch,
                rate=rate,
                positions=positions,
                numbers=numbers,
                means=means,
                norm=norm,
                rows=read_rows,
            )
        )
        if len(self.readings) >= every:
            self._read()
        self.speed.mark("update")

    def _learn(self, batch_slice: batches.Slice, numbers: Numbers) -> None:
        """Add the gradients of a slice, and its numbers to those of the step."""
        value = self._value(batch_slice)
        numbers.add(value)
        self.speed.mark("forward")
        self.engine.backward(value.total)
        self.speed.mark("backward")

    def _value(self, batch_slice: batches.Slice) -> ObjectiveValue:
        return self.objective(
            self._forward(batch_slice),
            batch_slice.labels,
            batch_slice.old,
            batch_slice.reference,
            batch_slice.merged,
            batch=batch_slice.batch,
            weights=batch_slice.weights,
        )

    def _read(self) -> None:
        """Take up the numbers of the steps since the last time.

        Raises:
            NonFiniteError: Of one of them; it changed no weight, and neither did those after it.
        """
        for reading in self.readings.read():
            if self.context.read_every > 1:
                for means, positions in zip(reading.slices, reading.positions, strict=True):
                    again = partial(self.materials.again, positions, epoch=reading.epoch)
                    self._check(means, again, step=reading.step, epoch=reading.epoch)
                if reading.norm is not None and not math.isfinite(reading.norm) and self.train.precision != "fp16":
                    raise stops.of_step(engine.bad_gradient(reading.norm), step=reading.step, epoch=reading.epoch)
            means = reading.means
            self.announced = means.pop(PREEMPTED, 0.0) > 0.0 or self.announced
            self.progress.loss_sum += means["total"]
            self.progress.right += round(means["correct"] * self.context.world_size * len(reading.slices))
            self.reporter.step(
                means, step=reading.step + 1, epoch=reading.epoch, rate=reading.rate, norm=reading.finite_norm
            )

    def _forward(self, batch_slice: batches.Slice) -> Outputs:
        """Run the network on a slice. Alone and on the CPU what its code raises is its own; elsewhere it may be the
        device's or a peer's, and whoever started the workers decides."""
        try:
            return self.engine.forward(batch_slice.batch)
        except CODE_FAULTS as e:
            if self.context.world_size > 1 or self.context.device.type != "cpu":
                raise
            epoch = self.progress.step // self.sampler.steps_per_epoch
            ends = batch_slice.positions[[0, -1]].tolist()
            first, last = (self.materials.name(position, epoch=epoch) for position in ends)
            raise TrainingError(
                f"step {self.progress.step + 1}: the network fails on samples {first!r} ... {last!r} of train,"
                f" {learners.batch.described(batch_slice.batch)} ({first_line(e)}); correct network() or the data"
            ) from e

    def _update(self, rate: float, means: Sequence[Tensor], *, step: int, epoch: int) -> float | Tensor | None:
        sound = None
        if self.context.read_every > 1:
            self.sound = sound = self.sound & torch.cat(list(means)).isfinite().all()
        try:
            return self.engine.step(rate, sound=sound).grad_norm
        except NonFiniteError as e:
            self._read()
            raise stops.of_step(e, step=step, epoch=epoch) from e

    def _check(
        self,
        means: Mapping[str, float],
        batch_slice: batches.Slice | Callable[[], batches.Slice | None],
        *,
        step: int,
        epoch: int,
    ) -> None:
        """End the run if a number is not finite."""
        stops.require_finite(means, step=step, epoch=epoch, culprit=lambda: self._culprit(batch_slice, epoch=epoch))

    def _culprit(self, batch_slice: batches.Slice | Callable[[], batches.Slice | None], *, epoch: int) -> str | None:
        """Id of a sample whose input is not finite, on whichever rank; all ranks ask."""
        read = batch_slice() if callable(batch_slice) else batch_slice
        position = torch.tensor(-1 if read is None else batches.first_not_finite(read), device=self.context.device)
        if self.context.world_size > 1:
            distributed.all_reduce(position, distributed.ReduceOp.MAX)
        return self.materials.name(int(position), epoch=epoch) if int(position) >= 0 else None

    # --- epochs -------------------------------------------------------------------------------------------------------

    def _evaluate(self, epoch: int, *, seconds: float, steps: int) -> None:
        speed = self.speed.row(seconds=seconds, steps=steps, waiting=self.engine.waiting())
        counts = torch.tensor(
            batches.evaluate(
                self.materials.task,
                self.materials.validation,
                self._own_shard(self.materials.validation),
                forward=partial(self.engine.forward, train=False),
                device=self.context.device,
            ),
            device=self.context.device,
        )
        if self.context.world_size > 1:
            distributed.all_reduce(counts)
        correct, total = counts.tolist()
        held_out = HeldOut(wrong=total - correct, n=total, classes=len(self.materials.task.classes))
        self.progress.validation_error = held_out.error
        seen = self.sampler.steps_per_epoch * self.train.batch_size
        self.reporter.write(
            event="epoch",
            step=self.progress.step,
            epoch=epoch + 1,
            loss=self.progress.loss_sum / self.sampler.steps_per_epoch,
            train_error=1.0 - self.progress.right / seen,
            validation_error=self.progress.validation_error,
            seconds=round(seconds, 3),
            **speed,
            **self._move(epoch),
        )
        self._check_collapse(held_out, epoch=epoch)

    def _own_shard(self, samples: Samples) -> list[NDArray[np.int64]]:
        size = portion(samples, self.materials.learner.collate, most=_EVALUATION_BATCH)
        return shard(len(samples), rank=self.context.rank, world_size=self.context.world_size, size=size)

    def _move(self, epoch: int) -> dict[str, Any]:
        """Measure the constraint split, move the multipliers, keep the weights if they are the best so far."""
        if self.budgets is None:
            return {}
        context = self.context
        positions, forward = self._own_shard(self.budgets.samples), partial(self.engine.forward, train=False)
        counts = self.budgets.count(self.materials.task, positions, forward=forward, device=context.device)
        if context.world_size > 1:
            distributed.all_reduce(counts)
        facts, better = self.budgets.advance(counts, epoch=epoch, validation_error=self.progress.validation_error)
        if better:
            self.best = self.engine.export()
        facts["conflict"] = self.materials.conflicts()  # of the epoch that is over, like its `multipliers`
        self.objective.strengths = self.budgets.strengths
        self.materials.remix(self.budgets.strengths)
        return facts

    def _check_collapse(self, held_out: HeldOut, *, epoch: int) -> None:
        """End the run at its second epoch in a row at chance; those begun in the first or the warm-up do not count."""
        excused = epoch * self.sampler.steps_per_epoch < max(round(self.train.warmup * self.steps), 1)
        former, self.progress.former_error = self.progress.former_error, held_out.error
        self.progress.streak = held_out.streak(self.progress.streak, former_error=former, excused=excused)
        if self.progress.streak >= PATIENCE:
            raise unanimous(held_out.collapsed(epoch + 1))

    # --- checkpoints --------------------------------------------------------------------------------------------------

    def _save(self) -> None:
        self._read()
        with checkpoint.writing(self.context.scratch or Path(tempfile.gettempdir())):
            part = Path(tempfile.mkdtemp(prefix=".part-", dir=self.context.scratch))
        with checkpoint.writing(part):
            self.engine.save(part)
            if self.best is not None:
                write_weights(part / BEST, self.best)
        state = {
            "schema": 1,
            "digest": self.digest,
            "progress": dict(vars(self.progress)),
            "objective": self.objective.state_dict(),
            "duals": self.budgets and self.budgets.state_dict(),
        }
        if self.materials.stream is not None:
            state["stream"] = self.materials.stream.state(self.progress.step)
        self.reporter.sync()
        step, rank, world_size = self.progress.step, self.context.rank, self.context.world_size
        metrics = {"step": step, "validation_error": self.progress.validation_error}
        self.context.publish(
            checkpoint.Part(folder=part, step=step, metrics=metrics, state=state, rank=rank, world_size=world_size)
        )

    def _resume(self, folder: Path) -> None:
        state = together(self.context, lambda: self._verified(folder))
        self.engine.load(folder)
        self.objective.load_state_dict(state["objective"])
        if self.budgets is not None and state.get("duals"):
            self.budgets.load_state_dict(state["duals"])
            self.objective.strengths = self.budgets.strengths
            if self.context.rank == 0 and (folder / BEST).exists():
                self.best = load_file(folder / BEST)
        self.progress = Progress(**state["progress"])
        if self.materials.stream is not None:
            self.materials.stream.resume(self.progress.step, state["stream"])
        self.resumed_from = self.progress.step

    def _verified(self, folder: Path) -> dict[str, Any]:
        state = checkpoint.verify(folder)
        if state["digest"] != self.digest:
            raise SpecError(f"{folder}: checkpoint of another spec; choose another name, or delete {self.job.run_dir}")
        return state
