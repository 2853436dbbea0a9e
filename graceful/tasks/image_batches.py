"""Squares of bytes as one batch of numbers, converted image by image in threads. Driver and workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from graceful.tasks.image_listing import pool


def batch_of(
    squares: Sequence[NDArray[np.uint8]] | NDArray[np.uint8], scale: Callable[[NDArray[np.float32]], None]
) -> Tensor:
    """Return images [B, H, W, C] as a tensor [B, C, H, W].

    Args:
        squares: At least one, all of one shape.
        scale: Changes the numbers of one image, [C, H, W] of 0 to 255, in place.
    """
    height, width, channels = squares[0].shape
    batch = np.empty((len(squares), channels, height, width), dtype=np.float32)

    def convert(index: int) -> None:
        batch[index] = squares[index].transpose(2, 0, 1)
        scale(batch[index])

    list(pool().map(convert, range(len(squares))))
    return torch.from_numpy(batch)


def to_unit_range(image: NDArray[np.float32]) -> None:
    """Bring bytes into [-1, 1], in place."""
    image /= 127.5
    image -= 1.0
