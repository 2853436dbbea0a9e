"""Conjugate gradients on all samples at once: preconditioned by Kronecker factors first, then plain. Resumable.

One iteration costs one product with J and one with its transpose. Vectors are float64 whatever the network computes in,
sums over workers are added in one fixed order, so equal data and equal workers give equal bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from graceful.lqf.kfac import Reduce
from graceful.lqf.solution import Derivative, Problem

Precondition = Callable[[Tensor], Tensor]
"""[P] gradient -> [P] step; symmetric and positive."""


@dataclass(frozen=True, kw_only=True)
class State:
    """Between two iterations; everything the next one depends on.

    Attributes:
        delta, gradient, direction: [P] float64.
        product: Inner product of the gradient with its preconditioned self.
        first: Norm of the gradient at delta 0.
        iteration: Iterations done.
    """

    delta: Tensor
    gradient: Tensor
    direction: Tensor
    product: float
    first: float
    iteration: int

    @property
    def relative(self) -> float:
        """Return the norm of the gradient as a share of the first one."""
        return float(self.gradient.norm()) / self.first if self.first > 0.0 else 0.0


def alone(values: Tensor) -> Tensor:
    """Return a sum over one worker."""
    return values


def solve(
    derivative: Derivative,
    problem: Problem,
    *,
    parameters: int,
    tolerance: float,
    iterations: int,
    precondition: Precondition | None = None,
    preconditioned: int = 150,
    reduce: Reduce = alone,
    state: State | None = None,
    each: Callable[[State], None] | None = None,
) -> State:
    """Return the state at which the gradient is small enough, or the iterations are used up.

    Args:
        derivative: J of this worker's samples.
        problem: What is minimised.
        parameters: P.
        tolerance: The tolerance of the relative gradient norm.
        iterations: At most.
        precondition: Kronecker factors; None: plain from the beginning.
        preconditioned: Iterations with it.
        reduce: Adds up over workers.
        state: Where an earlier call was; None: delta 0.
        each: Called after each iteration, e.g. to keep the state.
    """
    state = _begin(derivative, problem, parameters, precondition, reduce) if state is None else state
    while state.relative > tolerance and state.iteration < iterations:
        switch = state.iteration == preconditioned and precondition is not None
        active = precondition if state.iteration < preconditioned else None
        if switch:
            state = _restarted(derivative, problem, state, reduce)
        state = _step(derivative, problem, state, active, reduce)
        if each is not None:
            each(state)
    return state


def _begin(
    derivative: Derivative, problem: Problem, parameters: int, precondition: Precondition | None, reduce: Reduce
) -> State:
    delta = torch.zeros(parameters, dtype=torch.float64, device=problem.residual.device)
    gradient = problem.slope(derivative, delta, reduce=reduce)
    step = gradient if precondition is None else precondition(gradient)
    return State(
        delta=delta,
        gradient=gradient,
        direction=-step,
        product=float(gradient @ step),
        first=float(gradient.norm()),
        iteration=0,
    )


def _restarted(derivative: Derivative, problem: Problem, state: State, reduce: Reduce) -> State:
    """Go on without the factors, from the true gradient."""
    gradient = problem.slope(derivative, state.delta, reduce=reduce)
    return replace(state, gradient=gradient, direction=-gradient, product=float(gradient @ gradient))


def _step(
    derivative: Derivative, problem: Problem, state: State, precondition: Precondition | None, reduce: Reduce
) -> State:
    curved = problem.curved(derivative, state.direction, reduce=reduce)
    length = state.product / float(state.direction @ curved)
    delta, gradient = state.delta + length * state.direction, state.gradient + length * curved
    step = gradient if precondition is None else precondition(gradient)
    product = float(gradient @ step)
    direction = -step + (product / state.product) * state.direction
    return replace(
        state, delta=delta, gradient=gradient, direction=direction, product=product, iteration=state.iteration + 1
    )
