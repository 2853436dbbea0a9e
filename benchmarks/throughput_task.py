"""The task of `benchmarks.throughput`: drawn images in memory, and networks whose steps are short or long."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from graceful import models, spec
from graceful.tasks.base import Samples, Split

CLASSES = tuple(f"class-{index}" for index in range(10))
SHAPES = {"s2": (1, 28, 28), "resnet": (3, 64, 64), "vit": (3, 64, 64)}
SIZES = {"train": 16384, "validation": 8, "constraint": 8, "test": 8}


class Headed(nn.Module):
    """A body of transformers whose pooled output is the embedding, and a linear head."""

    def __init__(self, body: nn.Module, width: int) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(width, len(CLASSES))

    def embed(self, x: Tensor) -> Tensor:
        """Map images [B, 3, 64, 64] to [B, width]."""
        pooled: Tensor = self.body(pixel_values=x).pooler_output
        return pooled.flatten(1)

    def classify(self, embedding: Tensor) -> Tensor:
        """Map embedding to logits."""
        logits: Tensor = self.head(embedding)
        return logits


def network(kind: str) -> nn.Module:
    """Build s2 (48,000 parameters), or a ResNet or ViT of transformers with random weights."""
    if kind == "s2":
        return models.build(spec.Network(size="s2"), classes=len(CLASSES), input_shape=SHAPES[kind])
    if kind == "resnet":
        from transformers import ResNetConfig, ResNetModel

        config = ResNetConfig(embedding_size=32, hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2])
        return Headed(ResNetModel(config), 512)
    from transformers import ViTConfig, ViTModel

    small = ViTConfig(
        hidden_size=192, num_hidden_layers=6, num_attention_heads=3, intermediate_size=768, image_size=64, patch_size=8
    )
    return Headed(ViTModel(small), 192)


def pixels(kind: str, split: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return seeded bytes [N, C, H, W] and labels."""
    random = np.random.default_rng(list(SIZES).index(split))
    count = SIZES[split]
    return random.integers(0, 256, (count, *SHAPES[kind]), dtype=np.uint8), np.arange(count) % len(CLASSES)


def to_batch(items: NDArray[np.uint8]) -> Tensor:
    """Return bytes as numbers in [-1, 1]."""
    return torch.from_numpy(items).float().div_(127.5).sub_(1.0)


class Drawn:
    """As `Task`."""

    classes = CLASSES
    augments = False

    def __init__(self, kind: str) -> None:
        self._kind = kind

    def network(self, classes: tuple[str, ...]) -> nn.Module:
        """Implement `Task.network`."""
        return network(self._kind)

    def samples(self, split: Split) -> Samples:
        """Implement `Task.samples`."""
        if split not in SIZES:
            raise KeyError(split)
        items, labels = pixels(self._kind, split)
        ids = [f"{split}/{index}" for index in range(len(labels))]
        return Samples.of(items, labels, classes=CLASSES, ids=ids)

    def transform(self, items: Any, views: NDArray[np.uint64] | None) -> Tensor:
        """Implement `Task.transform`."""
        return to_batch(items)


def task(kind: str = "s2") -> Drawn:
    """Return the task with one of the networks."""
    return Drawn(kind)
