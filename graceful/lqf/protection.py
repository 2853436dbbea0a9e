"""Samples whose answers a solution must keep, as a convex program in the dual. Values and tensors only.

    minimise the quadratic subject to   f_y - f_c >= margin   at protected training samples, for every class c but y

With S the differences of rows, H the Hessian and d* the free minimum, delta = d* + H^-1 J'S' lambda, and lambda >= 0
solves a problem of least distance, min |z| with R z >= g. Non-negative least squares solves it, or shows by weights of
constraints that add up to a contradiction that there is no such z (Lawson and Hanson, Solving Least Squares Problems).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from graceful.lqf.exact import DualSystem

MOST_CONSTRAINTS = 5_000
"""Protected samples x other classes."""
_CONTRADICTION = 1e-10
"""Share of the target that non-negative least squares leaves, below which constraints contradict each other."""
_RANK = 1e-12


@dataclass(frozen=True, kw_only=True)
class Protected:
    """What the program found.

    Attributes:
        change: [M] that is added to the contributions of the free minimum.
        pressure: [M] S' lambda: the gradient that the constraints balance.
        active: How many constraints hold with equality.
        conflicting: Positions among the protected samples that contradict each other; empty: there is a solution.
    """

    change: Tensor
    pressure: Tensor
    active: int
    conflicting: tuple[int, ...] = ()


def differences(rows: Tensor, labels: Tensor, *, samples: int, classes: int) -> Tensor:
    """Return S [m, N x C]: for each protected sample the row of its class less that of each other class.

    Args:
        rows: [n] positions of the protected samples.
        labels: [n] their classes.
        samples: N.
        classes: C.
    """
    chosen = torch.zeros(len(rows) * (classes - 1), samples * classes, dtype=torch.float64)
    line = 0
    for row, label in zip(rows.tolist(), labels.tolist(), strict=True):
        for other in (index for index in range(classes) if index != label):
            chosen[line, row * classes + label], chosen[line, row * classes + other] = 1.0, -1.0
            line += 1
    return chosen


def protect(
    system: DualSystem, kernel: Tensor, chosen: Tensor, outputs: Tensor, *, ridge: float, margin: float, classes: int
) -> Protected:
    """Return what must be added to the contributions of the free minimum.

    Args:
        system: Factorised.
        kernel: [M, M] K.
        chosen: [m, M] S, see `differences`.
        outputs: [M] of the free minimum.
        ridge: N x penalty.
        margin: That every difference must have.
        classes: C.
    """
    from scipy.optimize import nnls  # a second of imports that most runs do without

    moved = chosen @ kernel
    curvature = moved @ chosen.T - moved @ system.smoothed(moved.T, ridge)
    wanted = margin - chosen @ outputs
    values, vectors = torch.linalg.eigh((curvature + curvature.T) / 2.0)
    kept = values > _RANK * values.max().clamp(min=1e-300)
    root = vectors[:, kept] * values[kept].sqrt()
    scale, size = float(root.norm(dim=1).max()), float(wanted.abs().max().clamp(min=1e-300))
    target = torch.zeros(root.shape[1] + 1, dtype=torch.float64)
    target[-1] = 1.0
    matrix = torch.cat([root.T / scale, (wanted / size).unsqueeze(0)])
    found, _ = nnls(matrix.cpu().numpy(), target.numpy(), maxiter=30 * len(wanted))
    weights = torch.from_numpy(found).to(curvature)
    left = 1.0 - float((wanted / size) @ weights)
    if left < _CONTRADICTION:
        named = sorted({index // (classes - 1) for index in weights.nonzero().flatten().tolist()})
        zero = torch.zeros_like(outputs)
        return Protected(change=zero, pressure=zero, active=0, conflicting=tuple(named))
    multipliers = weights / left * size / scale**2
    pressure = chosen.T @ multipliers
    change = pressure - system.smoothed((kernel @ pressure).unsqueeze(1), ridge).squeeze(1)
    return Protected(change=change, pressure=pressure, active=int((weights > 0.0).sum()))
