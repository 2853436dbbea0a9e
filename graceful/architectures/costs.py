"""What a path costs, from its description alone, and whether a budget can be met. Pure functions. Driver."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

from graceful.architectures.space import Genes, Space
from graceful.models.staged import half
from graceful.spec.architectures import Budget
from graceful.spec.stages import StagedNetwork

PER_CHANNEL = 8
"""Bytes of the scale and of the bias of an output channel, beside the weights of one byte each."""


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Of one embedding; the classifier is left out.

    Attributes:
        macs: Multiply-accumulates of convolutions and the projection.
        parameters: Weights, those of batch normalisation included.
        int8_bytes: Weights in 8 bits, a scale and a bias of 4 bytes for each output channel; normalisation is folded.
    """

    macs: int
    parameters: int
    int8_bytes: int

    def document(self) -> dict[str, int]:
        """Return them as JSON values."""
        return asdict(self)


def of(network: StagedNetwork, input_shape: tuple[int, int, int]) -> Costs:
    """Return what a network costs.

    Args:
        network: As a spec writes it.
        input_shape: (channels, height, width) of an image.
    """
    inputs, height, width = input_shape
    if network.resolution is not None:
        height = width = network.resolution
    macs = weights = channels = 0
    for stage in network.stages:
        height, width = half(height), half(width)
        for _ in range(stage.depth):
            for kernels, outputs in _convolutions(inputs, stage.width, stage.kernel, depthwise=stage.depthwise):
                macs += height * width * kernels
                weights, channels = weights + kernels, channels + outputs
            inputs = stage.width
    projection = inputs * height * width * network.embedding
    per_channel = 2 if network.batch_norm else 1
    return Costs(
        macs=macs + projection,
        parameters=weights + per_channel * channels + projection + network.embedding,
        int8_bytes=weights + projection + PER_CHANNEL * (channels + network.embedding),
    )


def _convolutions(inputs: int, outputs: int, kernel: int, *, depthwise: bool) -> list[tuple[int, int]]:
    """Return weights and output channels of the convolutions of a block."""
    if depthwise and inputs > 1:
        return [(inputs * kernel**2, inputs), (inputs * outputs, outputs)]
    return [(inputs * outputs * kernel**2, outputs)]


def excess(costs: Mapping[str, float], budget: Budget) -> float:
    """Return the largest cost as a multiple of its limit: at most 1 is within the budget. A cost that is not known
    counts as none."""
    limits = budget.model_dump(exclude_none=True)
    return max((costs[name] / limit for name, limit in limits.items() if name in costs), default=0.0)


def cheapest(space: Space, costs_of: Callable[[Genes], Costs], budget: Budget) -> Genes:
    """Return the path whose largest cost is the lowest multiple of its limit; without limits, of fewest MACs.

    One choice is changed at a time, from the first path on, until no change helps.
    """
    sized = budget if budget.model_dump(exclude_none=True, exclude={"latency_ms"}) else Budget(macs=1)

    def height(genes: Genes) -> tuple[float, int]:
        costs = costs_of(genes)
        return excess(costs.document(), sized), costs.macs

    best: Genes = (0,) * len(space.choices)
    while True:
        nearer = min(space.neighbours(best), key=height, default=best)
        if height(nearer) >= height(best):
            return best
        best = nearer
