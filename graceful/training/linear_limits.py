"""Limits that a solution keeps: a budget of drift, and samples that must not flip. Exact solver. Runs in workers."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from graceful.errors import SpecError
from graceful.lqf import pcg
from graceful.lqf.exact import DualSystem
from graceful.lqf.operators import Batched
from graceful.lqf.protection import differences, protect
from graceful.spec.methods import Protect
from graceful.training.linear_problem import LinearProblem
from graceful.training.linear_solution import Solution, relative_gradient
from graceful.training.linear_start import require_protected
from graceful.training.rank_context import unanimous

_LARGEST_FACTOR, _STEPS = 1e6, 24
_LISTED = 10


@dataclass(frozen=True, kw_only=True)
class Drifted:
    """What keeps a budget of drift.

    Attributes:
        factor: The factor of the weights of all losses.
        system: Factorised with these weights.
        note: For the report.
    """

    factor: float
    system: DualSystem
    note: str


def protected_rows(linear: LinearProblem, section: Protect) -> Tensor:
    """Return where protected samples are among the rows of all batches, [n].

    Raises:
        SpecError: As `require_protected`.
    """
    places = require_protected(section, linear.materials.train, classes=linear.classes)
    order = np.empty(len(linear.materials.train), dtype=np.int64)
    order[linear.all.rows] = np.arange(len(linear.all.rows))
    return torch.from_numpy(order[places])


def within_drift(linear: LinearProblem, kernel: Tensor, *, ridge: float, budget: float) -> Drifted:
    """Return the smallest factor of the losses' weights with which outputs stay near the latest predecessor's.

    Args:
        linear: What is solved; its targets are those of factor 1.
        kernel: [M, M] of all samples.
        ridge: N x penalty.
        budget: Root mean squared distance.

    Raises:
        SpecError: No factor keeps it.
    """
    if not linear.targets.pulls:
        raise unanimous(
            SpecError("train.method.drift: there is no predecessor to stay near to; leave it out for a first version")
        )
    original, start = linear.targets, linear.at_start(linear.all)[0]

    def at(factor: float) -> tuple[DualSystem, float]:
        fitted = original.times(factor)
        system = DualSystem(kernel, fitted.weights.reshape(-1), classes=linear.classes)
        alpha = system.solve((fitted.targets - start).reshape(-1), ridge)
        return system, fitted.drift(start + (kernel @ alpha).reshape(start.shape))

    free_system, free = at(0.0)
    if free <= budget:
        return Drifted(factor=0.0, system=free_system, note=f"LQF: drift {free:.3g} is within {budget:g} by itself")
    low, high = 1e-4, _LARGEST_FACTOR
    system, drift = at(high)
    if drift > budget:
        raise unanimous(
            SpecError(
                f"train.method.drift: no weight of the losses keeps {budget:g}, the smallest drift is {drift:.3g};"
                " write a larger one, or a smaller penalty"
            )
        )
    for _ in range(_STEPS):
        if high / low < 1.02:
            break
        middle = (low * high) ** 0.5
        tried, value = at(middle)
        if value <= budget:
            high, system, drift = middle, tried, value
        else:
            low = middle
    note = f"LQF: drift {drift:.3g}, {free:.3g} without predecessors, by weights of the losses x {high:.3g}"
    return Drifted(factor=high, system=system, note=note)


def with_protection(
    linear: LinearProblem,
    solution: Solution,
    system: DualSystem,
    kernel: Tensor,
    *,
    section: Protect,
    rows: Tensor,
    ridge: float,
) -> tuple[Solution, str]:
    """Return the solution under the constraints, and the report's lines about them.

    Args:
        linear: What is solved.
        solution: The free minimum.
        system: Factorised.
        kernel: [M, M] of all samples.
        section: The section of the spec.
        rows: What `protected_rows` gave.
        ridge: N x penalty.

    Raises:
        SpecError: The samples contradict each other; they are named.
    """
    labels, start = linear.targets.labels.cpu()[rows], linear.at_start(linear.all)[0].reshape(-1)
    chosen = differences(rows, labels, samples=linear.samples, classes=linear.classes).to(kernel)
    outputs = start + kernel @ solution.contributions
    found = protect(system, kernel, chosen, outputs, ridge=ridge, margin=section.margin, classes=linear.classes)
    if found.conflicting:
        names = [section.ids[index] for index in found.conflicting]
        shown = ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")
        raise unanimous(
            SpecError(
                f"train.method.protect: no weights give all {len(section.ids)} samples a margin of {section.margin:g};"
                f" {shown} contradict each other: correct a label, leave one out, or widen train.method.scope"
            )
        )
    derivative = linear.derivative(linear.all)
    contributions = solution.contributions + found.change
    delta = derivative.pull(contributions)
    relative = _balanced(linear, derivative, delta, found.pressure, ridge=ridge)
    margins = chosen @ (start + kernel @ contributions)
    kept = f"the smallest margin is {float(margins.min()):.3g}, {found.active} constraints hold with equality"
    note = f"LQF: {len(section.ids)} protected samples are answered right, {kept}"
    return replace(solution, delta=delta, contributions=contributions, relative=relative), note


def _balanced(linear: LinearProblem, derivative: Batched, delta: Tensor, pressure: Tensor, *, ridge: float) -> float:
    """Return the norm of the gradient that constraints do not balance, as a share of that at delta 0."""
    penalty = ridge / linear.samples
    problem = linear.problem(linear.all, penalty)
    balance = penalty * derivative.pull(pressure)
    return relative_gradient(derivative, problem, delta, pcg.alone, balance=balance)
