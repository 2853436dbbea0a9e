"""Squares of bytes as one batch of numbers, converted image by image in threads. Driver and workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from graceful.tasks.image_listing import pool
from graceful.tasks.photos import Frame, Photo, cut

if TYPE_CHECKING:
    from PIL.Image import Image as Picture


def square_of(item: Photo | Picture | NDArray[np.uint8], frame: Frame) -> NDArray[np.uint8]:
    """Return [size, size, 3] pixels of a photo, of an image of Pillow, or of bytes [H, W] or [H, W, 3]."""
    if isinstance(item, Photo):
        return item.square(frame)
    if isinstance(item, np.ndarray):
        from PIL import Image

        item = Image.fromarray(item)
    return cut(item, frame)


def grey(square: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a square of colours as one of grey, [size, size, 1]."""
    from PIL import Image

    return np.asarray(Image.fromarray(square).convert("L"))[:, :, None]


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
