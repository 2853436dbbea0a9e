"""How a cache keeps logits: all of them, or the largest ones and the mean of the rest. Driver and workers.

Bytes per sample and view, for C classes, an embedding of d numbers (2 bytes each, 4 where fp16 overflows) and K kept:

    all     2 C + 4 + 1 + 2 d        logits fp16 below the row maximum, the maximum fp32, present
    top K   4 K + 2 + 4 + 1 + 2 d    K labels (uint16; 6 K with uint32 from 65,536 classes on) and fp16 logits, the mean
                                     of the other logits fp16, the maximum fp32, present

Ids (and, with augmentation, view numbers of 8 bytes) come on top. 10 million samples x 1,000 classes, d = 128: 22.6 GB
with all logits, 3.9 GB with the top 32. The mean of the rest is what a distillation at high temperature reads of it, to
first order; at temperatures near 1 the rest has little mass where K is large enough. `benchmarks/chain_cache.py`
measures both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

LABELS, VALUES, REST = "top_labels.npy", "top_values.npy", "rest.npy"


@dataclass(frozen=True, kw_only=True, eq=False)
class TopLogits:
    """The K largest logits of each row; indexed like the array of all logits, [view, rows] -> [B, C].

    Attributes:
        labels: [V, N, K] unsigned.
        values: [V, N, K] fp16, below the row maximum.
        rest: [V, N] fp16, mean of the others, below the row maximum.
        classes: C.
    """

    labels: NDArray[np.unsignedinteger[Any]]
    values: NDArray[np.float16]
    rest: NDArray[np.float16]
    classes: int

    def __getitem__(self, index: tuple[int | NDArray[np.int64], NDArray[np.int64]]) -> NDArray[np.float16]:
        rest = np.asarray(self.rest[index])
        logits = np.repeat(rest[:, None], self.classes, axis=1)
        np.put_along_axis(logits, np.asarray(self.labels[index]).astype(np.int64), self.values[index], axis=1)
        return logits


def logits_kept(top: int | None, classes: int) -> int | None:
    """Return how many logits a cache keeps of each row; None: all, also where the top would not be smaller."""
    return None if top is None or top >= classes else top


def label_type(classes: int) -> np.dtype[Any]:
    """Return the smallest of uint16 and uint32 that counts the classes."""
    return np.dtype("<u2" if classes <= 2**16 else "<u4")


def encode_top(shifted: NDArray[np.float32], *, top: int) -> dict[str, NDArray[Any]]:
    """Return blocks of the three files.

    Args:
        shifted: [B, C] logits below the row maximum, at least -65504.
        top: K < C.
    """
    classes = shifted.shape[1]
    labels = np.argpartition(shifted, classes - top, axis=1)[:, classes - top :]
    values = np.take_along_axis(shifted, labels, axis=1)
    rest = (shifted.sum(axis=1, dtype=np.float64) - values.sum(axis=1, dtype=np.float64)) / (classes - top)
    return {
        LABELS: labels.astype(label_type(classes)),
        VALUES: values.astype(np.float16),
        REST: np.clip(rest, -65504.0, 0.0).astype(np.float16),
    }


def bytes_per_sample(*, classes: int, size: int, top: int | None = None) -> int:
    """Return the bytes of one sample in one view, ids and view numbers not counted; see above."""
    k = logits_kept(top, classes)
    logits = 2 * classes if k is None else (2 + label_type(classes).itemsize) * k + 2
    return logits + 4 + 1 + 2 * size
