"""The ordinary training loop on a linearised network: steps of gradient descent on the quadratic. Runs in workers.

Engines, checkpoints and the order of samples are those of any training; `lqf.streaming` has the two passes of a step.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from graceful.learners import Batch
from graceful.lqf import kfac, pcg
from graceful.lqf.streaming import Streaming
from graceful.models.base import Outputs
from graceful.tasks.base import Task
from graceful.training.collapse import HeldOut
from graceful.training.fixed_batches import FixedBatches
from graceful.training.job import TrainingJob
from graceful.training.linear_problem import LinearProblem
from graceful.training.linear_solution import Solution, relative_gradient
from graceful.training.linear_version import certificate_of, write_version
from graceful.training.loop import Loop
from graceful.training.penalties import Penalty, penalty_of, system_for_penalty
from graceful.training.rank_context import RankContext

_POWER = 20
"""Power iterations."""


class LinearLoop(Loop):
    """One rank's run; arguments as of `Loop`."""

    def __init__(self, job: TrainingJob, context: RankContext, *, digest: str) -> None:
        self.linear = LinearProblem(job, context)
        self.penalty = Penalty(ridge=0.0, source="")
        self._begun = time.monotonic()
        super().__init__(job, context, digest=digest)
        undecayed = self.train.optimizer.model_copy(update={"weight_decay": 0.0})  # the penalty is in the loss
        self.train = self.train.model_copy(update={"optimizer": undecayed})

    def _network(self, task: Task) -> nn.Module:
        return self.linear.start.network

    def _task_loss(self, outputs: Outputs, batch: Batch, labels: Tensor) -> Tensor:
        assert isinstance(self.network, Streaming)
        return self.network.loss(outputs, batch, labels)

    def start(self) -> None:
        """Choose the penalty, measure the curvature, and begin as any training does."""
        linear = self.linear
        part, system = system_for_penalty(linear)
        self.penalty = penalty_of(linear, part, system)
        share, start = self.penalty.ridge / linear.samples, linear.start
        moments = linear.moments(linear.derivative(linear.own))
        factors = kfac.assembled(start.network, start.names, moments)
        dtype = next(start.network.parameters()).dtype
        spread = factors.spread(share, dtype=dtype)
        shrink = self._largest(part, share, spread) ** -0.5
        self.network = Streaming(
            start.network,
            start.names,
            spread=lambda theta: shrink * spread(theta),
            amplitude=linear.method.amplitude,
            penalty=share,
        )
        super().start()

    def _largest(self, part: FixedBatches, share: float, spread: Callable[[Tensor], Tensor]) -> float:
        """Return the largest curvature along the coordinates, by power iterations on some samples: rates count from
        it."""
        linear = self.linear
        problem = replace(linear.problem(part, share), samples=sum(part.sizes))
        derivative, dtype = linear.derivative(part), next(linear.start.network.parameters()).dtype
        vector = torch.ones(linear.parameters, dtype=torch.float64, device=self.context.device)
        for _ in range(_POWER):
            direction = spread((vector / vector.norm()).to(dtype)).double()
            vector = spread(problem.curved(derivative, direction, reduce=pcg.alone).to(dtype)).double()
        return float(vector.norm())

    def _check_collapse(self, held_out: HeldOut, *, epoch: int) -> None:
        """Do nothing: a quadratic does not collapse, and the certificate says how far its minimum is."""

    def finish(self) -> dict[str, Any]:
        """Certify what the steps have reached, and write it as a linearised version."""
        assert isinstance(self.network, Streaming)
        linear, share = self.linear, self.penalty.ridge / self.linear.samples
        delta = self.network.vector().detach().double()
        problem, derivative = linear.problem(linear.own, share), linear.derivative(linear.own)
        solution = Solution(
            delta=delta,
            contributions=linear.gathered(problem.contributions(derivative, delta)),
            relative=relative_gradient(derivative, problem, delta, linear.sum),
            iterations=self.progress.step,
        )
        outcome = write_version(
            linear,
            solution,
            certificate_of(linear, solution, self.penalty, solver="sgd_kfac"),
            notes=self.penalty.notes,
            files={},
            reporter=self.reporter,
            seconds=time.monotonic() - self._begun,
        )
        return {**outcome, "resumed_from": self.resumed_from} if outcome else {}
