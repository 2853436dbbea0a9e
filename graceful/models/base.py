"""What graceful asks of a network: an embedding and a classifier on top of it. Any nn.Module can provide them."""

from __future__ import annotations

from typing import NamedTuple, Protocol, cast, runtime_checkable

from torch import Tensor, nn


@runtime_checkable
class Network(Protocol):
    """An nn.Module with these two methods. The size of its embedding is read off what `embed` returns."""

    def embed(self, x: Tensor) -> Tensor:
        """Input [B, ...] -> embedding [B, d], not normalised."""
        ...

    def classify(self, embedding: Tensor) -> Tensor:
        """Embedding [B, d] -> logits [B, C]. This is the head that influence losses freeze."""
        ...


class Outputs(NamedTuple):
    """What one forward pass yields."""

    embedding: Tensor
    """[B, d]"""
    logits: Tensor
    """[B, C]"""


class Forward(nn.Module):
    """Gives a Network a single `forward`, which is what engines (DDP, DeepSpeed) wrap."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Outputs:
        """Input [B, ...] -> Outputs."""
        embedding = self.network.embed(x)  # type: ignore[operator]
        return Outputs(embedding, self.network.classify(embedding))  # type: ignore[operator]


class Headed(nn.Module):
    """A Network from two modules: a body that embeds and a head that classifies."""

    def __init__(self, body: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.head = head

    def embed(self, x: Tensor) -> Tensor:
        """Input [B, ...] -> embedding [B, d]."""
        return cast(Tensor, self.body(x))

    def classify(self, embedding: Tensor) -> Tensor:
        """Embedding [B, d] -> logits [B, C]."""
        return cast(Tensor, self.head(embedding))
