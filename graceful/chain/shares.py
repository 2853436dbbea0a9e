"""Choose how much of a teacher is the old versions', from outputs alone and before any training. Pure; in the driver.

The front is searched over the total share w and, with several old versions, over its division: for each total the
division starts equal and moves towards the version that would lose most (multiplicative weights), so that the largest
negative flip rate falls.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from graceful.chain import blending

TOTALS = tuple(round(0.02 * step, 2) for step in range(46))
"""Total shares that are tried, 0 to 0.9."""
ROUNDS, RATE = 12, 1.0
"""Steps of the division for each total, and how fast it moves."""


@dataclass(frozen=True, kw_only=True, eq=False)
class OldAnswers:
    """Outputs of one old version on held-out samples.

    Attributes:
        name: The name of the version.
        log_p: [N, C] log p_k over the new version's classes, see `blending.completed`.
        right: [N] bool.
        known: [N] bool, it knows the class and has an answer.
        present: [N] bool, it has an answer.
    """

    name: str
    log_p: Tensor
    right: Tensor
    known: Tensor
    present: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """What is known of a blend before training.

    Attributes:
        reference: [N, C] log r of the mean logits of the reference runs.
        reference_error: Mean error of the single runs.
        labels: [N] of the new version; -1 where the reference runs have no answer, so that a teacher has none either.
        old: The old versions, nearest first; at least one.
    """

    reference: Tensor
    reference_error: float
    labels: Tensor
    old: tuple[OldAnswers, ...]

    def predicted(self, shares: Mapping[str, float]) -> Predicted:
        """Return what a teacher with these shares would get wrong."""
        share_of = [shares[version.name] * version.present.double() for version in self.old]
        log_q = blending.blended(self.reference, [version.log_p for version in self.old], share_of)
        return self.measured(log_q.argmax(1) == self.labels, shares=shares)

    def measured(self, right: Tensor, *, shares: Mapping[str, float]) -> Predicted:
        """Return error and flips of answers, [N] whether each is right."""
        flips = {
            version.name: int((version.right & ~right).sum()) / max(int(version.known.sum()), 1) for version in self.old
        }
        return Predicted(shares=dict(shares), error=1.0 - float(right.double().mean()), nfr=flips)


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """A teacher on held-out samples.

    Attributes:
        shares: The shares of the old versions, by name.
        error: Its error rate.
        nfr: Its negative flip rate against each of them.
    """

    shares: Mapping[str, float]
    error: float
    nfr: Mapping[str, float]

    @property
    def total(self) -> float:
        """Return the sum of the shares."""
        return math.fsum(self.shares.values())

    @property
    def worst(self) -> float:
        """Return the largest negative flip rate."""
        return max(self.nfr.values(), default=0.0)

    def document(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {"shares": dict(self.shares), "error": self.error, "nfr": dict(self.nfr)}


def front(evidence: Evidence) -> list[Predicted]:
    """Return for each total share the division with the lowest worst NFR, ties by error."""
    return [min(_divisions(evidence, total), key=lambda teacher: (teacher.worst, teacher.error)) for total in TOTALS]


def choose(teachers: Sequence[Predicted], *, largest_error: float) -> Predicted:
    """Return the teacher with the lowest worst NFR among those that keep the error; if none does, the most accurate."""
    kept = [teacher for teacher in teachers if teacher.error <= largest_error]
    if kept:
        return min(kept, key=lambda teacher: (teacher.worst, teacher.error))
    return min(teachers, key=lambda teacher: (teacher.error, teacher.worst))


def _divisions(evidence: Evidence, total: float) -> list[Predicted]:
    names, tried = [version.name for version in evidence.old], []
    weights = dict.fromkeys(names, 1.0)
    for _ in range(ROUNDS if len(names) > 1 and total > 0.0 else 1):
        scale = total / math.fsum(weights.values())
        teacher = evidence.predicted({name: scale * weight for name, weight in weights.items()})
        tried.append(teacher)
        if teacher.worst == 0.0:
            break
        pull = {name: RATE * nfr / teacher.worst for name, nfr in teacher.nfr.items()}
        weights = {name: weight * math.exp(pull[name]) for name, weight in weights.items()}
        largest = max(weights.values())
        weights = {name: weight / largest for name, weight in weights.items()}
    return tried
