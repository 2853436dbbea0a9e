"""Augmentations that are functions of a view number, for whole batches at once. Workers; numpy only.

A view number is all the randomness there is: the same item with the same number gives the same pixels in any process,
which is what makes cached predecessor outputs exact. Each augmentation draws from a stream of its own.
"""

from __future__ import annotations

from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from graceful.tasks.hashing import splitmix64

_Pixel = TypeVar("_Pixel", bound=np.generic)
_ROWS, _COLUMNS, _FLIP = 1, 2, 3


def draw(views: NDArray[np.uint64], *, stream: int, below: int) -> NDArray[np.int64]:
    """Return [B] integers in [0, below), uniform, determined by the view numbers and the stream.

    Args:
        views: [B] view numbers.
        stream: Which augmentation asks; streams are independent.
        below: Exclusive bound, at least 1 and at most 2**32.
    """
    scrambled = splitmix64(views ^ splitmix64(np.asarray([stream], dtype=np.uint64)))
    return (((scrambled >> np.uint64(32)) * np.uint64(below)) >> np.uint64(32)).astype(np.int64)


def random_shift(
    images: NDArray[_Pixel], views: NDArray[np.uint64], limit: int, *, fill: Literal["zero", "edge"] = "zero"
) -> NDArray[_Pixel]:
    """Translate each image by up to `limit` pixels in both directions.

    Args:
        images: [B, H, W] or [B, H, W, C].
        views: [B] view numbers.
        limit: Largest displacement; 0 returns the images as they are.
        fill: What enters at the border: zeros, or the border pixel repeated.

    Returns:
        Same shape and dtype.
    """
    if limit == 0:
        return images
    spatial = ((0, 0), (limit, limit), (limit, limit)) + ((0, 0),) * (images.ndim - 3)
    mode: Any = "constant" if fill == "zero" else "edge"
    padded = np.pad(images, spatial, mode=mode)
    down = draw(views, stream=_ROWS, below=2 * limit + 1)
    right = draw(views, stream=_COLUMNS, below=2 * limit + 1)
    rows = down[:, None] + np.arange(images.shape[1])
    columns = right[:, None] + np.arange(images.shape[2])
    batch = np.arange(len(images))[:, None, None]
    shifted: NDArray[_Pixel] = padded[batch, rows[:, :, None], columns[:, None, :]]
    return shifted


def random_flip(images: NDArray[_Pixel], views: NDArray[np.uint64]) -> NDArray[_Pixel]:
    """Mirror every other image, on average, left to right.

    Args:
        images: [B, H, W] or [B, H, W, C].
        views: [B] view numbers.

    Returns:
        Same shape and dtype.
    """
    flipped = images.copy()
    chosen = draw(views, stream=_FLIP, below=2).astype(bool)
    flipped[chosen] = images[chosen][:, :, ::-1]
    return flipped
