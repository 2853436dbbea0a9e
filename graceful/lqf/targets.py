"""Targets and weights of the quadratic: labels, and predecessors as an exact change of labels. Workers.

    1/2 |f - a y|^2 + 1/2 sum_k g_k |f - s_k f_k|^2  =  1/2 (1 + g) |f - t|^2 + constant
    t = (a y + sum_k g_k s_k f_k) / (1 + g),   g = sum_k g_k

holds class by class, so a predecessor that knows fewer classes pulls those alone. One system with other targets and
weights is all that a chain of any length costs. Outputs of a predecessor of another kind are centred, scaled to labels
by least squares, and moved to their mean; those of a linearised one are on their scale already.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Pull:
    """What one predecessor adds.

    Attributes:
        outputs: [N, C] its outputs on the scale of the labels; what it does not know has strength 0.
        strength: [N, C] g.
        known: [N, C] bool, outputs that it has a value for, whatever its strength there; None: all.
    """

    outputs: Tensor
    strength: Tensor
    known: Tensor | None = None


def label_targets(labels: Tensor, *, classes: int, amplitude: float) -> Tensor:
    """Return `amplitude` x one-hot, [N, C] float64."""
    return amplitude * torch.nn.functional.one_hot(labels, classes).double()


def relabelled(targets: Tensor, weights: Tensor, pulls: Sequence[Pull]) -> tuple[Tensor, Tensor]:
    """Return targets and weights [N, C] of labels and predecessors together.

    Args:
        targets: [N, C] of the labels.
        weights: [N] of the samples.
        pulls: The pulls of predecessors.
    """
    total = weights.double().unsqueeze(1).expand_as(targets).clone()
    pulled = total * targets
    for pull in pulls:
        total += pull.strength
        pulled += pull.strength * pull.outputs
    known = total > 0.0
    return torch.where(known, pulled / torch.where(known, total, 1.0), targets), total


def scaled(outputs: Tensor, labels: Tensor, *, rows: Tensor, amplitude: float) -> Tensor:
    """Return outputs of a predecessor on the scale of labels: centred, times one factor, plus the labels' mean.

    Args:
        outputs: [N, S] logits of the classes that both versions know.
        labels: [N, S] one-hot among these classes.
        rows: [N] bool, samples that count.
        amplitude: a.
    """
    centred = outputs.double() - outputs.double().mean(1, keepdim=True)
    wanted = labels.double() - labels.double().mean(1, keepdim=True)
    norm = float(centred[rows].square().sum())
    factor = amplitude * float((centred[rows] * wanted[rows]).sum()) / norm if norm > 0.0 else 0.0
    return max(factor, 0.0) * centred + amplitude * labels.double().mean(1, keepdim=True)
