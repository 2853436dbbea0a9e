"""What a version says about each sample id, and two versions' answers joined. Runs in driver and workers, NumPy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from graceful.errors import DataError
from graceful.metrics.intervals import Evidence
from graceful.metrics.join import encode, require_same_ids, sorted_unique

NO_ANSWER = ""
"""What stands for a prediction that is no class: the logits held NaN. With whole numbers -1, with floats NaN."""


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """One version on one split. Classes are meant by name, so versions with different class lists compare.

    Attributes:
        ids: [N] sample ids; repeated ids are allowed if they say the same.
        labels: [N] names of the true classes (strings, or numbers in one shared space).
        predicted: [N] names of the predicted classes, or `NO_ANSWER`.
        classes: Names this version can answer; None: every label.
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
            logits: [N, C] in the order of `classes`. A row with NaN or +inf is no answer, and counts as wrong.
            ids: [N]
            labels: [N] class **names**; names outside `classes` are allowed.
            classes: C names. Ties go to the class whose name sorts first, whatever the order of the head.
            groups: [N]
        """
        if logits.ndim != 2 or logits.shape[1] != len(classes):
            raise DataError(f"logits: must be [N, {len(classes)}] for {len(classes)} classes, got {logits.shape}")
        by_name = np.argsort(np.asarray(classes), kind="stable")
        ranked = np.asarray(logits, dtype=np.float64)[:, by_name]
        sound: NDArray[np.bool_] = np.logical_not((np.isnan(ranked) | np.isposinf(ranked)).any(axis=1))
        ranked = np.where(sound[:, None], ranked, 0.0)
        top = ranked.argmax(axis=1)
        odds = np.exp(ranked - ranked.max(axis=1, keepdims=True))
        odds /= odds.sum(axis=1, keepdims=True)
        names = np.asarray(classes)[by_name]
        column = {name: index for index, name in enumerate(names.tolist())}
        own = np.array([column.get(name, -1) for name in labels.tolist()], dtype=np.int64)
        rows = np.arange(len(ids))
        return cls(
            ids=ids,
            labels=labels,
            predicted=np.where(sound, names[top], NO_ANSWER),
            classes=tuple(classes),
            groups=groups,
            confidence=np.where(sound, odds[rows, top], 0.0),
            label_confidence=np.where(sound & (own >= 0), odds[rows, own], 0.0),
        )

    def unique(self, *, where: str = "predictions") -> Self:
        """Each id once, in the order of the ids.

        Raises:
            DataError: An id occurs twice and says different things.
        """
        return self.take(sorted_unique(self.ids, self._columns(), where=where))

    def take(self, positions: NDArray[np.int64]) -> Self:
        """These rows, in this order."""
        columns = {name: None if column is None else column[positions] for name, column in self._columns().items()}
        return type(self)(ids=self.ids[positions], classes=self.classes, **columns)  # type: ignore[arg-type]

    def answered(self) -> NDArray[np.bool_]:
        """[N] False where the prediction is no class."""
        kind = self.predicted.dtype.kind
        if kind == "f":
            return np.asarray(~np.isnan(self.predicted), dtype=np.bool_)
        if kind in "iu":
            return np.asarray(self.predicted >= 0)
        return np.array([name not in (NO_ANSWER, None) for name in self.predicted.tolist()], np.bool_)

    def knows(self, labels: NDArray[Any]) -> NDArray[np.bool_]:
        """[N] whether these labels are classes of this version."""
        if self.classes is None:
            return np.ones(len(labels), dtype=np.bool_)
        known = set(self.classes)
        return np.fromiter((name in known for name in labels.tolist()), np.bool_, len(labels))


def concatenate(parts: Sequence[Predictions]) -> Predictions:
    """Batches or processes of one version as one; duplicates stay until `Predictions.unique`.

    Raises:
        DataError: No parts, other classes, or a column that only some parts have.
    """
    if not parts:
        raise DataError("predictions: nothing to concatenate; update the accumulator first")
    columns: dict[str, Any] = {}
    for name in ("ids", *parts[0]._columns()):
        values = [getattr(part, name) for part in parts]
        missing = sum(value is None for value in values)
        if 0 < missing < len(values):
            raise DataError(
                f"predictions.{name}: given in {len(values) - missing} of {len(values)} parts; give all or none"
            )
        columns[name] = None if missing else np.concatenate(values)
    if any(part.classes != parts[0].classes for part in parts):
        raise DataError("predictions.classes: parts of one version must have the same classes")
    return Predictions(classes=parts[0].classes, **columns)


@dataclass(frozen=True, kw_only=True)
class Joined:
    """Two versions on the ids both can answer, compared in the old version's classes, in the order of the ids.

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
        unanswered: Predictions of new that are no class, counted as wrong.
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
    unanswered: int

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def negative_flips(self) -> NDArray[np.bool_]:
        """[N] old right, new wrong."""
        return self.ok_old & ~self.ok_new

    def evidence(self, *, draws: int, seed: int) -> Evidence:
        """How these ids hang together."""
        return Evidence.of(self.groups, draws=draws, seed=seed)


def join(new: Predictions, old: Predictions, *, mapping: Mapping[Any, Any] | None = None) -> Joined:
    """Join two versions by id and compare them in the old version's classes.

    Args:
        new: In its own classes.
        old: In its own classes.
        mapping: New class name -> old class name, many to one; new classes that are missing are unknown to old. None:
            a name means the same in both.

    Raises:
        DataError: Ids do not join, duplicates conflict, or an id has different labels on the two sides.
    """
    new, old = new.unique(where="new predictions"), old.unique(where="old predictions")
    require_same_ids(new.ids, old.ids, names=("new", "old"))
    table: dict[Any, int] = {}
    truth, guess = (_translated(names, mapping, table) for names in (new.labels, new.predicted))
    old_truth, old_guess = encode(table, old.labels), encode(table, old.predicted)
    retired = ~new.knows(new.labels)
    known = {table[name] for name in old.classes if name in table} if old.classes is not None else None
    added = ~retired & ((truth < 0) | (False if known is None else ~np.isin(truth, sorted(known))))
    kept = ~retired & ~added
    conflicts = kept & (truth != old_truth)
    if conflicts.any():
        example = new.ids[np.argmax(conflicts)]
        raise DataError(
            f"{int(conflicts.sum())} ids have different labels in the new and the old predictions,"
            f" e.g. {str(example)!r}; evaluate both on the same split"
        )
    answered = new.answered()
    ok_new, ok_old = answered & (guess == truth), old.answered() & (old_guess == truth)
    groups = new.groups if new.groups is not None else old.groups
    columns = {
        "groups": groups,
        "confidence": new.confidence,
        "label_confidence": new.label_confidence,
        "old_label_confidence": old.label_confidence,
    }
    return Joined(
        ids=new.ids[kept],
        classes=truth[kept],
        ok_new=ok_new[kept],
        ok_old=ok_old[kept],
        agree=(answered & old.answered() & (guess == old_guess))[kept],
        total=len(new),
        added=int(added.sum()),
        retired=int(retired.sum()),
        unanswered=int((~answered & kept).sum()),
        **{name: None if column is None else column[kept] for name, column in columns.items()},
    )


def _translated(names: NDArray[Any], mapping: Mapping[Any, Any] | None, table: dict[Any, int]) -> NDArray[np.int64]:
    """Numbers in the shared table; -1 for a new class that has no old one."""
    if mapping is None:
        return encode(table, names)
    own: dict[Any, int] = {}
    codes = encode(own, names)
    absent = object()
    targets = [mapping.get(name, absent) for name in own]
    lookup = [-1 if target is absent else table.setdefault(target, len(table)) for target in targets]
    return np.array(lookup, dtype=np.int64)[codes] if lookup else codes
