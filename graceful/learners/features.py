"""The learner of numeric columns: standardised with the training data's mean and deviation. Driver and workers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from graceful.errors import DataError
from graceful.learners.base import DEFAULT_ENCODER
from graceful.learners.classifier import cross_entropy
from graceful.models.base import Headed, Outputs, outputs_of
from graceful.models.heads import head_of
from graceful.spec.networks import Perceptron
from graceful.spec.table import Columns

if TYPE_CHECKING:
    from graceful.tasks.base import Samples

NUMBERS = "standardise.json"
"""The file of a version that holds names, means and deviations of its columns."""
AT_ONCE = 65_536
"""Rows that are read together for mean and deviation."""


class FeatureLearner:
    """Stack numeric columns, standardise them, classify with fully connected layers.

    Args:
        columns: Which columns.
        section: The network.
        training: Opens the training rows, which give mean and deviation.
        numbers: Mean and deviation of a version that was restored; None: they come from the training rows.
    """

    encoders: tuple[str, ...] = (DEFAULT_ENCODER,)

    def __init__(
        self,
        columns: Columns,
        section: Perceptron,
        *,
        training: Callable[[], Samples],
        numbers: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        self._columns, self._section, self._training, self._numbers = columns, section, training, numbers

    def collate(self, items: Any, views: NDArray[Any] | None) -> Tensor:
        """Rows, or numbers [B, F] in the order of the columns -> float32 [B, F], standardised."""
        mean, deviation = self._moments
        return torch.from_numpy(((self._stacked(items) - mean) / deviation).astype(np.float32))

    def forward(self, network: nn.Module, batch: Any, *, encoder: str) -> Outputs:
        """As `Learner.forward`; there is one encoder."""
        return outputs_of(network, batch)

    def task_loss(self, outputs: Outputs, batch: Any, labels: Tensor) -> Tensor:
        """Cross-entropy of the logits."""
        return cross_entropy(outputs, batch, labels)

    def assets(self) -> Mapping[str, Any]:
        """Return names, means and deviations of the columns."""
        mean, deviation = self._moments
        names = list(self._columns.features)
        return {NUMBERS: {"columns": names, "mean": mean.tolist(), "deviation": deviation.tolist()}}

    def restored(self, assets: Mapping[str, Any]) -> FeatureLearner:
        """Return the learner of the version that has these numbers."""
        return FeatureLearner(self._columns, self._section, training=self._training, numbers=assets[NUMBERS])

    def network(self, classes: tuple[str, ...]) -> nn.Module:
        """Build an untrained network; its weights follow from torch's global seed."""
        layers: list[nn.Module] = []
        width = len(self._columns.features)
        for units in self._section.widths:
            layers += [nn.Linear(width, units), nn.ReLU()]
            width = units
        layers.append(nn.Linear(width, self._section.embedding))
        if self._section.head == "linear":
            layers.append(nn.ReLU())
        head = head_of(self._section.head, self._section.embedding, len(classes), scale=self._section.scale)
        return Headed(nn.Sequential(*layers), head)

    def _stacked(self, items: Any) -> NDArray[np.float64]:
        names = self._columns.features
        if hasattr(items, "numbers"):
            return np.stack([items.numbers(name) for name in names], axis=1)
        numbers = np.asarray(items, dtype=np.float64)
        if numbers.ndim != 2 or numbers.shape[1] != len(names):
            raise DataError(f"rows must be numbers [B, {len(names)}] ({', '.join(names)}), got {list(numbers.shape)}")
        return numbers

    @cached_property
    def _moments(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and deviation of each column, [F]; 1 for a column that does not vary."""
        if self._numbers is not None:
            return np.asarray(self._numbers["mean"]), np.asarray(self._numbers["deviation"])
        rows = self._training()
        total, squares = np.zeros(len(self._columns.features)), np.zeros(len(self._columns.features))
        for start in range(0, len(rows), AT_ONCE):
            part = self._stacked(rows.read(np.arange(start, min(start + AT_ONCE, len(rows)))))
            total, squares = total + part.sum(axis=0), squares + (part**2).sum(axis=0)
        mean = total / len(rows)
        deviation = np.sqrt(np.maximum(squares / len(rows) - mean**2, 0.0))
        return mean, np.where(deviation > 1e-12, deviation, 1.0)
