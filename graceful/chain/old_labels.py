"""Labels of training samples in the label space of an older version. Workers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, eq=False)
class OldLabels:
    """Labels of N samples as an older version numbers them, looked up when they are read.

    Attributes:
        old_label_of: [C] the old label of each class, -1 where the version does not know it.
        labels: [N] the samples' classes; may be memory-mapped.
    """

    old_label_of: NDArray[np.int64]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Any) -> NDArray[np.int64]:
        """Return the old labels of some samples; a slice, or positions."""
        old_labels: NDArray[np.int64] = self.old_label_of[self.labels[index]]
        return old_labels

    def known_share(self, *, at_once: int = 65_536) -> float:
        """Return the share of samples whose class the version knows."""
        starts = range(0, len(self), at_once)
        return sum(int((self[start : start + at_once] >= 0).sum()) for start in starts) / len(self)
