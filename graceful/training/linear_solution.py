"""The minimum of the quadratic: exact, or by conjugate gradients over ranks. Runs in workers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from graceful.lqf import exact, kfac, pcg
from graceful.lqf.operators import Batched, flat, unflat
from graceful.lqf.solution import Problem
from graceful.training.linear_problem import LinearProblem

_REFINEMENTS = 5


@dataclass(frozen=True, kw_only=True)
class Solution:
    """Where the gradient is small.

    Attributes:
        delta: [P] float64.
        contributions: [N x C] u of all samples, with delta = J'u at the minimum.
        relative: Norm of the gradient as a share of that at delta 0.
        iterations: Of conjugate gradients; 0 for exact.
    """

    delta: Tensor
    contributions: Tensor
    relative: float
    iterations: int


def by_factors(linear: LinearProblem, system: exact.DualSystem, ridge: float) -> Solution:
    """Solve by the factorised system, and again for what rounding left, while that helps."""
    problem = linear.problem(linear.all, ridge / linear.samples)
    derivative = linear.derivative(linear.all)
    inverse = torch.where(problem.weights > 0.0, 1.0 / problem.weights.clamp(min=1e-300), 0.0)
    alpha = system.solve(problem.residual, ridge)
    delta = derivative.pull(alpha)
    relative = relative_gradient(derivative, problem, delta, pcg.alone)
    for _ in range(_REFINEMENTS):
        if relative <= linear.method.tolerance:
            break
        left = problem.residual - derivative.push(delta) - ridge * inverse * alpha
        refined = alpha + system.solve(left, ridge)
        candidate = derivative.pull(refined)
        better = relative_gradient(derivative, problem, candidate, pcg.alone)
        if better >= relative:
            break
        alpha, delta, relative = refined, candidate, better
    return Solution(delta=delta, contributions=alpha, relative=relative, iterations=0)


def by_iterations(
    linear: LinearProblem,
    problem: Problem,
    factors: kfac.Factors,
    *,
    state: pcg.State | None,
    each: Callable[[pcg.State], None],
) -> Solution:
    """Solve by conjugate gradients over all ranks; every rank must ask.

    Args:
        linear: What is solved.
        problem: The problem of this rank's samples.
        factors: Precondition.
        state: The state of an interrupted run; None: from delta 0.
        each: Called after each iteration.
    """
    derivative = linear.derivative(linear.own)
    done = pcg.solve(
        derivative,
        problem,
        parameters=linear.parameters,
        tolerance=linear.method.tolerance,
        iterations=linear.method.iterations,
        precondition=factors.preconditioner(problem.penalty, weight=float(linear.targets.weights.mean())),
        reduce=linear.sum,
        state=state,
        each=each,
    )
    return Solution(
        delta=done.delta,
        contributions=linear.gathered(problem.contributions(derivative, done.delta)),
        relative=relative_gradient(derivative, problem, done.delta, linear.sum),
        iterations=done.iteration,
    )


def relative_gradient(
    derivative: Batched, problem: Problem, delta: Tensor, reduce: kfac.Reduce, *, balance: Tensor | float = 0.0
) -> float:
    """Return the norm of the gradient at delta as it will be stored, as a share of that at 0.

    Args:
        derivative: J of this rank's samples.
        problem: The quadratic.
        delta: [P].
        reduce: Adds up over ranks.
        balance: [P] of the gradient that constraints balance.
    """
    stored = flat(unflat(delta, derivative.tangent.start), derivative.tangent.start).to(delta)
    slopes = [problem.slope(derivative, vector, reduce=reduce) for vector in (stored, torch.zeros_like(stored))]
    first = float(slopes[1].norm())
    return float((slopes[0] - balance).norm()) / first if first > 0.0 else 0.0
