"""The penalty l of a linearised version: from the spec, by leave-one-out, or on the validation split. Runs in workers.

The ridge N l is what leave-one-out keeps, so one that was chosen on some samples holds for all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from graceful.errors import SpecError
from graceful.lqf import exact
from graceful.lqf.operators import Batched
from graceful.training.chain_targets import ChainTargets
from graceful.training.fixed_batches import FixedBatches
from graceful.training.linear_problem import LinearProblem

SOME_ROWS = 1_500
"""Samples x classes that the penalty is chosen on where all of them are solved iteratively."""


@dataclass(frozen=True, kw_only=True)
class Penalty:
    """A ridge and how it was found.

    Attributes:
        ridge: N x penalty.
        source: In words.
        notes: Warnings.
    """

    ridge: float
    source: str
    notes: tuple[str, ...] = ()


ErrorOf = Callable[[Tensor], float]
"""Delta [P] -> mean squared error on the validation split."""


def penalty_of(linear: LinearProblem, part: FixedBatches, system: exact.DualSystem | None) -> Penalty:
    """Return the penalty of a spec, or the best one for some samples times the spec's factor.

    Args:
        linear: What is solved.
        part: The samples.
        system: Factorised, of these samples; None: the spec gives the penalty.
    """
    given, factor = linear.method.penalty, linear.method.penalty_factor
    if given is not None or system is None:
        return Penalty(ridge=(given or 0.0) * linear.samples, source="the spec")
    chosen = choose(
        system,
        linear.derivative(part),
        linear.targets_of(part),
        linear.at_start(part)[0],
        unseen=linear.start.unseen,
        error_of=linear.held_out().error_of(linear.start, linear.method.amplitude),
    )
    if factor == 1.0:
        return chosen
    return replace(chosen, ridge=factor * chosen.ridge, source=f"{chosen.source} x {factor:g}")


def system_for_penalty(linear: LinearProblem) -> tuple[FixedBatches, exact.DualSystem | None]:
    """Return the samples that a penalty is chosen on where all are solved iteratively, and their system; every rank
    must ask. None: the spec gives the penalty."""
    part = linear.all.some(max(SOME_ROWS // linear.classes, 2))
    if linear.method.penalty is not None:
        return part, None
    weights = linear.problem(part, penalty=0.0).weights
    return part, exact.DualSystem(linear.kernel(part), weights, classes=linear.classes)


def choose(
    system: exact.DualSystem,
    derivative: Batched,
    fitted: ChainTargets,
    start: Tensor,
    *,
    unseen: bool,
    error_of: ErrorOf | None,
) -> Penalty:
    """Return the ridge that predicts samples best which the solution has not seen.

    Args:
        system: Factorised, of these samples.
        derivative: J of the same samples.
        fitted: Targets of the same samples.
        start: [N, C] outputs at w0.
        unseen: w0 has not seen their labels, so leaving one out is fair.
        error_of: Error on the validation split; None: it is empty.

    Raises:
        SpecError: Neither is possible.
    """
    residual = (fitted.targets - start).reshape(-1)
    count = len(start)
    if unseen:
        chosen = exact.choose_ridge(system, residual, (fitted.of_labels - start).reshape(-1))
        source = f"leave-one-out of {count} samples"
    elif error_of is not None:
        chosen = _by_validation(system, derivative, residual, error_of)
        source = "the validation split"
    else:
        raise SpecError(
            "train.method.penalty: cannot be chosen, because the starting weights have seen the training samples and"
            " the validation split is empty; write a penalty"
        )
    notes = () if not chosen.edge else (_at_edge(chosen, count),)
    return Penalty(ridge=chosen.ridge, source=source, notes=notes)


def _by_validation(system: exact.DualSystem, derivative: Batched, residual: Tensor, error_of: ErrorOf) -> exact.Chosen:
    ridges = [share * system.mean_eigenvalue for share in exact.GRID]
    errors = [error_of(derivative.pull(system.solve(residual, ridge))) for ridge in ridges]
    best = int(torch.tensor(errors, dtype=torch.float64).nan_to_num(torch.inf).argmin())
    edge = "smallest" if best == 0 else "largest" if best == len(ridges) - 1 else ""
    return exact.Chosen(ridge=ridges[best], score=errors[best], edge=edge)


def _at_edge(chosen: exact.Chosen, count: int) -> str:
    meaning = {
        "smallest": "the starting weights fit the samples almost without error, or have seen them",
        "largest": "the samples say little that the starting weights can use",
    }[chosen.edge]
    return (
        f"LQF: the penalty {chosen.ridge / max(count, 1):.3g} is the {chosen.edge} that was tried: {meaning}; ordinary"
        " fine-tuning may suit these data better"
    )
