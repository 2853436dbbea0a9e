"""The multipliers of a run: measured on the constraint split after every epoch, moved, checkpointed. Runs in workers.

Everything follows from integer counts that are summed over ranks, so that every rank has the same multipliers to the
bit. The best checkpoint that keeps all budgets is kept on rank 0 and travels in the checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from graceful import spec
from graceful.chain import multipliers
from graceful.chain.contract import Contract
from graceful.chain.multipliers import Measured
from graceful.errors import DataError, SpecError
from graceful.tasks.base import Samples, Task
from graceful.training.batches import answered
from graceful.training.job import TrainingJob

BEST = "best.safetensors"
"""Weights of the best checkpoint so far, in every checkpoint."""


class BudgetMultipliers:
    """Multipliers and the choice of a checkpoint.

    Args:
        contract: What was promised.
        weighting: How multipliers move.
        samples: The constraint split.

    Raises:
        DataError: It is not the split that the predecessors were asked about.
    """

    def __init__(self, contract: Contract, weighting: spec.Adaptive, samples: Samples) -> None:
        if contract.data != samples.digest:
            raise DataError(
                f"constraint split: SHA-256 must be {contract.data[:12]}..., got {samples.digest[:12]}...; restore the"
                " data, or give the version another name"
            )
        self._contract, self._weighting, self.samples = contract, weighting, samples
        self.strengths = multipliers.initial(contract.budgets, start=weighting.start)
        self._best: tuple[float, ...] | None = None
        self.best_epoch: int | None = None
        self.best_error = 1.0

    def count(
        self,
        task: Task,
        batches: Sequence[NDArray[np.int64]],
        *,
        forward: Callable[[Tensor], Any],
        device: torch.device,
    ) -> Tensor:
        """Return the counts of this rank's part: flips against each predecessor, then errors, int64 [k + 1]."""
        right = np.stack([promise.correctness.right for promise in self._contract.promises])
        counts = torch.zeros(len(right) + 1, dtype=torch.int64)
        for positions, hits in answered(task, self.samples, batches, forward=forward, device=device):
            wrong = ~hits.numpy()
            counts[:-1] += torch.from_numpy((right[:, positions] & wrong).sum(1))
            counts[-1] += int(wrong.sum())
        return counts.to(device)

    def advance(self, counts: Tensor, *, epoch: int, validation_error: float) -> tuple[dict[str, Any], bool]:
        """Move the multipliers.

        Args:
            counts: The counts of all ranks together.
            epoch: From 0.
            validation_error: The validation error of this checkpoint.

        Returns:
            Facts for the trace, and whether this is the best checkpoint so far.
        """
        *flips, errors = counts.tolist()
        budgets, pace = self._contract.budgets, self._contract.pace_of(epoch)
        known = {
            promise.budget.name: max(int(promise.correctness.known.sum()), 1) for promise in self._contract.promises
        }
        rates = {name: flips[index] / known[name] for index, name in enumerate(known)}
        measured = Measured(flips=rates, error=errors / len(self.samples))
        used = self.strengths
        self.strengths = multipliers.advance(
            used,
            budgets=budgets,
            measured=measured,
            reference_error=self._contract.reference_error,
            pace=pace,
            weighting=self._weighting,
        )
        rank = multipliers.rank(measured, budgets, error=validation_error)
        better = self._best is None or rank < self._best
        if better:
            self._best, self.best_epoch, self.best_error = rank, epoch + 1, validation_error
        facts = {
            "constraint_error": measured.error,
            "pace": pace,
            "feasible": rank[0] == 0.0,
            "nfr": rates,
            "multipliers": used,
            "next_multipliers": self.strengths,
        }
        return facts, better

    @property
    def outcome(self) -> dict[str, Any]:
        """Return which checkpoint was chosen."""
        return {"chosen_epoch": self.best_epoch, "feasible": self._best is not None and self._best[0] == 0.0}

    def state_dict(self) -> dict[str, Any]:
        """Return JSON values; they are the same on all ranks."""
        return {
            "multipliers": self.strengths,
            "best": None if self._best is None else [*self._best, self.best_epoch, self.best_error],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what a checkpoint has.

        Raises:
            SpecError: It has multipliers of other predecessors.
        """
        names = [budget.name for budget in self._contract.budgets]
        if sorted(state["multipliers"]) != sorted(names):
            raise SpecError(
                f"compatibility.weighting: the checkpoint has multipliers of {sorted(state['multipliers'])}, this run"
                f" needs {sorted(names)}; resume with the spec of that run"
            )
        self.strengths = {name: float(state["multipliers"][name]) for name in names}
        if state["best"] is not None:
            *rank, epoch, error = state["best"]
            self._best, self.best_epoch, self.best_error = tuple(rank), int(epoch), float(error)


def budget_multipliers_of(job: TrainingJob, task: Task) -> BudgetMultipliers | None:
    """Return the multipliers of a job; None where its predecessors have no budgets."""
    weighting = job.compatibility.weighting
    if job.contract is None or not isinstance(weighting, spec.Adaptive):
        return None
    return BudgetMultipliers(job.contract, weighting, task.samples("constraint"))
