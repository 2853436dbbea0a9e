"""Which samples to label next so that a bound on negative flips is decided soonest. Driver, NumPy.

Where two versions answer alike there is no flip, whatever the label. So of N samples only those on which they disagree
matter, and each of them counts in one of two ways: it is a flip, or it is none. The gate holds a version as soon as so
many flips are found that the upper end of the interval exceeds the bound, and passes it as soon as so many
disagreements are known to be no flips that the end stays within the bound even if all others are. Neither needs an
assumption about the samples that are not labelled.

Finding out whether at least k of n uncertain things are true, with the fewest looks, is solved: look at the one with
the k-th highest probability, and begin again with what is left (Salloum 1979; Ben-Dov 1981). How many looks that takes
depends on the probabilities, and so do the order and the prediction here, but not the decision.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from graceful.proportions import minimum_n, wilson

Floats = NDArray[np.float64]
State = Literal["passed", "held", "open", "too few"]


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How far a bound is decided.

    Attributes:
        samples: N, on which both versions answered.
        disagree: Samples on which their answers differ.
        flips: Disagreements that are known to be negative flips.
        no_flips: Disagreements that are known to be none.
        bound: On the negative flip rate, a fraction.
        most: Most flips with which the gate passes; -1: so few samples never show the bound.
    """

    samples: int
    disagree: int
    flips: int
    no_flips: int
    bound: float
    most: int

    @classmethod
    def of(cls, *, samples: int, disagree: int, flips: int, no_flips: int, bound: float) -> Standing:
        """Return it, with the most flips that the bound allows."""
        most = largest_count(samples, bound)
        return cls(samples=samples, disagree=disagree, flips=flips, no_flips=no_flips, bound=bound, most=most)

    @property
    def state(self) -> State:
        """Say what the gate would, if all that is not known were as bad, or as good, as it can be."""
        if self.most < 0:
            return "too few"
        if self.flips > self.most:
            return "held"
        return "passed" if self.disagree - self.no_flips <= self.most else "open"

    @property
    def to_hold(self) -> int:
        """Return how many flips must still be found for the gate to hold the version."""
        return max(0, self.most + 1 - self.flips)

    @property
    def to_pass(self) -> int:
        """Return how many disagreements must still be found to be no flips for the gate to pass the version."""
        return max(0, self.disagree - self.no_flips - self.most)

    @property
    def range(self) -> tuple[float, float]:
        """Return the lowest and the highest negative flip rate that the samples may still have."""
        return self.flips / self.samples, (self.disagree - self.no_flips) / self.samples

    @property
    def samples_needed(self) -> int | None:
        """Return how many samples can show the bound at all, without a single flip; None: no number can."""
        return minimum_n(self.bound)


def largest_count(n: int, bound: float) -> int:
    """Return the most flips of n samples with which the upper end of the interval is within the bound; -1: none."""
    low, high = -1, n
    while low < high:
        middle = (low + high + 1) // 2
        if wilson(middle, n)[1] <= bound:
            low = middle
        else:
            high = middle - 1
    return low


def flip_probability(old: NDArray[Any], new: NDArray[Any]) -> Floats:
    """Return the probability of a negative flip where two answers differ.

    Args:
        old, new: [N] each version's confidence in its answer, as if they were right independently of each other.

    Returns:
        [N] old right and new wrong, given that they are not both right.
    """
    a, b = (np.clip(np.asarray(side, dtype=np.float64), 1e-6, 1.0 - 1e-6) for side in (old, new))
    return np.asarray(a * (1.0 - b) / (1.0 - a * b))


def order(probabilities: Floats, *, to_hold: int) -> NDArray[np.int64]:
    """Return the positions of unlabelled disagreements, the most useful one first.

    The first one is what the optimal procedure looks at; the next ones are those that it looks at after an answer or
    two. With the answers of a batch, ask again.

    Args:
        probabilities: [D] of a flip.
        to_hold: Flips that are missing until the version is held.
    """
    by_probability = np.argsort(-probabilities, kind="stable")
    start = min(max(to_hold, 1), len(probabilities)) - 1
    distance = np.abs(np.arange(len(probabilities)) - start)
    return by_probability[np.argsort(distance, kind="stable")].astype(np.int64)


def labels_until_decided(
    probabilities: Floats, *, to_hold: int, to_pass: int, draws: int = 1000, seed: int = 0
) -> NDArray[np.int64]:
    """Return [draws] how many labels the optimal procedure needs, with flips drawn by their probabilities.

    Args:
        probabilities: [D] of unlabelled disagreements.
        to_hold: Flips that are missing until the version is held.
        to_pass: Disagreements that must be no flips until it passes; to_hold + to_pass = D + 1.
        draws: How often it is tried.
        seed: The seed of the draws.
    """
    ranked = -np.sort(-probabilities)
    flips = np.random.default_rng(seed).random((draws, len(ranked))) < ranked
    rows = np.arange(draws)
    place, above, below = (np.full(draws, value) for value in (to_hold - 1, to_hold - 2, to_hold))
    found, missed = np.zeros(draws, dtype=np.int64), np.zeros(draws, dtype=np.int64)
    while (running := (found < to_hold) & (missed < to_pass)).any():
        hit = flips[rows, np.clip(place, 0, len(ranked) - 1)]
        found, missed = found + (running & hit), missed + (running & ~hit)
        place = np.where(hit, above, below)
        above, below = np.where(running & hit, above - 1, above), np.where(running & ~hit, below + 1, below)
    return found + missed
