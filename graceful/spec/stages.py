"""Convolutional networks that a spec writes down stage by stage, as a search finds them. Runs in every process."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from graceful.sections import Positive, Section

Width = Annotated[int, Field(ge=1, le=4096)]


class Stage(Section):
    """Blocks of one width; the first of them halves height and width."""

    width: Width
    """Channels."""
    kernel: Literal[3, 5, 7] = 3
    """Side of the convolutions, in pixels."""
    depth: Annotated[int, Field(ge=1, le=16)] = 1
    """Blocks; those after the first add to what they are given."""
    depthwise: bool = False
    """Convolve each channel alone, then mix channels with a 1x1 convolution: fewer multiplications, but not always
    faster."""


class StagedNetwork(Section):
    """A convolutional network for images, written stage by stage: for query models and what a search finds."""

    kind: Literal["stages"] = "stages"
    stages: Annotated[tuple[Stage, ...], Field(min_length=1, max_length=8)]
    """From the image to the embedding."""
    resolution: Annotated[int, Field(ge=8, le=1024)] | None = None
    """Images are scaled to so many pixels a side inside the network; None: they stay as they are."""
    batch_norm: bool = True
    """Normalise batches after each convolution; the statistics become part of the weights."""
    embedding: Annotated[int, Field(ge=2, le=4096)] = 64
    """Length of the embedding that galleries store; a query model has that of its gallery model."""
    head: Literal["linear", "cosine"] = "linear"
    """linear: weights and bias; cosine: normalised weights times `scale`, for retrieval."""
    scale: Positive = 16.0
    """Scale of the cosine head; unused by the linear one."""
