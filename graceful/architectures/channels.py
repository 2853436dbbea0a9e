"""Which channels of a network of stages matter, in what order they are left out, and how few keep a budget. Driver.

Blocks of one stage share their channels, because they add to what they are given: a channel is left out of all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graceful.architectures import costs
from graceful.models.staged import Block, StagedNet
from graceful.spec.stages import StagedNetwork

Widths = tuple[int, ...]
"""Channels of each stage."""


def importance(
    network: StagedNet, section: StagedNetwork, batches: Iterable[tuple[Tensor, Tensor]]
) -> tuple[Tensor, ...]:
    """Return what leaving out each channel would change, to the first order: one vector for each stage.

    The mean over samples of the squared derivative of the cosine distance from the gallery model's embedding, by a
    factor of 1 at the channel.

    Source: Molchanov et al., Importance Estimation for Neural Network Pruning (CVPR 2019), with gates.

    Args:
        network: Trained; left in evaluation mode, without gradients.
        section: What it is.
        batches: Images [B, channels, height, width] and the gallery model's embeddings of them [B, d].
    """
    network.eval()
    sums = [torch.zeros(stage.width, dtype=torch.float64) for stage in section.stages]
    for images, targets in batches:
        gates = [torch.ones(len(images), stage.width, 1, 1, requires_grad=True) for stage in section.stages]
        hooks = [
            block.register_forward_hook(partial(_gated, gates[stage]))
            for stage, block in zip(_stages(section), network.features, strict=True)
        ]
        try:
            distance = (1.0 - F.cosine_similarity(network.embed(images), targets, dim=1)).sum()
            slopes = torch.autograd.grad(distance, gates)
        finally:
            for hook in hooks:
                hook.remove()
        for total, slope in zip(sums, slopes, strict=True):
            total += slope.double().square().sum(0).flatten()
    return tuple(sums)


def _gated(gate: Tensor, _block: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output * gate


def _stages(section: StagedNetwork) -> list[int]:
    """Return the number of the stage of each block."""
    return [number for number, stage in enumerate(section.stages) for _ in range(stage.depth)]


@torch.no_grad()
def reorder(network: StagedNet, section: StagedNetwork, orders: Sequence[Tensor]) -> None:
    """Put the channels of each stage into another order, which leaves what the network computes as it is.

    Args:
        network: Changed in place.
        section: What it is.
        orders: [width] int64 for each stage: which channel comes first, second, ...
    """
    incoming: Tensor | None = None
    for stage, block in zip(_stages(section), network.features, strict=True):
        outgoing: Tensor | None = orders[stage]
        for layer in cast(Block, block).layers:
            if isinstance(layer, nn.Conv2d):
                depthwise = layer.groups > 1
                outgoing = incoming if depthwise else orders[stage]
                _reorder(layer, incoming=None if depthwise else incoming, outgoing=outgoing)
            else:
                _reorder(layer, incoming=None, outgoing=outgoing)
        incoming = orders[stage]
    weight, width = network.projection.weight, section.stages[-1].width
    columns = weight.reshape(len(weight), width, -1)[:, orders[-1]]
    weight.copy_(columns.reshape(weight.shape))


def _reorder(layer: nn.Module, *, incoming: Tensor | None, outgoing: Tensor | None) -> None:
    for tensor in (*layer.parameters(), *layer.buffers()):
        if tensor.ndim and outgoing is not None:
            tensor.copy_(tensor[outgoing])
        if tensor.ndim > 1 and incoming is not None:
            tensor.copy_(tensor[:, incoming])


def by_importance(values: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return the order of each stage's channels, most important first."""
    return tuple(torch.argsort(value, descending=True, stable=True) for value in values)


def narrowed(section: StagedNetwork, widths: Widths) -> StagedNetwork:
    """Return the network with other widths."""
    stages = (stage.model_copy(update={"width": width}) for stage, width in zip(section.stages, widths, strict=True))
    return section.model_copy(update={"stages": tuple(stages)})


def fewest(section: StagedNetwork, capacity: float) -> Widths:
    """Return how many channels a stage keeps at a capacity at least: its share of them, and two.

    Without that share a whole stage can be lost, whose channels look unimportant one by one.
    """
    return tuple(max(min(2, stage.width), int(capacity * stage.width)) for stage in section.stages)


def nested_widths(
    section: StagedNetwork,
    values: Sequence[Sequence[float]],
    capacities: Sequence[float],
    *,
    input_shape: tuple[int, int, int],
) -> list[Widths]:
    """Return the widths that keep each capacity, each at most those before it.

    One channel after the other is left out: the one whose importance is lowest for the multiply-accumulates it saves.

    Args:
        section: The whole network.
        values: Importance of each stage's channels, falling.
        capacities: Shares of its multiply-accumulates, falling.
        input_shape: (channels, height, width) of an image.

    Raises:
        ValueError: `fewest` channels are more than a capacity.
    """

    def macs(widths: Widths) -> int:
        return costs.of(narrowed(section, widths), input_shape).macs

    widths: Widths = tuple(stage.width for stage in section.stages)
    whole = macs(widths)
    found: list[Widths] = []
    for capacity in capacities:
        widths = _within(widths, fewest(section, capacity), capacity * whole, values, macs)
        found.append(widths)
    return found


def _within(
    widths: Widths, least: Widths, limit: float, values: Sequence[Sequence[float]], macs: Callable[[Widths], int]
) -> Widths:
    """Return the widths with so many channels left out that the limit is kept."""
    while (current := macs(widths)) > limit:
        narrower = {
            stage: (*widths[:stage], width - 1, *widths[stage + 1 :])
            for stage, width in enumerate(widths)
            if width > least[stage]
        }
        if not narrower:
            raise ValueError(
                f"{list(widths)} channels cost {current:,} multiply-accumulates, the limit is {limit:,.0f}"
            )
        loss = {
            stage: values[stage][widths[stage] - 1] / (current - macs(candidate))
            for stage, candidate in narrower.items()
        }
        widths = narrower[min(loss, key=lambda stage: (loss[stage], stage))]
    return widths
