"""Squares of bytes become one batch: the same numbers in whatever order they lie, and however large they are."""

import numpy as np
import pytest
import torch

from graceful.tasks import image_batches
from graceful.tasks.image_batches import batch_of, to_unit_range


@pytest.mark.parametrize("small", [0, image_batches.SMALL], ids=["in threads", "without"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_batch_holds_the_squares_numbers(monkeypatch, small, channels):
    monkeypatch.setattr(image_batches, "SMALL", small)
    squares = np.random.default_rng(0).integers(0, 256, (5, 6, 6, channels), dtype=np.uint8)
    expected = squares.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(127.5) - np.float32(1.0)
    batch = batch_of(list(squares), to_unit_range)
    assert batch.shape == (5, channels, 6, 6)
    np.testing.assert_array_equal(batch.numpy(), expected)


def test_colour_lies_channel_after_channel_of_a_pixel_and_grey_as_it_always_did():
    colour, grey = (batch_of(np.zeros((2, 4, 4, channels), dtype=np.uint8), to_unit_range) for channels in (3, 1))
    assert colour.is_contiguous(memory_format=torch.channels_last)
    assert not colour.is_contiguous()
    assert grey.stride() == (16, 16, 4, 1)
