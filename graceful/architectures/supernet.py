"""All paths of a space in one network with shared weights, and one path of it as a network of its own. Driver, actors.

A path runs as the network of kind `stages` that it is, with weights that are slices of the shared ones: the first
channels, the middle of the kernels. Stages with and without depthwise convolutions share none, nor do projections from
maps of other sizes. Normalisation uses the statistics of the batch, since those of different paths differ; a path that
is taken out has its own measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from graceful.architectures.space import Genes, Path, Space, digest_of, network_of
from graceful.models.heads import head_of
from graceful.models.staged import Block, StagedNet, half
from graceful.spec.stages import Stage, StagedNetwork

SHELLS = 512
"""Paths of which the network without weights is kept."""


class Supernet(nn.Module):
    """Trains one path a batch, drawn uniformly with torch's global generator; has `embed` and `classify`.

    Without training, the path of the most channels, blocks and pixels runs.

    Args:
        space: The paths.
        like: Whose embedding, head and normalisation they have.
        input_shape: (channels, height, width) of an image.
        classes: C.
    """

    def __init__(self, space: Space, like: StagedNetwork, *, input_shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        self.space, self.like, self.input_shape, self.classes = space, like, input_shape, classes
        self.embedding_size = like.embedding
        section, inputs = space.section, input_shape[0]
        self.blocks = nn.ModuleDict()
        for number, stage in enumerate(section.stages):
            width, kernel = max(stage.width), max(stage.kernel)
            for index in range(max(stage.depth)):
                for depthwise in (False, True):
                    largest = Stage(width=width, kernel=kernel, depthwise=depthwise)
                    stride = 1 if index else 2
                    block = Block(inputs, largest, stride=stride, batch_norm=like.batch_norm)
                    self.blocks[_block_name(number, index, block)] = block
                inputs = width
        sides = {_final_sides(resolution, input_shape, len(section.stages)) for resolution in section.resolution}
        self.projections = nn.ModuleDict(
            {f"{height}x{width}": nn.Linear(inputs * height * width, like.embedding) for height, width in sorted(sides)}
        )
        self.head = head_of(like.head, like.embedding, classes, scale=like.scale)
        self._shells: dict[str, StagedNet] = {}

    def embed(self, x: Tensor) -> Tensor:
        """Return the embeddings [B, d] of images [B, channels, height, width], not normalised."""
        if len(x) == 1:  # one value a channel has no variance
            return self.embed(torch.cat([x, x]))[:1]
        path = self.space.path(self._drawn() if self.training else self._largest())
        shell = self._shell(path)
        embedding: Tensor = functional_call(shell, self.weights(shell, path), (x,), strict=True)
        return embedding

    def classify(self, embedding: Tensor) -> Tensor:
        """Return the logits [B, C] of embeddings [B, d]."""
        logits: Tensor = self.head(embedding)
        return logits

    def network(self, path: Path) -> StagedNet:
        """Return a path as a network of its own, with copies of its weights and unmeasured statistics.

        Raises:
            KeyError, RuntimeError: It is not of this space.
        """
        section = network_of(path, self.like)
        with torch.random.fork_rng(devices=[]):
            network = StagedNet(section, input_shape=self.input_shape, classes=self.classes)
        shared = {name: tensor.detach().clone() for name, tensor in self.weights(network, path).items()}
        network.load_state_dict(shared, strict=False)
        network.head.load_state_dict(self.head.state_dict())
        return network.eval()

    def weights(self, network: StagedNet, path: Path) -> dict[str, Tensor]:
        """Return the shared weights of a path, by the names and in the shapes of its network."""
        parameters = dict(network.named_parameters())
        places = [(number, index) for number, stage in enumerate(path["stages"]) for index in range(stage["depth"])]
        shared: dict[str, Tensor] = {}
        for position, (place, block) in enumerate(zip(places, network.features, strict=True)):
            own = dict(self.blocks[_block_name(*place, cast(Block, block))].named_parameters())
            for name, tensor in own.items():
                full_name = f"features.{position}.{name}"
                shared[full_name] = part_of(tensor, parameters[full_name].shape)
        height, width = _final_sides(path["resolution"], self.input_shape, len(path["stages"]))
        projection = cast(nn.Linear, self.projections[f"{height}x{width}"])
        columns = parameters["projection.weight"].shape[1]  # channels first, so that the first channels come first
        return {**shared, "projection.weight": projection.weight[:, :columns], "projection.bias": projection.bias}

    def _drawn(self) -> Genes:
        return tuple(int(torch.randint(len(values), ())) for values in self.space.choices)

    def _largest(self) -> Genes:
        """Return the path of the largest values; null, the resolution of the images themselves, counts as such."""
        pixels = min(self.input_shape[1:])
        return tuple(
            max(range(len(values)), key=lambda gene: pixels if values[gene] is None else values[gene])
            for values in self.space.choices
        )

    def _shell(self, path: Path) -> StagedNet:
        """Return the path's network without weights, whose normalisation keeps no statistics."""
        key = digest_of(path)
        if key not in self._shells:
            if len(self._shells) >= SHELLS:
                self._shells.clear()
            self._shells[key] = shell_of(network_of(path, self.like), input_shape=self.input_shape)
        return self._shells[key]


def shell_of(section: StagedNetwork, *, input_shape: tuple[int, int, int]) -> StagedNet:
    """Return a network without weights and head, which embeds, and whose normalisation keeps no statistics."""
    with torch.device("meta"):
        shell = StagedNet(section, input_shape=input_shape, classes=1)
    shell.head = nn.Identity()
    shell.forward = shell.embed  # type: ignore[method-assign]
    for layer in _normalisations(shell):
        layer.running_mean = layer.running_var = layer.num_batches_tracked = None
        layer.track_running_stats = False
    return shell


def _block_name(stage: int, index: int, block: Block) -> str:
    kind = "depthwise" if sum(isinstance(layer, nn.Conv2d) for layer in block.layers) == 2 else "full"
    return f"{stage}-{index}-{kind}"


def _final_sides(resolution: int | None, input_shape: tuple[int, int, int], stages: int) -> tuple[int, int]:
    """Return height and width of the last feature map."""
    _, height, width = input_shape if resolution is None else (0, resolution, resolution)
    for _ in range(stages):
        height, width = half(height), half(width)
    return height, width


def part_of(tensor: Tensor, shape: torch.Size) -> Tensor:
    """Return the first channels of weights, and the middle of kernels."""
    for dimension, size in enumerate(shape):
        begin = (tensor.shape[dimension] - size) // 2 if dimension >= 2 else 0
        tensor = tensor.narrow(dimension, begin, size)
    return tensor


def _normalisations(network: nn.Module) -> Iterator[Any]:
    return (layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d))


@torch.no_grad()
def recalibrate(network: StagedNet, batches: Iterable[Tensor]) -> None:
    """Measure the statistics of batch normalisation again: the mean of those of the batches.

    Args:
        network: Left in evaluation mode.
        batches: [B, channels, height, width] each, of samples on which nothing is scored.
    """
    layers = list(_normalisations(network))
    if not layers:
        return
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None
    network.train()
    for batch in batches:
        network.embed(batch)
    network.eval()
