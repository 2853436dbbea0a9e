"""scikit-learn's 1,797 handwritten digits, 8x8: for mechanics, half a second a run. Driver and workers.

Negative flips are noisy here (standard deviation half of the mean): assert on means over at least ten splits.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from graceful.errors import DataError
from graceful.spec import DigitsTask
from graceful.tasks.augment import random_shift
from graceful.tasks.base import Samples, Split
from graceful.tasks.hashing import fractions, split_digest

_BOUNDS: dict[str, tuple[float, float]] = {
    "train": (0.0, 0.5),
    "validation": (0.5, 0.6),
    "constraint": (0.6, 0.7),
    "test": (0.7, 1.0),
}


class Digits:
    """The task of the `digits` section.

    Splits take 50, 10, 10 and 30 percent of the ids by their hash; `share` takes the first of the training ids in the
    order of another hash, so that a smaller share is a part of a larger one. There is no open set.
    """

    def __init__(self, section: DigitsTask) -> None:
        self._section = section
        self.classes = tuple(str(digit) for digit in range(section.classes))
        self.augments = section.shift > 0

    def network(self, classes: tuple[str, ...]) -> nn.Module:
        """Build the section's network for [B, 1, 8, 8] inputs."""
        from graceful import models

        return models.build(self._section.network, classes=len(classes), input_shape=(1, 8, 8))

    def samples(self, split: Split) -> Samples:
        """Open a split; `read` returns uint8 [B, 8, 8] with values 0 to 16.

        Raises:
            DataError: scikit-learn is missing, or the share leaves a class without a training image.
            KeyError: query and gallery, which digits do not have.
        """
        images, labels, content = _digits()
        low, high = _BOUNDS[split]
        ids = np.asarray([f"digit/{position:04d}" for position in range(len(images))])
        fraction = fractions(ids, salt=2 * self._section.split)
        chosen = (fraction >= low) & (fraction < high)
        if split == "train":
            chosen &= self._train_subset(ids, chosen)
        positions = np.flatnonzero(chosen & (labels < self._section.classes))
        self._require_images(split, labels[positions])
        return Samples(
            ids=ids[positions],
            labels=labels[positions],
            classes=self.classes,
            groups=ids[positions],
            read=lambda rows: images[positions[rows]],
            digest=split_digest(ids[positions], labels[positions], self.classes, content),
        )

    def transform(self, items: Any, views: NDArray[np.uint64] | None) -> Tensor:
        """Turn uint8 [B, 8, 8] into float32 [B, 1, 8, 8] in [0, 1]; translated when there are views."""
        images = np.asarray(items)
        if views is not None:
            images = random_shift(images, views, self._section.shift)
        return torch.from_numpy(images.astype(np.float32)).unsqueeze(1) / 16.0

    def _train_subset(self, ids: NDArray[np.str_], train: NDArray[np.bool_]) -> NDArray[np.bool_]:
        rank = np.where(train, fractions(ids, salt=2 * self._section.split + 1), 2.0).argsort().argsort()
        chosen: NDArray[np.bool_] = rank < np.ceil(self._section.share * train.sum())
        return chosen

    def _require_images(self, split: Split, labels: NDArray[np.int64]) -> None:
        counts = np.bincount(labels, minlength=len(self.classes))
        if len(labels) == 0 or (split == "train" and not counts.all()):
            empty_classes = [name for name, count in zip(self.classes, counts, strict=True) if count == 0]
            raise DataError(
                f"task.share: {self._section.share:g} leaves no {split} image of {' '.join(empty_classes)};"
                " use a larger one"
            )


@lru_cache(maxsize=1)
def _digits() -> tuple[NDArray[np.uint8], NDArray[np.int64], str]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as e:
        raise DataError("task.kind: digits needs scikit-learn, which is not installed; pip install scikit-learn") from e
    bunch = load_digits()
    images = bunch.images.astype(np.uint8)
    return images, bunch.target.astype(np.int64), hashlib.sha256(images.tobytes()).hexdigest()
