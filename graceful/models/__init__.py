"""Networks with an embedding and a classifier: built from a spec section, in drivers and workers alike."""

from __future__ import annotations

from torch import nn

from graceful import spec
from graceful.errors import SpecError
from graceful.models.base import Forward, Network, Outputs
from graceful.models.convnet import CHANNELS, ConvNet
from graceful.models.heads import CosineHead, LinearHead, head_of
from graceful.models.staged import StagedNet
from graceful.spec.stages import StagedNetwork

__all__ = ["ConvNet", "CosineHead", "Forward", "LinearHead", "Network", "Outputs", "StagedNet", "build"]


def build(section: spec.Network | StagedNetwork, *, classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    """Build an untrained network; its weights follow from torch's global seed.

    A linear head gets rectified embeddings, or it would only be one more linear layer; a cosine head gets signed ones,
    whose angles use the whole sphere.

    Args:
        section: Size, embedding and head.
        classes: Number of logits.
        input_shape: Shape of one input, (channels, height, width) in pixels.

    Raises:
        SpecError: No class at all, or inputs that are not images; such data need a task with its own network.
    """
    if classes < 1:
        raise SpecError(f"network: needs at least 1 class, got {classes}; check the task's classes")
    if len(input_shape) != 3 or min(input_shape) < 1:
        raise SpecError(
            f"network.{_described(section)}: inputs must be (channels, height, width), got {tuple(input_shape)};"
            " write a python task with its own network"
        )
    channels, height, width = input_shape
    if isinstance(section, StagedNetwork):
        return StagedNet(section, input_shape=(channels, height, width), classes=classes)
    head = head_of(section.head, section.embedding, classes, scale=section.scale)
    return ConvNet(
        (channels, height, width),
        widths=CHANNELS[section.size],
        embedding_size=section.embedding,
        activation=nn.Identity() if section.head == "cosine" else nn.ReLU(),
        head=head,
    )


def _described(section: spec.Network | StagedNetwork) -> str:
    return f"size {section.size}" if isinstance(section, spec.Network) else "stages"
