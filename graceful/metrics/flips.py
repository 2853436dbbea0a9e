"""Negative flips and their relatives: what was right before and is wrong now. Runs in driver and workers, NumPy.

Functions take booleans per id, right (True) or wrong, on the same ids in the same order; `compare` joins two versions
by id and measures everything. A prediction that is not a class (NaN) is wrong. N is the number of ids both can answer.

Source: positive-congruent training (NFR, relative NFR); identities in `tests/unit/test_metrics_flips.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from graceful.metrics.intervals import Evidence, Floats, caveat, paired_difference, proportion, statistic
from graceful.metrics.join import encode
from graceful.metrics.predictions import Joined, Predictions, join
from graceful.proportions import wilson
from graceful.report import Measurement

Mask = NDArray[np.bool_]
INDEPENDENT = Evidence()
SMALL_SLICE = 100
NOT_A_CLASS = "predictions are not a class and count as wrong"


def error_rate(ok: Mask, evidence: Evidence = INDEPENDENT, *, reason: str | None = None) -> Measurement:
    """Return the share of ids that are wrong; None without ids."""
    return proportion(~ok, evidence, reason=reason)


def negative_flip_rate(
    ok_new: Mask, ok_old: Mask, evidence: Evidence = INDEPENDENT, *, reason: str | None = None
) -> Measurement:
    """Return the NFR: the share of ids that old has right and new wrong. NFR minus the positive flip rate is the change
    of the error rate."""
    return proportion(ok_old & ~ok_new, evidence, reason=reason)


def positive_flip_rate(ok_new: Mask, ok_old: Mask, evidence: Evidence = INDEPENDENT) -> Measurement:
    """Return the share of ids that old has wrong and new right, among all ids."""
    return proportion(ok_new & ~ok_old, evidence)


def error_rate_change(ok_new: Mask, ok_old: Mask, evidence: Evidence = INDEPENDENT) -> Measurement:
    """Return the error rate of new minus that of old on the same ids, paired; negative is better."""
    return paired_difference(~ok_new, ~ok_old, evidence)


def relative_nfr(ok_new: Mask, ok_old: Mask, evidence: Evidence = INDEPENDENT) -> Measurement:
    """Return the NFR / ((1 - ER_old) ER_new): 1 for independent errors, below 1 for fewer flips than chance would make.

    Returns:
        None with the reason where the denominator is 0: new makes no error, or old is never right.
    """
    columns = np.stack([ok_old & ~ok_new, ok_old, ~ok_new, np.ones_like(ok_new)], axis=1)
    flips, right, wrong, n = (int(total) for total in columns.sum(axis=0))
    if n and not wrong:
        return Measurement(value=None, n=n, reason="the new version makes no error")
    if n and not right:
        return Measurement(value=None, n=n, reason="the old version is never right")
    floor = None
    if n:
        lower, upper = wilson(flips, wrong)
        floor = (lower * n / right, upper * n / right)
    return statistic(columns, _relative, evidence, floor=floor)


def _relative(sums: Floats) -> Floats:
    flips, right, wrong, n = np.moveaxis(sums, -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(flips * n / (right * wrong))


def negative_flip_impact(ok_new: Mask, ok_old: Mask, evidence: Evidence = INDEPENDENT) -> Measurement:
    """Return the share of the new errors that are negative flips, NFR / ER_new; 0 where new makes no error."""
    if len(ok_new) and ok_new.all():
        return Measurement(value=0.0, lower=0.0, upper=0.0, n=0, reason="the new version makes no error")
    return proportion(ok_old, evidence, among=~ok_new)


def backward_trust(ok_new: Mask, ok_old: Mask, evidence: Evidence = INDEPENDENT) -> Measurement:
    """Return the share of what old had right that new still has right; None where old is never right."""
    return proportion(ok_new, evidence, among=ok_old, empty="the old version is never right")


def backward_error(ok_new: Mask, ok_old: Mask, evidence: Evidence = INDEPENDENT) -> Measurement:
    """Return the share of the new errors that old made too; None where new makes no error."""
    return proportion(~ok_old, evidence, among=~ok_new, empty="the new version makes no error")


def inconsistency(ok_new: Mask, agree: Mask, evidence: Evidence = INDEPENDENT) -> Measurement:
    """Return the share of ids that new has wrong with another answer than old: at least the NFR, at most the error
    rate.

    Args:
        ok_new: [N]
        agree: [N] both predict the same class, in the old version's classes.
        evidence: Groups, draws, seed.
    """
    return proportion(~ok_new & ~agree, evidence)


def macro_nfr(ok_new: Mask, ok_old: Mask, classes: NDArray[np.int64], evidence: Evidence = INDEPENDENT) -> Measurement:
    """Return the mean over the classes with support of each class's NFR.

    Returns:
        With a linearised (cluster) interval, at least as wide as Wilson's at the effective number of ids; the reason
        says how many classes have fewer than 100 ids.
    """
    n = len(classes)
    if n == 0:
        return Measurement(value=None, n=0, reason="no ids")
    _, codes, support = np.unique(classes, return_inverse=True, return_counts=True)
    flips = (ok_old & ~ok_new).astype(np.float64)
    rates = np.bincount(codes, weights=flips) / support
    value, count = float(rates.mean()), len(support)
    share = (flips - rates[codes]) / support[codes] / count
    units = np.arange(n) if evidence.units is None else evidence.units
    sums = np.bincount(units, weights=share)
    half = 1.96 * float(np.sqrt((sums**2).sum() * len(sums) / max(len(sums) - 1, 1)))
    effective = count**2 / float((1.0 / support).sum())
    lower, upper = wilson(min(value, 1.0) * effective, effective)
    small = int((support < SMALL_SLICE).sum())
    reason = f"{small} of {count} classes have fewer than {SMALL_SLICE} ids" if small else None
    return Measurement(
        value=value,
        lower=max(0.0, min(lower, value - half)),
        upper=min(1.0, max(upper, value + half)),
        n=n,
        reason=caveat(evidence, reason),
    )


def _quotient(sums: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(sums[..., 0] / sums[..., 1])


def severity(joined: Joined, evidence: Evidence) -> dict[str, Measurement]:
    """Measure the confidence of the new version in its negative flips.

    Returns:
        `negative_flip_severity`: mean over the flips of p(predicted) - p(label), in [0, 1];
        `severe_flip_share`: share of the flips whose p(label) moved by at least one half. Empty without confidences;
        None values without flips.
    """
    flips = joined.negative_flips
    flip_evidence = evidence.at(flips)
    measurements = {}
    if joined.confidence is not None and joined.label_confidence is not None:
        lead = joined.confidence[flips].astype(np.float64) - joined.label_confidence[flips]
        columns = np.stack([lead, np.ones_like(lead)], axis=1)
        measurements["negative_flip_severity"] = statistic(
            columns, _quotient, flip_evidence, undefined="no negative flips"
        )
    if joined.label_confidence is not None and joined.old_label_confidence is not None:
        moved = np.abs(joined.old_label_confidence[flips] - joined.label_confidence[flips]) >= 0.5
        measurements["severe_flip_share"] = proportion(moved, flip_evidence, empty="no negative flips")
    return measurements


def measure_alone(new: Predictions, *, draws: int = 1000, seed: int = 0) -> dict[str, Measurement]:
    """Measure one version on its own: `error_rate` on the ids of classes it knows.

    Raises:
        DataError: Duplicate ids that conflict.
    """
    new = new.unique()
    table: dict[Any, int] = {}
    truth, guess = encode(table, new.labels), encode(table, new.predicted)
    known = new.knows(new.labels)
    predicted = new.has_prediction()
    ok = predicted & (truth == guess)
    evidence = Evidence.of(None if new.groups is None else new.groups[known], draws=draws, seed=seed)
    without_prediction, unknown = int((~predicted & known).sum()), int((~known).sum())
    reason = _counts_text((without_prediction, NOT_A_CLASS), (unknown, "ids of classes it does not know are left out"))
    return {"error_rate": error_rate(ok[known], evidence, reason=reason)}


def compare(new: Predictions, old: Predictions, *, draws: int = 1000, seed: int = 0) -> dict[str, Measurement]:
    """Measure the new version against one old version, on the ids both can answer; classes match by name.


    Args:
        new: The new version's predictions.
        old: The old version's predictions on the same ids.
        draws: Bootstrap draws.
        seed: Seed of the draws.

    Raises:
        DataError: Ids do not join, duplicates or labels conflict.
    """
    joined = join(new, old)
    return measure_pair(joined, joined.evidence(draws=draws, seed=seed))


def measure_pair(joined: Joined, evidence: Evidence) -> dict[str, Measurement]:
    """Return everything that `compare` measures for versions already joined."""
    ok_new, ok_old = joined.ok_new, joined.ok_old
    reason = _left_out_reason(joined)
    shared = np.arange(joined.total) < len(joined)
    measurements = {
        "new_error_rate": error_rate(ok_new, evidence, reason=reason),
        "old_error_rate": error_rate(ok_old, evidence),
        "error_rate_change": error_rate_change(ok_new, ok_old, evidence),
        "negative_flip_rate": negative_flip_rate(ok_new, ok_old, evidence, reason=reason),
        "positive_flip_rate": positive_flip_rate(ok_new, ok_old, evidence),
        "relative_nfr": relative_nfr(ok_new, ok_old, evidence),
        "negative_flip_impact": negative_flip_impact(ok_new, ok_old, evidence),
        "backward_trust": backward_trust(ok_new, ok_old, evidence),
        "backward_error": backward_error(ok_new, ok_old, evidence),
        "inconsistency": inconsistency(ok_new, joined.agree, evidence),
        "macro_nfr": macro_nfr(ok_new, ok_old, joined.classes, evidence),
        "shared_class_coverage": proportion(shared, INDEPENDENT, reason=reason),
    }
    return measurements | severity(joined, evidence)


def _left_out_reason(joined: Joined) -> str | None:
    return _counts_text(
        (joined.without_prediction, NOT_A_CLASS),
        (joined.added, "ids of classes the old version does not know are left out"),
        (joined.retired, "ids of retired classes are left out"),
    )


def _counts_text(*facts: tuple[int, str]) -> str | None:
    return "; ".join(f"{count} {text}" for count, text in facts if count) or None
