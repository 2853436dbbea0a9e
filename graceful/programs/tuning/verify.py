"""Verification at a calibrated threshold: which genuine pairs a version accepts. Runs in trials.

The threshold is set on ids of its own so that a given share of impostor pairs is accepted: the false accept rate is
kept by construction, and what is left to compare are the genuine pairs that were accepted before and are no more.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from graceful.errors import DataError
from graceful.metrics.retrieval import Embeddings, normalised
from graceful.metrics.verification import ENOUGH, pair_scores, threshold_at

PARTNERS = 20
"""Each id is paired with at most so many others of its label."""


def genuine_pairs(labels: NDArray[np.generic]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return positions [P], [P] of pairs that share a label: each id with those that follow it, no pair twice."""
    order = np.argsort(labels, kind="stable")
    left, right = [], []
    for step in range(1, PARTNERS + 1):
        first, second = order[:-step], order[step:]
        same = labels[first] == labels[second]
        left.append(first[same])
        right.append(second[same])
    return np.concatenate(left).astype(np.int64), np.concatenate(right).astype(np.int64)


def accepted(embedded: Embeddings, *, calibrated_on: Embeddings, far: float) -> NDArray[np.bool_]:
    """Return [P], which genuine pairs have a similarity above the threshold of a false accept rate.

    Raises:
        DataError: Too few impostor pairs to calibrate on.
    """
    scores = pair_scores(calibrated_on, calibrated_on)
    threshold = threshold_at(scores.impostor, total=scores.impostors, rate=far)
    if threshold is None:
        raise DataError(
            f"tune.far: {far:g} needs {ENOUGH / far:.0f} impostor pairs, the constraint split has {scores.impostors};"
            " write a larger rate"
        )
    vectors = normalised(embedded.vectors)
    left, right = genuine_pairs(embedded.labels)
    return np.asarray((vectors[left] * vectors[right]).sum(axis=1) > threshold)
