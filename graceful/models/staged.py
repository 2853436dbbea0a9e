"""Convolutional networks written stage by stage, and the blocks that a supernet shares. Drivers and workers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graceful.models.heads import head_of
from graceful.spec.stages import Stage, StagedNetwork


class Block(nn.Module):
    """A convolution, or a depthwise one and a 1x1 convolution, each followed by batch normalisation and ReLU.

    A block that keeps the shape of its input adds it to its output.
    """

    def __init__(self, inputs: int, stage: Stage, *, stride: int, batch_norm: bool) -> None:
        super().__init__()
        self.adds = stride == 1 and inputs == stage.width
        kernel, width = stage.kernel, stage.width
        layers: list[nn.Module] = []
        if stage.depthwise and inputs > 1:
            layers += _convolution(inputs, inputs, kernel, stride=stride, groups=inputs, batch_norm=batch_norm)
            layers += _convolution(inputs, width, 1, stride=1, groups=1, batch_norm=batch_norm)
        else:
            layers += _convolution(inputs, width, kernel, stride=stride, groups=1, batch_norm=batch_norm)
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Return the feature map that a feature map becomes."""
        y: Tensor = self.layers(x)
        return x + y if self.adds else y


def _convolution(
    inputs: int, outputs: int, kernel: int, *, stride: int, groups: int, batch_norm: bool
) -> list[nn.Module]:
    layer = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=not batch_norm)
    return [layer, *([nn.BatchNorm2d(outputs)] if batch_norm else []), nn.ReLU()]


class StagedNet(nn.Module):
    """Stages of blocks, a linear layer to the embedding, a head.

    Args:
        section: Section of the spec.
        input_shape: (channels, height, width).
        classes: C.
    """

    def __init__(self, section: StagedNetwork, *, input_shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        inputs, height, width = self.input_shape = input_shape
        self.resolution = section.resolution
        if self.resolution is not None:
            height = width = self.resolution
        blocks: list[nn.Module] = []
        for stage in section.stages:
            for index in range(stage.depth):
                stride = 1 if index else 2
                blocks.append(Block(inputs, stage, stride=stride, batch_norm=section.batch_norm))
                inputs = stage.width
            height, width = half(height), half(width)
        self.embedding_size = section.embedding
        self.features = nn.Sequential(*blocks)
        self.projection = nn.Linear(inputs * height * width, section.embedding)
        self.activation = nn.Identity() if section.head == "cosine" else nn.ReLU()
        self.head = head_of(section.head, section.embedding, classes, scale=section.scale)

    def embed(self, x: Tensor) -> Tensor:
        """Return the embeddings [B, d] of images [B, channels, height, width], not normalised."""
        features = self.features(resized(x, self.resolution))
        embedding: Tensor = self.activation(self.projection(features.flatten(1)))
        return embedding

    def classify(self, embedding: Tensor) -> Tensor:
        """Return the logits [B, C] of embeddings [B, d]."""
        logits: Tensor = self.head(embedding)
        return logits

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [B, C] of images."""
        return self.classify(self.embed(x))


def resized(x: Tensor, side: int | None) -> Tensor:
    """Return images scaled to a square of `side` pixels; None: as they are."""
    if side is None or x.shape[-2:] == torch.Size((side, side)):
        return x
    return F.interpolate(x, size=(side, side), mode="bilinear", align_corners=False)


def half(side: int) -> int:
    """Return the side of a feature map after a stride of two."""
    return (side + 1) // 2
