"""One network and narrower ones within it, which have its first channels and so its weights. Driver."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from graceful.architectures.supernet import part_of, shell_of
from graceful.models.staged import StagedNet
from graceful.spec.stages import StagedNetwork


class NestedNet(nn.Module):
    """Runs as one of its capacities, which the caller chooses; has `embed` and `classify`.

    Normalisation uses the statistics of the batch, since those of different capacities differ; one that is taken out
    has its own measured.

    Args:
        whole: The network, its channels in order of importance.
        capacities: Itself first, then narrower ones.

    Attributes:
        capacity: Position of the capacity that runs.
    """

    def __init__(self, whole: StagedNet, capacities: Sequence[StagedNetwork]) -> None:
        super().__init__()
        self.whole, self.capacities, self.capacity = whole, tuple(capacities), 0
        self.embedding_size = whole.embedding_size
        self._shells = [shell_of(section, input_shape=whole.input_shape) for section in self.capacities]

    def embed(self, x: Tensor) -> Tensor:
        """Return the embeddings [B, d] of images [B, channels, height, width], not normalised."""
        if len(x) == 1:  # one value a channel has no variance
            return self.embed(torch.cat([x, x]))[:1]
        shell = self._shells[self.capacity]
        embedding: Tensor = functional_call(shell, self._weights(shell), (x,), strict=True)
        return embedding

    def classify(self, embedding: Tensor) -> Tensor:
        """Return the logits [B, C] of embeddings [B, d]."""
        return self.whole.classify(embedding)

    def network(self, capacity: int) -> StagedNet:
        """Return a capacity as a network of its own, with copies of its weights and unmeasured statistics."""
        with torch.random.fork_rng(devices=[]):
            classes = int(self.whole.classify(torch.zeros(1, self.embedding_size)).shape[1])
            network = StagedNet(self.capacities[capacity], input_shape=self.whole.input_shape, classes=classes)
        shared = {name: tensor.detach().clone() for name, tensor in self._weights(network).items()}
        network.load_state_dict(shared, strict=False)
        network.head.load_state_dict(self.whole.head.state_dict())
        return network.eval()

    def _weights(self, narrow: nn.Module) -> dict[str, Tensor]:
        """Return the weights of a capacity, by the names and in the shapes of its network; no head."""
        shapes = {name: value.shape for name, value in narrow.named_parameters() if not name.startswith("head.")}
        whole = dict(self.whole.named_parameters())
        return {name: part_of(whole[name], shape) for name, shape in shapes.items()}
