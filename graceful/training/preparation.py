"""What engines do to a network before they hold it: 2-byte weights, recomputed layers, torch.compile. Runs in workers.

None of it changes the names in the network's state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from graceful import spec
from graceful.errors import SpecError
from graceful.training.rates import layers_of

BACKEND = "inductor"
"""Backend of torch.compile; another one where there is no compiler."""


def prepared(train: spec.Train, network: nn.Module) -> nn.Module:
    """Return the network as `train.weights` and `train.recompute` want it, changed in place.

    Raises:
        SpecError: It has no list of layers that could be run again.
    """
    if train.weights == "bf16":
        network.to(torch.bfloat16)
    if train.recompute:
        layers = distinct_layers(network)
        if not layers:
            raise SpecError("train.recompute: the network has no list of layers; leave it out")
        for layer in layers:
            layer.forward = Recomputed(layer.forward)
    return network


class Recomputed:
    """A layer's forward that keeps its inputs alone, and runs again when gradients are asked for.

    Args:
        forward: Of the layer.
    """

    def __init__(self, forward: Callable[..., Any]) -> None:
        self._forward = forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the layer's forward returns."""
        if not torch.is_grad_enabled():
            return self._forward(*args, **kwargs)
        return checkpoint(partial(self._forward, **kwargs), *args, use_reentrant=False)


def distinct_layers(network: nn.Module) -> list[nn.Module]:
    """Return the network's layers that share no parameter with the rest of it; none where it has no list of them."""
    try:
        layers = list(dict.fromkeys(layers_of(network)))
    except SpecError:
        return []
    uses: dict[nn.Parameter, int] = {}
    for owner in _owners(network):
        for parameter in owner.parameters(recurse=False):
            uses[parameter] = uses.get(parameter, 0) + 1
    return [
        layer
        for layer in layers
        if any(True for _ in layer.parameters()) and all(_inside(layer, p) == uses[p] for p in layer.parameters())
    ]


def _owners(module: nn.Module) -> Iterator[nn.Module]:
    return (owner for _, owner in module.named_modules(remove_duplicate=False))


def _inside(layer: nn.Module, parameter: nn.Parameter) -> int:
    return sum(any(p is parameter for p in owner.parameters(recurse=False)) for owner in _owners(layer))


def compile_in_place(network: nn.Module) -> None:
    """Let torch.compile run a module from its next call on; its state keeps its names."""
    network.compile(backend=BACKEND)
