"""The Task protocol: everything a user must say about a model and its data. Runs in driver and workers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from graceful.errors import DataError
from graceful.tasks.hashing import split_digest

Split = Literal["train", "validation", "constraint", "test", "query", "gallery"]
"""train: gradients. validation: choose hyper-parameters and stop. constraint: multipliers. test: the gate, once.
query, gallery: retrieval; a task without them is measured with test against test, same ids removed."""


@dataclass(frozen=True, kw_only=True)
class Samples:
    """One split: who is in it, what it is, and how to read it.

    Attributes:
        ids: [N] unique strings, stable across versions; everything is joined by them, never by position.
        labels: [N] int64, index into `classes`.
        classes: Names of the labels; in query and gallery splits they may be classes no model was trained on.
        groups: [N] strings: what belongs together (typeface, person, user); intervals are drawn over groups.
        read: Positions [B] -> B raw items in that order, whatever `Task.transform` takes (array, tensor, list).
        digest: SHA-256 over ids, labels and content.
    """

    ids: NDArray[np.str_]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    groups: NDArray[np.str_]
    read: Callable[[NDArray[np.int64]], Any]
    digest: str

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def of(
        cls,
        items: NDArray[Any] | Sequence[Any],
        labels: Sequence[int] | NDArray[Any],
        *,
        classes: Sequence[str],
        ids: Sequence[str] | NDArray[Any],
        groups: Sequence[str] | NDArray[Any] | None = None,
    ) -> Self:
        """Samples from arrays in memory.

        Args:
            items: [N, ...] raw items; `read` indexes its first axis.
            labels: [N] indices into `classes`.
            classes: Names of the labels.
            ids: [N] unique, stable names.
            groups: [N] what belongs together; None: every sample is its own group.

        Raises:
            DataError: Lengths differ, ids repeat, a label is no index or has no class, or items are Python objects.
        """
        raw = np.asarray(items)
        names, numbers = np.asarray(ids, dtype=np.str_), np.asarray(labels).astype(np.int64)
        if numbers.ndim != 1 or not np.array_equal(numbers, np.asarray(labels)):
            first = np.asarray(labels)[:3].tolist()
            raise DataError(f"samples: labels {first!s:.60} ... must be whole numbers, indices into classes")
        if raw.dtype.hasobject:
            raise DataError("samples: items are Python objects; give an array, or make Samples with your own read")
        if not len(raw) == len(names) == len(numbers):
            raise DataError(f"samples: {len(raw)} items, {len(names)} ids, {len(numbers)} labels; give one of each")
        if len(np.unique(names)) != len(names):
            raise DataError(f"samples: {len(names) - len(np.unique(names))} ids repeat; ids must be unique in a split")
        if len(numbers) and not 0 <= numbers.min() <= numbers.max() < len(classes):
            raise DataError(f"samples: labels span {numbers.min()}..{numbers.max()}, there are {len(classes)} classes")
        content = hashlib.sha256(np.ascontiguousarray(raw).tobytes()).hexdigest()
        return cls(
            ids=names,
            labels=numbers,
            classes=tuple(classes),
            groups=names if groups is None else np.asarray(groups, dtype=np.str_),
            read=lambda positions: raw[positions],
            digest=split_digest(names, numbers, classes, content),
        )


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

    def transform(self, items: Any, views: NDArray[np.uint64] | None) -> Tensor:
        """Raw items -> network input [B, ...] float32.

        Args:
            items: What `Samples.read` returned.
            views: [B] one number per sample that determines its augmentation entirely; None: the clean view used in
                evaluation. The same item with the same number must give the same tensor.
        """
        ...
