"""The quadratic problem, what solves it, and the certificate that a solution carries. Values and tensors only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from graceful.lqf.kfac import Reduce
from graceful.lqf.memory import Remembered

ORDER_INDEPENDENT = 1e-3
"""Relative gradient norm up to which a solution counts as the minimum."""


class Derivative(Protocol):
    """J of the samples that this worker has, on flat vectors."""

    def push(self, delta: Tensor) -> Tensor:
        """Return J delta, [M], for a vector delta [P]."""
        ...

    def pull(self, values: Tensor) -> Tensor:
        """Return J'values, [P], of this worker's samples for values [M]."""
        ...


@dataclass(frozen=True, kw_only=True)
class Problem:
    """`1/(2N) sum_m W_m ((J delta)_m - R_m)^2 + penalty/2 |delta|^2`.

    Attributes:
        residual: [M] targets less outputs at w0 of this worker's samples, M = samples x classes.
        weights: [M] W.
        samples: N over all workers; with what is remembered.
        penalty: l.
        remembered: A further quadratic of delta, the same on all workers; None: none.
    """

    residual: Tensor
    weights: Tensor
    samples: int
    penalty: float
    remembered: Remembered | None = None

    def slope(self, derivative: Derivative, delta: Tensor, *, reduce: Reduce) -> Tensor:
        """Return the gradient at delta, [P]."""
        errors = derivative.push(delta) - self.residual
        slope = reduce(derivative.pull(self.weights * errors)) / self.samples + self.penalty * delta
        return slope if self.remembered is None else slope + self.remembered.slope(delta)

    def curved(self, derivative: Derivative, direction: Tensor, *, reduce: Reduce) -> Tensor:
        """Return the Hessian times a direction, [P]."""
        pushed = self.weights * derivative.push(direction)
        curved = reduce(derivative.pull(pushed)) / self.samples + self.penalty * direction
        return curved if self.remembered is None else curved + self.remembered.times(direction)

    def contributions(self, derivative: Derivative, delta: Tensor) -> Tensor:
        """Return u [M] of this worker's samples: at the minimum delta = J'u over all of them."""
        errors = self.residual - derivative.push(delta)
        return self.weights * errors / (self.samples * self.penalty)


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """Evidence that a version is the minimum of its objective.

    Attributes:
        solver: exact or pcg.
        relative_gradient: Norm of the gradient at the solution as a share of that at delta 0.
        iterations: Of pcg; 0 for exact.
        penalty: l.
        penalty_from: How l was chosen.
        amplitude: The amplitude of the targets.
        samples, parameters: N and P.
        data: Digest of the training samples that does not depend on their order.
        start: Digest of w0.
    """

    solver: str
    relative_gradient: float
    iterations: int
    penalty: float
    penalty_from: str
    amplitude: float
    samples: int
    parameters: int
    data: str
    start: str

    @property
    def order_independent(self) -> bool:
        """Return whether the solution is close enough to the minimum to be called independent of the order of the
        data."""
        return self.relative_gradient <= ORDER_INDEPENDENT

    def document(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {**vars(self), "order_independent": self.order_independent}

    def sentence(self) -> str:
        """Return it as a sentence for a report."""
        steps = f" after {self.iterations} iterations" if self.iterations else ""
        told = (
            "the version does not depend on the order of its data"
            if self.order_independent
            else f"above {ORDER_INDEPENDENT:g}, so the version may depend on the order of its data"
        )
        return (
            f"LQF: solver {self.solver}, relative gradient {self.relative_gradient:.1e}{steps}: {told}; penalty"
            f" {self.penalty:.3g} from {self.penalty_from}, {self.samples} samples (digest {self.data[:12]}),"
            f" {self.parameters} parameters, starting weights {self.start[:12]}"
        )
