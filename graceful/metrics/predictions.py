"""Predictions of one version by sample id, and those of two versions joined. Runs in driver and workers, NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from graceful.errors import DataError
from graceful.metrics.intervals import Evidence
from graceful.metrics.join import encode, require_same_ids, sorted_unique

NO_PREDICTION = ""
"""Stands for a missing prediction, where logits held NaN; whole numbers use -1 and floats NaN instead."""


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """One version on one split. Classes match by name, so versions with different class lists compare.

    Attributes:
        ids: [N] sample ids; repeated ids must have equal content.
        labels: [N] names of the true classes (strings, or numbers in one shared space).
        predicted: [N] names of the predicted classes, or `NO_PREDICTION`.
        classes: Names that this version can predict; None: every label.
        groups: [N] what belongs together; None: independent ids.
        confidence: [N] probability of the predicted class; None: not known.
        label_confidence: [N] probability of the true class; None: not known.
    """

    ids: NDArray[Any]
    labels: NDArray[Any]
    predicted: NDArray[Any]
    classes: Sequence[Any] | None = None
    groups: NDArray[Any] | None = None
    confidence: NDArray[np.floating[Any]] | None = None
    label_confidence: NDArray[np.floating[Any]] | None = None

    def __post_init__(self) -> None:
        for name, column in {"ids": self.ids, **self._columns()}.items():
            if column is not None and column.shape != (len(self.ids),):
                raise DataError(
                    f"predictions.{name}: must have shape ({len(self.ids)},) like the ids, got {column.shape}"
                )

    def _columns(self) -> dict[str, NDArray[Any] | None]:
        return {
            "labels": self.labels,
            "predicted": self.predicted,
            "groups": self.groups,
            "confidence": self.confidence,
            "label_confidence": self.label_confidence,
        }

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def from_logits(
        cls,
        logits: NDArray[np.floating[Any]],
        *,
        ids: NDArray[Any],
        labels: NDArray[Any],
        classes: Sequence[str],
        groups: NDArray[Any] | None = None,
    ) -> Self:
        """Take the largest logit of each sample.

        Args:
            logits: [N, C] in the order of `classes`. A row with NaN or +inf is not an answer, and counts as wrong.
            ids: [N]
            labels: [N] class **names**; names outside `classes` are allowed.
            classes: C names. Ties go to the class whose name sorts first, whatever the order of the head.
            groups: [N]
        """
        codes, confidence, label_confidence = answers(logits, labels, classes)
        return cls.from_codes(
            codes, confidence, label_confidence, ids=ids, labels=labels, classes=classes, groups=groups
        )

    @classmethod
    def from_codes(
        cls,
        codes: NDArray[np.integer[Any]],
        confidence: NDArray[np.float64],
        label_confidence: NDArray[np.float64],
        *,
        ids: NDArray[Any],
        labels: NDArray[Any],
        classes: Sequence[str],
        groups: NDArray[Any] | None = None,
    ) -> Self:
        """Take what `answers` returned, for all samples; the other arguments are those of `from_logits`."""
        return cls(
            ids=ids,
            labels=labels,
            predicted=np.where(codes >= 0, np.asarray(classes)[codes], NO_PREDICTION),
            classes=tuple(classes),
            groups=groups,
            confidence=confidence,
            label_confidence=label_confidence,
        )

    def unique(self, *, where: str = "predictions") -> Self:
        """Return each id once, in the order of the ids.

        Raises:
            DataError: An id occurs twice with different content.
        """
        return self.take(sorted_unique(self.ids, self._columns(), where=where))

    def take(self, positions: NDArray[np.int64]) -> Self:
        """Return these rows, in this order."""
        columns = {name: None if column is None else column[positions] for name, column in self._columns().items()}
        return type(self)(ids=self.ids[positions], classes=self.classes, **columns)  # type: ignore[arg-type]

    def has_prediction(self) -> NDArray[np.bool_]:
        """Return [N] False where the prediction is not a class."""
        kind = self.predicted.dtype.kind
        if kind == "f":
            return np.asarray(~np.isnan(self.predicted), dtype=np.bool_)
        if kind in "iu":
            return np.asarray(self.predicted >= 0)
        return np.array([name not in (NO_PREDICTION, None) for name in self.predicted.tolist()], np.bool_)

    def knows(self, labels: NDArray[Any]) -> NDArray[np.bool_]:
        """Return [N] whether these labels are classes of this version."""
        if self.classes is None:
            return np.ones(len(labels), dtype=np.bool_)
        known = set(self.classes)
        return np.fromiter((name in known for name in labels.tolist()), np.bool_, len(labels))


def answers(
    logits: NDArray[np.floating[Any]], labels: NDArray[Any], classes: Sequence[str]
) -> tuple[NDArray[np.int32], NDArray[np.float64], NDArray[np.float64]]:
    """Return what logits predict: the class, its probability, and that of the true class.

    Args:
        logits: [N, C] in the order of `classes`. A row with NaN or +inf is not an answer.
        labels: [N] class **names**; names outside `classes` are allowed, and have probability 0.
        classes: C names. Ties go to the class whose name sorts first, whatever the order of the head.

    Returns:
        [N] positions in `classes`, -1 for no answer; [N] and [N] probabilities, 0 for no answer.
    """
    if logits.ndim != 2 or logits.shape[1] != len(classes):
        raise DataError(f"logits: must be [N, {len(classes)}] for {len(classes)} classes, got {logits.shape}")
    by_name = np.argsort(np.asarray(classes), kind="stable")
    ranked = np.asarray(logits, dtype=np.float64)[:, by_name]
    finite: NDArray[np.bool_] = np.logical_not((np.isnan(ranked) | np.isposinf(ranked)).any(axis=1))
    ranked = np.where(finite[:, None], ranked, 0.0)
    top = ranked.argmax(axis=1)
    odds = np.exp(ranked - ranked.max(axis=1, keepdims=True))
    odds /= odds.sum(axis=1, keepdims=True)
    column = {str(classes[position]): index for index, position in enumerate(by_name.tolist())}
    label_columns = np.array([column.get(name, -1) for name in labels.tolist()], dtype=np.int64)
    rows = np.arange(len(logits))
    return (
        np.where(finite, by_name[top], -1).astype(np.int32),
        np.where(finite, odds[rows, top], 0.0),
        np.where(finite & (label_columns >= 0), odds[rows, label_columns], 0.0),
    )


@dataclass(frozen=True, kw_only=True)
class Joined:
    """Two versions on the ids whose class both can predict, in the order of the ids.

    Attributes:
        ids: [N]
        classes: [N] int64, the true class, numbered.
        ok_new: [N] new is right.
        ok_old: [N] old is right.
        agree: [N] both predict the same class; no answer agrees with nothing.
        groups: [N] or None.
        confidence: [N] new's probability of what it predicts, or None.
        label_confidence: [N] new's probability of the true class, or None.
        old_label_confidence: [N] old's probability of the true class, or None.
        total: Ids before classes that one side does not know were left out.
        added: Ids left out because old does not know their class.
        retired: Ids left out because new no longer knows their class.
        without_prediction: Predictions of new that are not a class, counted as wrong.
    """

    ids: NDArray[Any]
    classes: NDArray[np.int64]
    ok_new: NDArray[np.bool_]
    ok_old: NDArray[np.bool_]
    agree: NDArray[np.bool_]
    groups: NDArray[Any] | None
    confidence: NDArray[np.floating[Any]] | None
    label_confidence: NDArray[np.floating[Any]] | None
    old_label_confidence: NDArray[np.floating[Any]] | None
    total: int
    added: int
    retired: int
    without_prediction: int

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def negative_flips(self) -> NDArray[np.bool_]:
        """Return [N] whether old is right and new wrong."""
        return self.ok_old & ~self.ok_new

    def evidence(self, *, draws: int, seed: int) -> Evidence:
        """Return the groups of these ids, with draws and seed."""
        return Evidence.of(self.groups, draws=draws, seed=seed)


def join(new: Predictions, old: Predictions) -> Joined:
    """Join two versions by id; classes match by name.

    Args:
        new: In its own classes.
        old: In its own classes.

    Raises:
        DataError: Ids do not join, duplicates conflict, or an id has different labels on the two sides.
    """
    new, old = new.unique(where="new predictions"), old.unique(where="old predictions")
    require_same_ids(new.ids, old.ids, names=("new", "old"))
    table: dict[Any, int] = {}
    truth, guess = encode(table, new.labels), encode(table, new.predicted)
    old_truth, old_guess = encode(table, old.labels), encode(table, old.predicted)
    retired = ~new.knows(new.labels)
    known = {table[name] for name in old.classes if name in table} if old.classes is not None else None
    added = np.zeros_like(retired) if known is None else ~retired & ~np.isin(truth, sorted(known))
    shared = ~retired & ~added
    conflicts = shared & (truth != old_truth)
    if conflicts.any():
        example = new.ids[np.argmax(conflicts)]
        raise DataError(
            f"{int(conflicts.sum())} ids have different labels in the new and the old predictions,"
            f" e.g. {str(example)!r}; evaluate both on the same split"
        )
    predicted = new.has_prediction()
    ok_new, ok_old = predicted & (guess == truth), old.has_prediction() & (old_guess == truth)
    groups = new.groups if new.groups is not None else old.groups
    columns = {
        "groups": groups,
        "confidence": new.confidence,
        "label_confidence": new.label_confidence,
        "old_label_confidence": old.label_confidence,
    }
    return Joined(
        ids=new.ids[shared],
        classes=truth[shared],
        ok_new=ok_new[shared],
        ok_old=ok_old[shared],
        agree=(predicted & old.has_prediction() & (guess == old_guess))[shared],
        total=len(new),
        added=int(added.sum()),
        retired=int(retired.sum()),
        without_prediction=int((~predicted & shared).sum()),
        **{name: None if column is None else column[shared] for name, column in columns.items()},
    )
