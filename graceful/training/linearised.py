"""One rank's run of linear-quadratic fine-tuning: w0, targets, penalty, solution, certificate. Runs in workers.

Every rank computes the same numbers: what is small is computed by all of them, products with J of all samples are sums
over ranks. A step of the trace is an iteration of conjugate gradients; the exact solver has one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed

from graceful import learners, tasks
from graceful.chain.multipliers import strengths
from graceful.errors import TrainingError
from graceful.lqf import cut, exact, kfac, pcg
from graceful.lqf.network import Linearised
from graceful.lqf.operators import Batched, flat, unflat
from graceful.lqf.solution import Certificate, Problem
from graceful.lqf.tangent import Tangent
from graceful.models.bundle_files import LinearisedDescription
from graceful.models.weights import own_state, portable
from graceful.spec.methods import Lqf
from graceful.storage import sha256_file
from graceful.training import batches
from graceful.training.chain_targets import ChainTargets, chain_targets
from graceful.training.fixed_batches import FixedBatches, data_digest, fixed_batches
from graceful.training.job import WEIGHTS, TrainingJob, write_weights
from graceful.training.linear_iterations import Iterations
from graceful.training.linear_measures import HeldOut, error_of, locality
from graceful.training.linear_start import LinearStart, prepared, starting_network
from graceful.training.penalties import SOME_ROWS, Penalty, choose
from graceful.training.rank_context import RankContext, together, unanimous
from graceful.training.reporting import Reporter

_REFINEMENTS = 5


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
        method = job.spec.train.method
        assert isinstance(method, Lqf)
        self.job, self.context, self.digest, self.method = job, context, digest, method
        task = job.task or tasks.build(job.spec.task)
        self.materials = batches.gather(job, task, device=context.device)
        self.forward = partial(learners.run, self.materials.learner)
        size = job.spec.train.batch_size
        self.all = fixed_batches(self.materials.train, self.materials.learner, size=size, device=context.device)
        self.own = self.all.of_rank(context.rank, context.world_size)
        self.start = self._start()
        self.cut = self._cut()
        self.targets = self._targets()
        self.reporter = Reporter(job, context, steps=method.iterations)
        self.iterations = Iterations(job, context, self.reporter, digest=digest, most=method.iterations)
        self.resumed_from: int | None = None

    def _start(self) -> LinearStart:
        job, task = self.job, self.materials.task
        network, source, unseen = starting_network(
            self.method, task, self.materials.train, start=job.start, seed=job.effective_seed
        )
        batches.try_out(task, network, self.materials.train)
        follows = job.start is not None and job.start.description.linearised is not None
        return prepared(
            self.method,
            network.to(self.context.device),
            self.all,
            run=self.forward,
            source=source,
            unseen=unseen,
            fresh=not follows,
        )

    def _targets(self) -> ChainTargets:
        names = [version.name for version in self.materials.versions]
        fixed = strengths(self.job.compatibility.weighting, names)
        return chain_targets(self.job, self.materials, self.all, amplitude=self.method.amplitude, strengths=fixed)

    # --- the problem --------------------------------------------------------------------------------------------------

    @property
    def classes(self) -> int:
        """C."""
        return len(self.materials.task.classes)

    def tangent(self) -> Tangent:
        """Return the network at w0 with its derivative."""
        return Tangent(self.start.network, self.forward, self.start.names)

    def _cut(self) -> cut.Cut | None:
        """Blocks whose outputs are kept; None where there are none below the scope, or too many samples."""
        few = learners.batch.take(self.all[0], slice(4))
        found = cut.find(self.start.network, self.forward, self.start.names, few)
        if found is None:
            return None
        needed = cut.bytes_per_sample(found, few) * len(self.all.rows)
        return found if needed <= self.method.memory_gib * 2**30 else None

    def _derivative(self, part: FixedBatches) -> Batched:
        if self.cut is None:
            return Batched(self.tangent(), part, sizes=part.sizes, classes=self.classes)
        above = Tangent(self.start.network, self.cut.replay, self.start.names)
        return Batched(above, cut.Carried(self.cut, part), sizes=part.sizes, classes=self.classes)

    def _at_start(self, part: FixedBatches) -> tuple[Tensor, Tensor]:
        """Outputs at w0 [N, C] in float64, and which samples have an answer [N]."""
        tangent = self.tangent()
        outputs = [tangent.outputs(batch) for batch in part]
        logits = torch.cat([each.logits for each in outputs]).double()
        answered = [
            torch.ones(len(each.logits), dtype=torch.bool, device=logits.device) if each.mask is None else each.mask
            for each in outputs
        ]
        return logits, torch.cat(answered)

    def _targets_of(self, part: FixedBatches) -> ChainTargets:
        """Targets of some of the batches, in their order."""
        place = np.empty(len(self.materials.train), dtype=np.int64)
        place[self.all.rows] = np.arange(len(self.all.rows))
        rows = torch.from_numpy(place[part.rows]).to(self.context.device)
        return self.targets.take(rows)

    def _problem(self, part: FixedBatches, penalty: float) -> Problem:
        start, answered = self._at_start(part)
        fitted = self._targets_of(part)
        weights = torch.where(answered[:, None], fitted.weights, 0.0)
        residual = torch.where(answered[:, None], fitted.targets - start, 0.0)
        self._require_finite(residual)
        return Problem(
            residual=residual.reshape(-1), weights=weights.reshape(-1), samples=len(self.all.rows), penalty=penalty
        )

    def _require_finite(self, residual: Tensor) -> None:
        if not bool(residual.isfinite().all()):
            raise unanimous(
                TrainingError("LQF: an output of the starting weights is not finite; start from other weights")
            )

    # --- the solution -------------------------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Solve, measure, write weights and certificate."""
        begun = time.monotonic()
        samples, parameters = len(self.all.rows), sum(p.numel() for p in self.tangent().start.values())
        solver = self._solver(samples * self.classes, parameters)
        state = self.iterations.resumed() if solver == "pcg" else None
        self.resumed_from = None if state is None else state.iteration
        self._open(solver, step=self.resumed_from or 0)
        penalty, system = self._penalty(solver, parameters)
        if solver == "exact":
            assert system is not None
            delta, relative, iterations = self._exact(system, penalty.ridge)
        else:
            delta, relative, iterations = self._iterative(penalty.ridge / samples, parameters, state=state)
        certificate = Certificate(
            solver=solver,
            relative_gradient=relative,
            iterations=iterations,
            penalty=penalty.ridge / samples,
            penalty_from=penalty.source,
            amplitude=self.method.amplitude,
            samples=samples,
            parameters=parameters,
            data=self._data_digest(),
            start=self.start.digest,
        )
        return self._finish(delta, certificate, penalty, seconds=time.monotonic() - begun)

    def _solver(self, rows: int, parameters: int) -> str:
        limit = int(self.method.memory_gib * 2**30)
        if self.method.solver == "exact":
            exact.elements_at_once(rows, parameters, limit)
            return "exact"
        if self.method.solver == "auto" and exact.fits(rows, parameters, limit):
            return "exact"
        return "pcg"

    def _open(self, solver: str, *, step: int) -> None:
        count = self.context.world_size
        size = max(self.all.sizes)
        self.reporter.begin(
            step=step,
            samples=len(self.all.rows),
            batch=f"{len(self.all)} batches of {size} over {count} ranks",
            engine=f"lqf {solver}",
        )

    def _system(self, part: FixedBatches, problem: Problem) -> tuple[exact.DualSystem, Batched]:
        derivative = self._derivative(part)
        limit, rows = int(self.method.memory_gib * 2**30), len(problem.residual)
        whole = sum(tensor.numel() for tensor in derivative.tangent.start.values())
        kernel = derivative.kernel(elements=exact.elements_at_once(rows, whole, limit))
        return exact.DualSystem(kernel, problem.weights, classes=self.classes), derivative

    def _penalty(self, solver: str, parameters: int) -> tuple[Penalty, exact.DualSystem | None]:
        """The ridge, and the factorised system of all samples where the exact solver needs it."""
        given = self.method.penalty
        if solver != "exact" and given is not None:
            return Penalty(ridge=given * len(self.all.rows), source="the spec"), None
        part = self.all if solver == "exact" else self.all.some(max(SOME_ROWS // self.classes, 2))
        problem = self._problem(part, penalty=0.0)
        system, derivative = self._system(part, problem)
        if given is not None:
            return Penalty(ridge=given * len(self.all.rows), source="the spec"), system
        start = self._at_start(part)[0]
        chosen = choose(
            system,
            derivative,
            self._targets_of(part),
            start,
            unseen=self.start.unseen,
            error_of=self._held_out().error_of(self.start, self.method.amplitude),
        )
        return chosen, system if solver == "exact" else None

    def _exact(self, system: exact.DualSystem, ridge: float) -> tuple[Tensor, float, int]:
        """Solve by the factorised system, and again for what rounding left, while that helps."""
        problem = self._problem(self.all, ridge / len(self.all.rows))
        derivative = self._derivative(self.all)
        inverse = torch.where(problem.weights > 0.0, 1.0 / problem.weights.clamp(min=1e-300), 0.0)
        alpha = system.solve(problem.residual, ridge)
        delta = derivative.pull(alpha)
        relative = self._relative(derivative, problem, delta, pcg.alone)
        for _ in range(_REFINEMENTS):
            if relative <= self.method.tolerance:
                break
            left = problem.residual - derivative.push(delta) - ridge * inverse * alpha
            refined = alpha + system.solve(left, ridge)
            candidate = derivative.pull(refined)
            better = self._relative(derivative, problem, candidate, pcg.alone)
            if better >= relative:
                break
            alpha, delta, relative = refined, candidate, better
        self.reporter.write(event="step", step=1, steps=1, epoch=1, relative_gradient=relative)
        return delta, relative, 0

    def _relative(
        self, derivative: Batched, problem: Problem, delta: Tensor, reduce: Callable[[Tensor], Tensor]
    ) -> float:
        """Norm of the gradient at delta as it will be stored, as a share of that at 0."""
        stored = flat(unflat(delta, derivative.tangent.start), derivative.tangent.start).to(delta)
        slopes = [problem.slope(derivative, vector, reduce=reduce) for vector in (stored, torch.zeros_like(stored))]
        first = float(slopes[1].norm())
        return float(slopes[0].norm()) / first if first > 0.0 else 0.0

    def _iterative(self, penalty: float, parameters: int, *, state: pcg.State | None) -> tuple[Tensor, float, int]:
        problem, derivative = self._problem(self.own, penalty), self._derivative(self.own)
        factors = kfac.factors(
            self.start.network,
            derivative.batches,
            self.start.names,
            samples=problem.samples,
            run=self.forward if self.cut is None else self.cut.replay,
            reduce=self._sum,
            first=self.context.rank,
            stride=self.context.world_size,
        )
        weight = float(self.targets.weights.mean())
        done = pcg.solve(
            derivative,
            problem,
            parameters=parameters,
            tolerance=self.method.tolerance,
            iterations=self.method.iterations,
            precondition=factors.preconditioner(penalty, weight=weight),
            reduce=self._sum,
            state=state,
            each=self.iterations.took,
        )
        return done.delta, self._relative(derivative, problem, done.delta, self._sum), done.iteration

    def _sum(self, values: Tensor) -> Tensor:
        if self.context.world_size > 1:
            distributed.all_reduce(values)
        return values

    # --- the version --------------------------------------------------------------------------------------------------

    def _held_out(self) -> HeldOut:
        """Validation samples that penalty and temperature are chosen on."""
        return HeldOut.of(self.materials, self.forward, size=max(self.all.sizes))

    def _data_digest(self) -> str:
        weights = self.materials.weights
        rows = self.all.rows
        own = None if weights is None else weights.of(rows, self.materials.train.labels[rows]).numpy()
        return data_digest(self.all, own, rank=self.context.rank, world_size=self.context.world_size)

    def _finish(self, delta: Tensor, certificate: Certificate, penalty: Penalty, *, seconds: float) -> dict[str, Any]:
        tangent = self.tangent()
        network = Linearised(self.start.network, self.start.names, slope=self.method.slope)
        network.put(unflat(delta, tangent.start))
        held_out = self._held_out()
        temperature = held_out.temperature(network, self.method.amplitude)
        train_error, validation_error = (
            error_of(network, self.materials, samples, size=max(self.all.sizes), context=self.context)
            for samples in (self.materials.train, self.materials.validation)
        )
        far = locality(self.tangent(), network, self.all[0])
        notes = [*self.start.notes, *penalty.notes, *far, certificate.sentence()]
        self.reporter.write(
            event="epoch",
            step=max(certificate.iterations, 1),
            epoch=1,
            train_error=train_error,
            validation_error=validation_error,
            relative_gradient=certificate.relative_gradient,
            penalty=certificate.penalty,
            seconds=round(seconds, 3),
        )
        if self.context.rank != 0:
            return {}
        path = self.job.run_dir / WEIGHTS
        write_weights(path, portable(own_state(network)))
        description = LinearisedDescription(
            names=self.start.names,
            slope=self.method.slope,
            temperature=temperature,
            amplitude=self.method.amplitude,
            start_sha256=self.start.digest,
            start_from=self.start.source,
            unseen=self.start.unseen,
            certificate=certificate.document(),
        )
        return {
            "steps": certificate.iterations or 1,
            "validation_error": validation_error,
            "weights_sha256": sha256_file(path),
            "resumed_from": self.resumed_from,
            "silent": list(self.targets.silent),
            "linearised": description.model_dump(mode="json"),
            "notes": notes,
        }
