"""The classes and groups that flipped most, with intervals. Runs in the driver."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graceful.metrics.flips import SMALL_SLICE, negative_flip_rate
from graceful.metrics.intervals import Evidence, wilson
from graceful.metrics.predictions import Joined, Predictions, join

MOST = 10
"""Slices kept for each predecessor."""


@dataclass(frozen=True, kw_only=True)
class Slice:
    """The negative flips of one class or one group against one predecessor.

    Attributes:
        against: Name of the predecessor.
        kind: class or group.
        name: The name of the class or group.
        nfr: Share of its ids that flipped.
        lower: Lower end of the 95 % interval.
        upper: Upper end. The images of one group hang together, so that a group's interval is too narrow.
        count: Ids that flipped.
        n: Ids that both versions can answer.
        small: Fewer than 100 ids.
    """

    against: str
    kind: str
    name: str
    nfr: float
    lower: float
    upper: float
    count: int
    n: int
    small: bool


def most_flipped(new: Predictions, old: Predictions, *, against: str, draws: int, seed: int) -> tuple[Slice, ...]:
    """Return the slices that certainly flipped most: by the lower end of the interval, then by rate, then by name.

    A class or group of three ids with one flip has a high rate that means nothing, and a low lower end.

    Args:
        new: The new version's predictions.
        old: The predecessor's, on the same ids.
        against: Name of the predecessor.
        draws: Bootstrap draws.
        seed: Seed of the draws.
    """
    joined = join(new, old)
    evidence = joined.evidence(draws=draws, seed=seed)
    groupings = [("class", _labels(new, joined), evidence)]
    if joined.groups is not None and evidence.units is not None:
        groupings.append(("group", joined.groups, Evidence()))
    slices = [
        item
        for kind, names, item_evidence in groupings
        for item in _slices(joined, names, item_evidence, against=against, kind=kind)
    ]
    return tuple(sorted(slices, key=_worst)[:MOST])


def _worst(item: Slice) -> tuple[float, float, str, str]:
    return -item.lower, -item.nfr, item.kind, item.name


def _labels(new: Predictions, joined: Joined) -> NDArray[Any]:
    unique = new.unique()
    return unique.labels[np.searchsorted(unique.ids, joined.ids)]


def _slices(joined: Joined, names: NDArray[Any], evidence: Evidence, *, against: str, kind: str) -> list[Slice]:
    """Return the intervals of the slices that can be among the worst; Wilson's, which is never the wider one, chooses
    them."""
    unique_names, codes = np.unique(names, return_inverse=True)
    counts = np.bincount(codes, weights=joined.negative_flips, minlength=len(unique_names))
    totals = np.bincount(codes, minlength=len(unique_names))
    lower = [wilson(count, n)[0] for count, n in zip(counts.tolist(), totals.tolist(), strict=True)]
    order = sorted(
        range(len(unique_names)), key=lambda row: (-lower[row], -counts[row] / totals[row], str(unique_names[row]))
    )
    slices = []
    for row in (row for row in order[: 2 * MOST] if counts[row]):
        in_slice = codes == row
        rate = negative_flip_rate(joined.ok_new[in_slice], joined.ok_old[in_slice], evidence.at(in_slice))
        assert rate.value is not None
        slices.append(
            Slice(
                against=against,
                kind=kind,
                name=str(unique_names[row]),
                nfr=rate.value,
                lower=rate.lower or 0.0,
                upper=1.0 if rate.upper is None else rate.upper,
                count=int(counts[row]),
                n=int(totals[row]),
                small=bool(totals[row] < SMALL_SLICE),
            )
        )
    return slices
