"""The Task protocol: everything a user must say about a model and its data. Runs in driver and workers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

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
