"""Which learner a task has; one that names none is a classifier with cross-entropy. Driver and workers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from graceful.learners.base import DEFAULT_ENCODER, Learner
from graceful.learners.batch import Batch
from graceful.models.base import Outputs, outputs_of

if TYPE_CHECKING:
    from graceful.tasks.base import Task


def cross_entropy(outputs: Outputs, batch: Batch, labels: Tensor) -> Tensor:
    """Return the cross-entropy of the logits for each sample, [B]; the batch is not looked at."""
    return F.cross_entropy(outputs.logits, labels, reduction="none")


class Classifier:
    """Embed with the network, classify the embedding, cross-entropy with the label.

    Args:
        collate: The task's transform: raw items and views -> batch.
    """

    encoders: tuple[str, ...] = (DEFAULT_ENCODER,)

    def __init__(self, collate: Callable[[Any, NDArray[Any] | None], Batch]) -> None:
        self._collate = collate

    def collate(self, items: Any, views: NDArray[Any] | None) -> Batch:
        """Implement `Learner.collate`."""
        return self._collate(items, views)

    def forward(self, network: nn.Module, batch: Batch, *, encoder: str) -> Outputs:
        """Implement `Learner.forward`; there is one encoder."""
        return outputs_of(network, batch)

    def task_loss(self, outputs: Outputs, batch: Batch, labels: Tensor) -> Tensor:
        """Return the cross-entropy of the logits."""
        return cross_entropy(outputs, batch, labels)


def learner_of(task: Task) -> Learner:
    """Return the learner of a task: its attribute `learner`, or a classifier made of its network and transform."""
    own: Learner | None = getattr(task, "learner", None)
    if own is not None:
        return own
    return Classifier(task.transform)
