"""One rank's run of linear-quadratic fine-tuning: penalty, solution, certificate, version. Runs in workers.

Every rank computes the same numbers. A step of the trace is an iteration of conjugate gradients; the exact solver has
one.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import torch

from graceful.lqf import exact, kfac, memory, pcg
from graceful.lqf.exact import DualSystem
from graceful.training.fixed_batches import FixedBatches
from graceful.training.job import TrainingJob
from graceful.training.linear_iterations import Iterations
from graceful.training.linear_limits import protected_rows, with_protection, within_drift
from graceful.training.linear_memory import kept, mixed_moments, of_predecessor
from graceful.training.linear_problem import LinearProblem
from graceful.training.linear_solution import Solution, by_factors, by_iterations
from graceful.training.linear_version import certificate_of, write_version
from graceful.training.penalties import Penalty, penalty_of, system_for_penalty
from graceful.training.rank_context import RankContext, together
from graceful.training.reporting import Reporter


def run(job: TrainingJob, context: RankContext, *, digest: str) -> dict[str, Any]:
    """Solve to the end, from the newest checkpoint if there is one; arguments, result and errors as of `loop.run`."""
    if context.device.type == "cuda":
        torch.cuda.set_device(context.device)
    torch.set_num_threads(1 if context.world_size > 1 else torch.get_num_threads())
    fit = together(context, lambda: Fit(job, context, digest=digest))
    try:
        return fit.run()
    finally:
        fit.reporter.close()


class Fit:
    """One rank's solution. Making it opens data and predecessors and talks to no other rank."""

    def __init__(self, job: TrainingJob, context: RankContext, *, digest: str) -> None:
        self.job, self.context = job, context
        self.linear = LinearProblem(job, context)
        self.method = self.linear.method
        self.reporter = Reporter(job, context, steps=self.method.iterations)
        self.iterations = Iterations(job, context, self.reporter, digest=digest, most=self.method.iterations)
        self.resumed_from: int | None = None
        section = self.method.protect
        self.protected = None if section is None else protected_rows(self.linear, section)
        remembers = self.method.memory
        self.before = None if remembers is None else of_predecessor(self.linear, remembers)
        self.files: dict[str, bytes] = {}

    def run(self) -> dict[str, Any]:
        """Solve, measure, write weights and certificate."""
        begun = time.monotonic()
        linear, solver = self.linear, self._solver()
        state = self.iterations.resumed() if solver == "pcg" else None
        self.resumed_from = None if state is None else state.iteration
        self._open(solver, step=self.resumed_from or 0)
        penalty, solution = self._exact() if solver == "exact" else self._iterative(state)
        certificate = certificate_of(linear, solution, penalty, solver=solver)
        outcome = write_version(
            linear,
            solution,
            certificate,
            notes=penalty.notes,
            files=self.files,
            reporter=self.reporter,
            seconds=time.monotonic() - begun,
        )
        return {**outcome, "resumed_from": self.resumed_from} if outcome else {}

    def _solver(self) -> str:
        rows, parameters, limit = self.linear.samples * self.linear.classes, self.linear.parameters, self.linear.limit
        if self.method.solver == "exact" or self.method.drift is not None or self.method.protect is not None:
            exact.elements_at_once(rows, parameters, limit)
            return "exact"
        if self.method.memory is None and self.method.solver == "auto" and exact.fits(rows, parameters, limit):
            return "exact"
        return "pcg"

    def _open(self, solver: str, *, step: int) -> None:
        batches, count = self.linear.all, self.context.world_size
        self.reporter.begin(
            step=step,
            samples=self.linear.samples,
            batch=f"{len(batches)} batches of {max(batches.sizes)} over {count} ranks",
            engine=f"lqf {solver}",
        )

    def _exact(self) -> tuple[Penalty, Solution]:
        """Find the penalty and the minimum by one factorised system of all samples, within the limits of the method."""
        linear, method = self.linear, self.method
        kernel = linear.kernel(linear.all)
        system = DualSystem(kernel, linear.problem(linear.all, 0.0).weights, classes=linear.classes)
        penalty = self._penalty(linear.all, system)
        if method.drift is not None:
            drifted = within_drift(linear, kernel, ridge=penalty.ridge, budget=method.drift)
            linear.targets, system = linear.targets.times(drifted.factor), drifted.system
            penalty = replace(penalty, notes=(*penalty.notes, drifted.note))
        solution = by_factors(linear, system, penalty.ridge)
        if method.protect is not None and self.protected is not None:
            solution, note = with_protection(
                linear,
                solution,
                system,
                kernel,
                section=method.protect,
                rows=self.protected,
                ridge=penalty.ridge,
            )
            penalty = replace(penalty, notes=(*penalty.notes, note))
        self.reporter.write(event="step", step=1, steps=1, epoch=1, relative_gradient=solution.relative)
        return penalty, solution

    def _iterative(self, state: pcg.State | None) -> tuple[Penalty, Solution]:
        """Find the penalty from some samples, and the minimum by conjugate gradients."""
        linear = self.linear
        part, system = (linear.all, None) if self.before is not None else system_for_penalty(linear)
        penalty = self._penalty(part, system)
        share, own = penalty.ridge / linear.samples, linear.samples
        problem, derivative = linear.problem(linear.own, share), linear.derivative(linear.own)
        moments = preconditioning = linear.moments(derivative)
        if self.method.memory is not None:
            multiplier = self.method.memory.multiplier
            preconditioning = mixed_moments(moments, self.before, own=own, multiplier=multiplier)
            if self.before is not None:
                term = self.before.term(own=own, multiplier=multiplier)
                problem = replace(problem, samples=own + self.before.kept.samples, remembered=term)
            kept_now = kept(linear, self.method.memory, self.before, penalty=share, moments=moments)
            self.files[memory.FILE] = kept_now.file()
        factors = kfac.assembled(linear.start.network, linear.start.names, preconditioning)
        return penalty, by_iterations(linear, problem, factors, state=state, each=self.iterations.took)

    def _penalty(self, part: FixedBatches, system: DualSystem | None) -> Penalty:
        if self.method.penalty is None and self.before is not None:
            note = f"LQF: the memory of {self.before.name} stands for {self.before.kept.samples} samples before these"
            source = f"{self.before.name}, whose memory is used"
            return Penalty(ridge=self.before.kept.penalty * self.linear.samples, source=source, notes=(note,))
        return penalty_of(self.linear, part, system)
