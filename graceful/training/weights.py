"""Weights of training samples in the task's loss: those of rows and those of classes. Runs in workers.

Weights are divided by their mean over the training split, so that a spec with weights has the same loss scale as one
without, and learning rates and strengths of constraints keep their meaning. Evaluation does not read them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from graceful.errors import DataError, SpecError
from graceful.spec import ClassWeights
from graceful.tasks.base import Samples

_AT_ONCE = 2**20


@dataclass(frozen=True, kw_only=True)
class SampleWeights:
    """Weights of the training split, 1 on average.

    Attributes:
        rows: [N] of the samples, as the data give them; None: all the same.
        by_class: [C] factor of each class, which the mean is in.
    """

    rows: NDArray[np.floating] | None
    by_class: NDArray[np.float64]

    def of(self, positions: NDArray[np.int64], labels: NDArray[np.int64]) -> Tensor:
        """Return the weights of some samples with these labels, [B] fp32."""
        weights = self.by_class[labels]
        return torch.from_numpy((weights if self.rows is None else weights * self.rows[positions]).astype(np.float32))


def sample_weights(samples: Samples, classes: ClassWeights | None) -> SampleWeights | None:
    """Return the weights of a training split; None where neither its rows nor its classes have any.

    Args:
        samples: The training split.
        classes: Setting of the spec: `balanced` gives each class the same sum, a mapping gives factors by name.

    Raises:
        SpecError: A class of the mapping is none of the task, or the samples are a stream.
        DataError: No sample has a weight above zero.
    """
    if samples.weights is None and classes is None:
        return None
    if samples.stream is not None:
        raise SpecError(
            "train.class_weights: are divided by their mean over the training samples, which are a stream here; leave"
            " them out, and weigh in task_loss of a learner"
        )
    sums = np.zeros(len(samples.classes))
    for start in range(0, len(samples), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        own = None if samples.weights is None else samples.weights[part]
        sums += np.bincount(samples.labels[part], weights=own, minlength=len(sums))
    factors = _factors(samples.classes, classes, sums)
    total = float((factors * sums).sum())
    if total <= 0.0:
        raise DataError("train: no training sample has a weight above 0, so nothing can be learnt; correct them")
    return SampleWeights(rows=samples.weights, by_class=factors * (len(samples) / total))


def _factors(names: tuple[str, ...], classes: ClassWeights | None, sums: NDArray[np.float64]) -> NDArray[np.float64]:
    if classes is None:
        return np.ones(len(names))
    if classes == "balanced":
        return np.divide(1.0, sums, out=np.zeros(len(names)), where=sums > 0.0)
    unknown = [name for name in classes if name not in names]
    if unknown:
        raise SpecError(f"train.class_weights: the task has no class {unknown[0]!r}; it has {', '.join(names[:10])}")
    return np.asarray([classes.get(name, 1.0) for name in names])
