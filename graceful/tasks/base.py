"""The Task protocol: everything that a user must define about a model and its data. Runs in driver and workers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import nn

from graceful.errors import DataError
from graceful.learners.batch import Batch
from graceful.metrics.judgments import Judgments
from graceful.tasks.hashing import split_digest
from graceful.tasks.names import Column, Names
from graceful.tasks.runs import Runs
from graceful.tasks.streams import HEAD, Stream

Split = Literal["train", "validation", "constraint", "test", "query", "gallery"]
"""train: gradients. validation: choose hyper-parameters and stop. constraint: multipliers. test: the gate, once.
query, gallery: retrieval; a task without them is measured with test against test, same ids removed."""

MESSAGE_PREFIX = "samples: "
"""Beginning of every refusal of samples."""


@dataclass(frozen=True, kw_only=True)
class Samples:
    """One split: ids, labels, groups, and how to read the items.

    Attributes:
        ids: [N] unique strings, stable across versions; everything is joined by them, never by position. An array, or
            `Names` where there are too many for memory.
        labels: [N] int64, index into `classes`.
        classes: Names of the labels; in query and gallery splits they may be classes no model was trained on.
        groups: [N] strings: what belongs together (typeface, person, user); intervals are drawn over groups.
        read: Positions [B] -> B raw items in that order, whatever `Task.transform` takes (array, tensor, list).
        digest: SHA-256 over ids, labels and content, and judgments and weights where there are some.
        judgments: Of a query split, which items of the gallery answer which query; None: those of the same label.
        weights: [N] what each sample counts in the task's loss when it is trained on, at least 0; None: all the same.
        stream: Of a train split that is read row by row: the stream whose first rows these are; None: these are all.
        runs: Neighbours that training shall read together, where reading anywhere is dear; None: any order will do.

    Raises:
        DataError: Lengths differ, ids repeat, a label is not an index or has no class, a name is not text, `read`
        cannot be
            called, or there is no digest.
    """

    ids: Column
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    groups: Column
    read: Callable[[NDArray[np.int64]], Any]
    digest: str
    judgments: Judgments | None = None
    weights: NDArray[np.floating] | None = None
    runs: Runs | None = None
    stream: Stream | None = None

    def __post_init__(self) -> None:
        if not callable(self.read) or not isinstance(self.digest, str) or not self.digest:
            got = f"{self.read!r:.40} and {self.digest!r:.40}"
            raise DataError(f"{MESSAGE_PREFIX}read must be a function and digest a SHA-256 of the content, got {got}")
        _require_names(self.classes)
        for name, column in (("ids", self.ids), ("groups", self.groups)):
            if isinstance(column, np.ndarray) and column.dtype.hasobject:  # as pandas gives texts
                object.__setattr__(self, name, _strings(name, column))
        _require_columns(self.ids, self.labels, self.groups)
        _require_weights(self.weights, len(self.labels))
        object.__setattr__(self, "labels", self.labels.astype(np.int64, copy=False))
        if isinstance(self.ids, np.ndarray):
            _require_distinct(self.ids)
        checked = isinstance(self.labels, np.memmap)  # when the file was written; checking here would read all of it
        if len(self.labels) and not checked and not 0 <= self.labels.min() <= self.labels.max() < len(self.classes):
            span = f"{self.labels.min()}..{self.labels.max()}"
            raise DataError(
                f"{MESSAGE_PREFIX}labels span {span}, there are {len(self.classes)} classes; give indices of them"
            )

    def __len__(self) -> int:
        return len(self.ids)

    def at(self, positions: NDArray[np.int64], *, digest: str | None = None) -> Samples:
        """Return some of the samples, in their order.

        Args:
            positions: Their positions.
            digest: SHA-256 of their content; None: that of all samples, which names the content.
        """
        return replace(
            self,
            ids=self.ids[positions],
            labels=self.labels[positions],
            groups=self.groups[positions],
            weights=None if self.weights is None else self.weights[positions],
            runs=None,
            read=lambda within: self.read(positions[within]),
            digest=digest or self.digest,
        )

    @classmethod
    def of(
        cls,
        items: NDArray[Any] | Sequence[Any],
        labels: Sequence[int] | NDArray[Any],
        *,
        classes: Sequence[str],
        ids: Sequence[str] | NDArray[Any],
        groups: Sequence[str] | NDArray[Any] | None = None,
        weights: Sequence[float] | NDArray[Any] | None = None,
    ) -> Self:
        """Return the samples from arrays in memory.

        Args:
            items: [N, ...] raw items; `read` indexes its first axis.
            labels: [N] indices into `classes`.
            classes: Names of the labels.
            ids: [N] unique, stable names.
            groups: [N] what belongs together; None: every sample is its own group.
            weights: [N] what each sample counts when it is trained on; None: all the same.

        Raises:
            DataError: As of the class; or items of different shapes, or that are Python objects.
        """
        raw, names, numbers = _array(items), _strings("ids", ids), _whole_numbers(labels)
        if len(raw) != len(names):
            raise DataError(
                f"{MESSAGE_PREFIX}{len(raw)} items, {len(names)} ids, {len(numbers)} labels;"
                " give one of each for each sample"
            )
        content = hashlib.sha256(np.ascontiguousarray(raw).tobytes()).hexdigest()
        factors = None if weights is None else _floats(weights)
        if factors is not None:
            content = hashlib.sha256(content.encode() + factors.tobytes()).hexdigest()
        return cls(
            ids=names,
            labels=numbers,
            classes=tuple(classes),
            groups=names if groups is None else _strings("groups", groups),
            read=lambda positions: raw[positions],
            digest=split_digest(names, numbers, classes, content),
            weights=factors,
        )

    @classmethod
    def of_stream(cls, stream: Stream, *, most: int = HEAD) -> Self:
        """Return the samples of a stream: its first rows in memory, which stand for it until training reads it.

        Args:
            stream: The rows.
            most: How many at most.

        Raises:
            DataError: As of the class and of `Stream.row`.
        """
        rows = stream.first(min(most, stream.length))
        ids, labels = np.asarray([row.id for row in rows], dtype=np.str_), np.asarray([row.label for row in rows])
        labels = labels.astype(np.int64)
        return cls(
            ids=ids,
            labels=labels,
            classes=stream.classes,
            groups=ids,
            read=lambda positions: [rows[position].item for position in positions.tolist()],
            digest=split_digest(ids, labels, stream.classes, [stream.digest, str(stream.length)]),
            stream=stream,
        )

    @property
    def training_rows(self) -> int:
        """Return how many samples an epoch of training has."""
        return len(self) if self.stream is None else self.stream.length


# --- what samples must be ---------------------------------------------------------------------------------------------


def _array(items: NDArray[Any] | Sequence[Any]) -> NDArray[Any]:
    try:
        raw = np.asarray(items)
    except ValueError as e:
        raise DataError(
            f"{MESSAGE_PREFIX}items differ in shape; bring them to one, or make Samples with your own read"
        ) from e
    if raw.dtype.hasobject:
        raise DataError(f"{MESSAGE_PREFIX}items are Python objects; give an array, or make Samples with your own read")
    return raw


def _whole_numbers(labels: Sequence[int] | NDArray[Any]) -> NDArray[np.int64]:
    raw = np.asarray(labels)
    with np.errstate(invalid="ignore"):
        numbers = raw.astype(np.int64) if raw.dtype.kind in "biuf" else None
    if numbers is None or raw.ndim != 1 or not np.array_equal(numbers, raw):
        raise DataError(
            f"{MESSAGE_PREFIX}labels {raw[:3].tolist()!s:.60} ... must be whole numbers, indices into classes"
        )
    return numbers


def _floats(weights: Sequence[float] | NDArray[Any]) -> NDArray[np.float64]:
    try:
        return np.asarray(weights, dtype=np.float64)
    except (TypeError, ValueError) as e:
        raise DataError(f"{MESSAGE_PREFIX}weights {weights!r:.60} must be numbers from 0 on") from e


def _strings(column: str, names: Sequence[str] | NDArray[Any]) -> NDArray[np.str_]:
    """Return names as a NumPy array of strings; whole numbers are converted."""
    values = names.tolist() if isinstance(names, np.ndarray) else list(names)
    for name in values:
        if not isinstance(name, str | int | np.integer) or isinstance(name, bool):
            raise DataError(f"{MESSAGE_PREFIX}{column} must be strings, got {name!r:.60} of type {type(name).__name__}")
    return np.asarray(values, dtype=np.str_)


def _require_names(classes: tuple[str, ...]) -> None:
    """Refuse class names that cannot be printed in a table.

    Raises:
        DataError: Not a tuple of different texts, or an empty one.
    """
    for name in classes:
        if not isinstance(name, str) or not name.strip():
            raise DataError(f"{MESSAGE_PREFIX}classes must be names, got {name!r:.60}; name every class")
        _require_utf8("classes", name)
    if not isinstance(classes, tuple) or len(set(classes)) < len(classes):
        raise DataError(f"{MESSAGE_PREFIX}classes must be a tuple of different names, got {classes!r:.60}")


def _require_columns(ids: Column, labels: NDArray[Any], groups: Column) -> None:
    for name, column, kinds, requirement in (
        ("ids", ids, "U", "strings"),
        ("groups", groups, "U", "strings"),
        ("labels", labels, "iu", "whole numbers, indices into classes"),
    ):
        if isinstance(column, Names):
            continue
        kind = f"{column.dtype} {list(column.shape)}" if isinstance(column, np.ndarray) else type(column).__name__
        empty = isinstance(column, np.ndarray) and column.shape == (0,)
        if not isinstance(column, np.ndarray) or column.ndim != 1 or not (empty or column.dtype.kind in kinds):
            raise DataError(f"{MESSAGE_PREFIX}{name} must be an array [N] of {requirement}, got {kind}")
    if not len(ids) == len(labels) == len(groups):
        counts = f"{len(ids)} ids, {len(labels)} labels, {len(groups)} groups"
        raise DataError(f"{MESSAGE_PREFIX}{counts}; give one of each for each sample")


def _require_weights(weights: object, count: int) -> None:
    """Refuse weights that are not numbers from 0 on; a mapped file was checked when it was written."""
    if weights is None or isinstance(weights, np.memmap):
        return
    if not isinstance(weights, np.ndarray) or weights.shape != (count,) or weights.dtype.kind != "f":
        raise DataError(f"{MESSAGE_PREFIX}weights must be an array [{count}] of floating-point numbers or None")
    bad = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0.0)))
    if len(bad):
        raise DataError(f"{MESSAGE_PREFIX}weight {weights[bad[0]]} of sample {bad[0]}; must be a number from 0 on")


def _require_distinct(ids: NDArray[np.str_]) -> None:
    names = ids.tolist()
    repeated = len(names) - len(set(names))
    if repeated:
        raise DataError(
            f"{MESSAGE_PREFIX}{repeated} ids repeat, e.g. {_first_repeated(names)!a}; ids must be unique in a split"
        )
    try:
        "".join(names).encode()
    except UnicodeEncodeError:
        for name in names:
            _require_utf8("ids", name)


def _first_repeated(names: list[str]) -> str:
    known_names: set[str] = set()
    return next(name for name in names if name in known_names or known_names.add(name))  # type: ignore[func-returns-value]


def _require_utf8(column: str, name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError as e:
        raise DataError(f"{MESSAGE_PREFIX}{column}: {name!a} is not text that UTF-8 can hold; give another name") from e


@runtime_checkable
class Task(Protocol):
    """A model, its data, its transform and its class names.

    Attributes:
        classes: Names of this version's classes, in the order of the network's outputs.
        augments: Whether `transform` with views differs from without.
    """

    classes: tuple[str, ...]
    augments: bool

    def network(self, classes: tuple[str, ...]) -> nn.Module:
        """Build an untrained network for these classes, with `embed(x) -> [B, d]` and `classify(e) -> [B, C]`.

        Classes are an argument because a predecessor is rebuilt with the classes recorded for it.
        """
        ...

    def samples(self, split: Split) -> Samples:
        """Open a split. Must be cheap: read lazily.

        Raises:
            DataError: Missing, corrupt or empty data.
            KeyError: The task has no such split (only query and gallery may be absent).
        """
        ...

    def transform(self, items: Any, views: NDArray[np.uint64] | None) -> Batch:
        """Turn raw items into a batch, as `embed` of the network takes it: a tensor [B, ...], or a mapping of such
        tensors.

        A task with an attribute `learner` (see `graceful.learners.Learner`) needs no transform.

        Args:
            items: What `Samples.read` returned.
            views: [B] one number per sample that determines its augmentation entirely; None: the clean view used in
                evaluation. The same item with the same number must give the same row.
        """
        ...


def notes_of(task: Task) -> tuple[str, ...]:
    """Return the sentences about a task's data that reports show: its attribute `notes`, if it has one."""
    notes: tuple[str, ...] = getattr(task, "notes", ())
    return notes
