"""Squares of bytes as one batch of numbers, large ones converted in threads. Driver and workers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from graceful.tasks.image_listing import in_threads
from graceful.tasks.photos import Frame, Photo, cut

if TYPE_CHECKING:
    from PIL.Image import Image as Picture


SMALL = 2**16
"""Numbers of an image up to which converting it takes less time than handing it to a thread."""


def squares_of(items: Iterable[Photo | Picture | NDArray[np.uint8]], frame: Frame) -> list[NDArray[np.uint8]]:
    """Return `square_of` each item; photos that were read for this frame are there already."""
    wanted = list(items)
    if all(isinstance(item, Photo) and item.frame == frame for item in wanted):
        return [square_of(item, frame) for item in wanted]
    return in_threads(partial(square_of, frame=frame), wanted)


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
    """Return images [B, H, W, C] as a tensor [B, C, H, W], in the memory format `torch.channels_last` if in colour.

    Decoded pixels lie in this order, and convolutions are faster in it: a step of the ResNet of `benchmarks.throughput`
    takes three quarters of the time on a CPU.

    Args:
        squares: At least one, all of one shape.
        scale: Changes the numbers of one image, [C, H, W] of 0 to 255, in place.
    """
    batch = np.empty((len(squares), *squares[0].shape), dtype=np.float32)

    def convert(index: int) -> None:
        batch[index] = squares[index]
        scale(batch[index].transpose(2, 0, 1))

    if squares[0].size <= SMALL:
        for index in range(len(squares)):
            convert(index)
    else:
        in_threads(convert, range(len(squares)))
    images = torch.from_numpy(batch)
    return images.squeeze(3).unsqueeze(1) if images.shape[3] == 1 else images.permute(0, 3, 1, 2)


def to_unit_range(image: NDArray[np.float32]) -> None:
    """Bring bytes into [-1, 1], in place."""
    image /= 127.5
    image -= 1.0
