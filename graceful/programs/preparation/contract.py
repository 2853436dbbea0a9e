"""Make the contract of a run from outputs of predecessors and of the reference run on the constraint split. Driver."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from graceful import spec
from graceful.chain import Predecessor, budgets
from graceful.chain.contract import Contract, Correctness, Promise, flips_between
from graceful.errors import DataError
from graceful.tasks.base import Samples, Task
from graceful.tasks.portions import portion


@dataclass(frozen=True, kw_only=True)
class Unconstrained:
    """A run of the same recipe without constraints.

    Attributes:
        version: The trained network.
        errors: Its validation error after each epoch.
    """

    version: Predecessor
    errors: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class ConstraintOutputs:
    """Outputs of the predecessors on the constraint split, computed once.

    Attributes:
        chain: What the predecessors in training get right, nearest first.
        samples: The constraint split.
        batch_size: Samples per forward pass.
    """

    chain: tuple[Correctness, ...]
    samples: Samples
    batch_size: int

    @property
    def names(self) -> NDArray[np.str_]:
        """Return [N] class names."""
        return np.asarray(self.samples.classes)[self.samples.labels]

    def standings(self, reference_error: Callable[[NDArray[np.bool_]], float]) -> list[budgets.Standing]:
        """Return each predecessor on its ids, beside the error of the unconstrained runs there, a function of the
        ids."""
        return [correctness.standing(reference_error(correctness.known)) for correctness in self.chain]


def ask(task: Task, chain: Sequence[Predecessor], *, batch_size: int) -> ConstraintOutputs:
    """Run predecessors over the constraint split.

    Raises:
        DataError: It is empty.
    """
    samples = task.samples("constraint")
    if not len(samples):
        raise DataError("task: the constraint split is empty; adaptive weighting needs samples in it")
    names = np.asarray(samples.classes)[samples.labels]
    return ConstraintOutputs(
        chain=tuple(
            Correctness(
                name=version.name,
                right=_correct(version, samples, names, batch_size),
                known=np.isin(names, version.classes),
            )
            for version in chain
        ),
        samples=samples,
        batch_size=batch_size,
    )


def near_chance(outputs: ConstraintOutputs, *, factor: float) -> dict[str, str]:
    """Return the predecessors with more than `factor` times the error of the nearest, by name, with a sentence for the
    report.

    The nearest counts as having made at least one error, and is never near chance itself.
    """
    nearest, *farther = outputs.standings(lambda _: 0.0)
    least = max(nearest.error, 1.0 / max(nearest.n, 1))
    return {
        standing.name: f"{standing.name}: its error {100 * standing.error:.2f} % is over {factor:g} times that of"
        f" {nearest.name}, {100 * nearest.error:.2f} %; it pulls only where it is right"
        for standing in farther
        if standing.n and standing.error > factor * least
    }


def require_possible(weighting: spec.Adaptive, outputs: ConstraintOutputs) -> None:
    """Refuse what is already known to be infeasible, before an unconstrained run is trained to know the rest.

    Raises:
        SpecError: A budget is infeasible whatever that run's error is, or at the `reference_error` that is given, and
            `weighting.infeasible` is refuse; or a bound names no predecessor.
    """
    reference_error = weighting.reference_error
    if reference_error is not None:
        require_kept(weighting, contract(weighting, outputs, references=()))
    elif weighting.infeasible == "refuse":
        chain = outputs.standings(lambda _: 1.0)
        budgets.require_evidence(chain, relative=weighting.relative, growth=weighting.growth, bounds=weighting.bounds)


def require_kept(weighting: spec.Adaptive, promised: Contract) -> None:
    """Refuse infeasible budgets, unless they are to be skipped.

    Raises:
        SpecError: With the reason.
    """
    if weighting.infeasible == "refuse":
        budgets.require_feasible(promised.budgets)


def contract(weighting: spec.Adaptive, outputs: ConstraintOutputs, *, references: Sequence[Unconstrained]) -> Contract:
    """Plan the budgets.

    Args:
        weighting: What was asked for.
        outputs: Outputs of the predecessors.
        references: Unconstrained runs; may be empty where `weighting.reference_error` is given.

    Raises:
        SpecError: A bound names no predecessor.
    """
    samples = outputs.samples
    reference_correct = [
        _correct(reference.version, samples, outputs.names, outputs.batch_size) for reference in references
    ]
    written_error = weighting.reference_error

    def reference_error(ids: NDArray[np.bool_]) -> float:
        if written_error is not None or not ids.any():
            return written_error or 0.0
        return math.fsum(1.0 - float(correct[ids].mean()) for correct in reference_correct) / len(reference_correct)

    planned = budgets.plan(
        outputs.standings(reference_error),
        relative=weighting.relative,
        growth=weighting.growth,
        bounds=weighting.bounds,
        upper=flips_between(outputs.chain),
    )
    by_name = {correctness.name: correctness for correctness in outputs.chain}
    return Contract(
        promises=tuple(Promise(budget=budget, correctness=by_name[budget.name]) for budget in planned),
        reference_error=reference_error(np.ones(len(samples), dtype=np.bool_)),
        pace=_pace([reference.errors for reference in references]),
        data=samples.digest,
    )


def _correct(version: Predecessor, samples: Samples, names: NDArray[np.str_], batch_size: int) -> NDArray[np.bool_]:
    """Return [N] whether a version is right, on the clean view."""
    blocks, size = [], portion(samples, version.learner.collate, most=batch_size)
    for start in range(0, len(samples), size):
        rows = np.arange(start, min(start + size, len(samples)), dtype=np.int64)
        logits = version(samples.read(rows)).logits.cpu()
        finite = logits.isfinite().all(1).numpy()
        blocks.append(finite & (np.asarray(version.classes)[logits.argmax(1).numpy()] == names[rows]))
    return np.concatenate(blocks)


def _pace(runs: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """Return the mean error of each epoch over the final one, never below 1; empty without runs or where the final
    error is 0."""
    if not runs or not all(errors and errors[-1] > 0.0 for errors in runs):
        return ()
    ratios = [[error / errors[-1] for error in errors] for errors in runs]
    return tuple(max(1.0, math.fsum(epoch) / len(epoch)) for epoch in zip(*ratios, strict=True))
