"""Small convolutional networks for images of any size, fast enough to train on one core. Drivers and workers."""

from __future__ import annotations

from torch import Tensor, nn

CHANNELS = {"xs": (6, 12), "s2": (12, 24), "m": (24, 48)}
"""Channels of the first two convolutions by `spec.Network.size`."""

GRID = 8
"""Largest height or width of the feature map that the embedding layer sees."""


class ConvNet(nn.Module):
    """Stride-2 convolutions with ReLU (5x5, then 3x3), a linear layer to the embedding, a head.

    Inputs above 32 pixels get further 3x3 stride-2 convolutions of the second width until the feature map is at most
    8x8, which bounds the embedding layer at any resolution. There is no adaptive pooling, because its gradient is not
    deterministic on CUDA.

    There is no batch normalisation on purpose. A frozen predecessor has to be a function of its weights alone; running
    statistics are state that drifts while training, and batch statistics depend on how many samples each worker holds,
    so that resuming or changing the number of workers would change the result.

    Args:
        input_shape: (channels, height, width).
        widths: Channels of the first two convolutions.
        embedding_size: d.
        activation: What follows the embedding layer.
        head: Embedding [B, d] -> logits [B, C].
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        *,
        widths: tuple[int, int],
        embedding_size: int,
        activation: nn.Module,
        head: nn.Module,
    ) -> None:
        super().__init__()
        channels, height, width = input_shape
        first, second = widths
        layers: list[nn.Module] = [nn.Conv2d(channels, first, 5, stride=2, padding=2), nn.ReLU()]
        layers += [nn.Conv2d(first, second, 3, stride=2, padding=1), nn.ReLU()]
        height, width = _stride_two_size(_stride_two_size(height)), _stride_two_size(_stride_two_size(width))
        while max(height, width) > GRID:
            layers += [nn.Conv2d(second, second, 3, stride=2, padding=1), nn.ReLU()]
            height, width = _stride_two_size(height), _stride_two_size(width)
        self.embedding_size = embedding_size
        self.features = nn.Sequential(*layers, nn.Flatten())
        self.projection = nn.Linear(second * height * width, embedding_size)
        self.activation = activation
        self.head = head

    def embed(self, x: Tensor) -> Tensor:
        """Return the embeddings [B, d] of images [B, channels, height, width], not normalised."""
        embedding: Tensor = self.activation(self.projection(self.features(x)))
        return embedding

    def classify(self, embedding: Tensor) -> Tensor:
        """Return the logits [B, C] of embeddings [B, d]."""
        logits: Tensor = self.head(embedding)
        return logits

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [B, C] of images."""
        return self.classify(self.embed(x))


def _stride_two_size(side: int) -> int:
    return (side + 1) // 2
