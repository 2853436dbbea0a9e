"""The learner of columns: numbers are standardised and categories looked up, by the training data. Driver, workers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from graceful.errors import DataError
from graceful.learners.base import DEFAULT_ENCODER
from graceful.learners.batch import Batch
from graceful.learners.classifier import cross_entropy
from graceful.learners.row_values import numbers_of, texts_of
from graceful.models.base import Headed, Outputs, outputs_of
from graceful.models.heads import head_of
from graceful.models.tabular import TabularBody, width_of
from graceful.spec.networks import Perceptron
from graceful.spec.table import Columns

if TYPE_CHECKING:
    from graceful.tasks.base import Samples

NUMBERS = "standardise.json"
"""The file of a version that holds names, means and deviations of its columns."""
AT_ONCE = 65_536
"""Rows that are read together for mean and deviation."""
CATEGORIES = "categories.json"
"""The file of a version that holds the values of its categories."""
MOST_VALUES = 65_536
"""Values of a category that have an embedding of their own."""


class FeatureLearner:
    """Standardise columns of numbers, look categories up, classify with fully connected layers.

    Args:
        columns: Which columns.
        section: The network.
        training: Opens the training rows, which give mean and deviation, and the values of categories.
        kept: Files of a version that was restored; None: they come from the training rows.
    """

    encoders: tuple[str, ...] = (DEFAULT_ENCODER,)

    def __init__(
        self,
        columns: Columns,
        section: Perceptron,
        *,
        training: Callable[[], Samples],
        kept: Mapping[str, Any] | None = None,
    ) -> None:
        self._columns, self._section, self._training, self._kept = columns, section, training, kept

    def collate(self, items: Any, views: NDArray[Any] | None) -> Batch:
        """Turn rows, mappings, or lists in the order of the columns into float32 [B, F], standardised; with categories
        a
        mapping of `numbers` and `categories`, int64 [B, K]. With `missing: indicator` F is twice the columns.
        """
        columns = self._columns
        raw = numbers_of(items, columns.features, categories=columns.categories)
        numbers = torch.from_numpy(self._standardised(raw).astype(np.float32))
        if not columns.categories:
            return numbers
        texts = texts_of(items, columns.categories, numbers=columns.features)
        codes = [[code.get(text, 0) for text in values] for code, values in zip(self._codes, texts, strict=True)]
        categories = torch.tensor(codes, dtype=torch.int64).T.contiguous()
        return {**({"numbers": numbers} if columns.features else {}), "categories": categories}

    def forward(self, network: nn.Module, batch: Batch, *, encoder: str) -> Outputs:
        """Implement `Learner.forward`; there is one encoder."""
        return outputs_of(network, batch)

    def task_loss(self, outputs: Outputs, batch: Batch, labels: Tensor) -> Tensor:
        """Return the cross-entropy of the logits."""
        return cross_entropy(outputs, batch, labels)

    def assets(self) -> Mapping[str, Any]:
        """Return names, means and deviations of the columns of numbers, and the values of categories."""
        files: dict[str, Any] = {}
        if self._columns.features:
            mean, deviation = self._moments
            names = list(self._columns.features)
            files[NUMBERS] = {"columns": names, "mean": mean.tolist(), "deviation": deviation.tolist()}
        if self._columns.categories:
            files[CATEGORIES] = {"columns": list(self._columns.categories), "values": self._values}
        return files

    def restored(self, assets: Mapping[str, Any]) -> FeatureLearner:
        """Return the learner of the version that has these files."""
        return FeatureLearner(self._columns, self._section, training=self._training, kept=assets)

    def network(self, classes: tuple[str, ...]) -> nn.Module:
        """Build an untrained network; its weights follow from torch's global seed."""
        columns, values = self._columns, [len(names) for names in self._values]
        layers: list[nn.Module] = []
        width = len(columns.features) * (2 if columns.missing == "indicator" else 1) + sum(map(width_of, values))
        for units in self._section.widths:
            layers += [nn.Linear(width, units), nn.ReLU()]
            width = units
        layers.append(nn.Linear(width, self._section.embedding))
        if self._section.head == "linear":
            layers.append(nn.ReLU())
        head = head_of(self._section.head, self._section.embedding, len(classes), scale=self._section.scale)
        body = nn.Sequential(*layers)
        return Headed(TabularBody(values, body) if values else body, head)

    def _standardised(self, raw: NDArray[np.float64]) -> NDArray[np.float64]:
        if not self._columns.features:
            return raw
        mean, deviation = self._moments
        scaled = (raw - mean) / deviation
        if self._columns.missing == "refuse":
            return scaled
        present = np.isfinite(raw)
        filled = np.where(present, scaled, 0.0)
        return np.concatenate([filled, ~present], axis=1) if self._columns.missing == "indicator" else filled

    @cached_property
    def _moments(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the mean and deviation of each column of numbers, [F]; 1 for a column that does not vary."""
        if self._kept is not None:
            return np.asarray(self._kept[NUMBERS]["mean"]), np.asarray(self._kept[NUMBERS]["deviation"])
        features = self._columns.features
        total, squares, count = np.zeros(len(features)), np.zeros(len(features)), np.zeros(len(features))
        for rows in self._blocks():
            part = numbers_of(rows, features)
            if self._columns.missing != "refuse":
                present = np.isfinite(part)
                part, count = np.where(present, part, 0.0), count + present.sum(axis=0)
            else:
                count = count + len(part)
            total, squares = total + part.sum(axis=0), squares + (part**2).sum(axis=0)
        for name, found in zip(features, count, strict=True):
            if found == 0:
                raise DataError(f"task.columns.features: no training row has a number in {name!r}; leave it out")
        mean = total / count
        deviation = np.sqrt(np.maximum(squares / count - mean**2, 0.0))
        return mean, np.where(deviation > 1e-12, deviation, 1.0)

    @cached_property
    def _values(self) -> list[list[str]]:
        """Return the values of each category that the training rows have, sorted; of very many, the most frequent."""
        if not self._columns.categories:
            return []
        if self._kept is not None:
            return [list(map(str, names)) for names in self._kept[CATEGORIES]["values"]]
        counts: list[Counter[str]] = [Counter() for _ in self._columns.categories]
        for rows in self._blocks():
            for counter, texts in zip(counts, texts_of(rows, self._columns.categories), strict=True):
                counter.update(text for text in texts if text is not None)
        return [sorted(name for name, _ in _most_common(counter)) for counter in counts]

    @cached_property
    def _codes(self) -> list[dict[str | None, int]]:
        """Return, for each category, the row of the embedding of each value; 0 is for all others."""
        return [{name: row for row, name in enumerate(names, start=1)} for names in self._values]

    def _blocks(self) -> Iterator[Any]:
        """Yield the training rows, block by block."""
        rows = self._training()
        for start in range(0, len(rows), AT_ONCE):
            yield rows.read(np.arange(start, min(start + AT_ONCE, len(rows))))


def _most_common(counter: Counter[str]) -> list[tuple[str, int]]:
    """Return the most frequent values with their counts, of equally frequent ones the first by name."""
    return sorted(counter.items(), key=lambda item: (-item[1], item[0]))[:MOST_VALUES]
