"""Groups of parameters with learning rates of their own: by depth, for the head, and what does not decay. In workers.

Both engines take their steps with these groups. A spec that names no rates has one group with all parameters.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from graceful import spec
from graceful.errors import SpecError

TOP = ("head", "projection")
"""Submodules on top of the body; everything else is the body."""


@dataclass(frozen=True, kw_only=True)
class ParameterGroup:
    """Parameters that take the same steps.

    Attributes:
        parameters: All that are trained.
        factor: The factor of the learning rate.
        weight_decay: The weight decay of these parameters.
    """

    parameters: tuple[nn.Parameter, ...]
    factor: float
    weight_decay: float


def parameter_groups(section: spec.Optimizer, network: nn.Module) -> tuple[ParameterGroup, ...]:
    """Return the groups of a network's trained parameters, in the order of their first ones.

    Args:
        section: The optimiser.
        network: With a submodule `head`, and perhaps `projection`; the rest is the body.

    Raises:
        SpecError: The section asks for rates by depth or for the head, and the network has neither layers nor a head.
    """
    trained = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    depths = _depths(network) if section.layer_decay != 1.0 else {}
    if section.head_factor != 1.0 and not any(_is_top(name) for name in trained):
        raise SpecError("train.optimizer.head_factor: the network has no trained submodule `head`; leave it out")
    members: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in trained.items():
        factor = section.head_factor if _is_top(name) else section.layer_decay ** depths.get(name, 0)
        small = parameter.ndim < 2 and not section.decay_norms
        members.setdefault((factor, 0.0 if small else section.weight_decay), []).append(parameter)
    return tuple(
        ParameterGroup(parameters=tuple(parameters), factor=factor, weight_decay=decay)
        for (factor, decay), parameters in members.items()
    )


def described(section: spec.Optimizer, network: nn.Module) -> str | None:
    """Return the learning rates of a network as one phrase; None where there is one rate for everything."""
    if section.layer_decay == 1.0 and section.head_factor == 1.0:
        return None
    depths = _depths(network) if section.layer_decay != 1.0 else {}
    used = sorted(
        {depths.get(name, 0) for name, p in network.named_parameters() if p.requires_grad and not _is_top(name)}
    )
    body = [section.lr * section.layer_decay**depth for depth in used]
    span = "frozen" if not body else f"{body[0]:.3g}" if len(body) == 1 else f"{body[0]:.3g} to {body[-1]:.3g}"
    return f"head {section.lr * section.head_factor:.3g}, body {span}"


def _is_top(name: str) -> bool:
    return name.partition(".")[0] in TOP


def _depths(network: nn.Module) -> dict[str, int]:
    """Return how deep below the head each parameter of the body lies: 1 in the topmost layer and what is above it.

    Layers are the items of the largest list of modules in the body (`ModuleList` or `Sequential`); what comes before
    them, e.g. embeddings of tokens, lies one deeper than the first.

    Raises:
        SpecError: There is no such list.
    """
    prefix, count = _layers(network)
    depths, below = {}, True
    for name, _ in network.named_parameters():
        if _is_top(name):
            continue
        item = re.match(rf"{re.escape(prefix)}\.(\d+)\.", name)
        if item is not None:
            depths[name], below = count - int(item[1]), False
        else:
            depths[name] = count + 1 if below else 1
    return depths


def _layers(network: nn.Module) -> tuple[str, int]:
    """Return the path of the largest list of modules in the body, and how many modules it holds."""
    lists = [
        (sum(parameter.numel() for parameter in module.parameters()), name, len(module))
        for name, module in _body_modules(network)
        if isinstance(module, nn.ModuleList | nn.Sequential) and sum(map(_has_parameters, module)) > 1
    ]
    if not lists:
        raise SpecError("train.optimizer.layer_decay: the network has no list of layers; leave it out")
    _, name, count = max(lists, key=lambda item: item[0])
    return name, count


def layers_of(network: nn.Module) -> list[nn.Module]:
    """Return the items of the largest list of modules in the body; SpecError where there is none."""
    prefix, _ = _layers(network)
    return list(network.get_submodule(prefix).children())


def _body_modules(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return ((name, module) for name, module in network.named_modules() if name and not _is_top(name))


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def set_rates(groups: Sequence[dict[str, object]], rates: Sequence[float]) -> None:
    """Give the groups of an optimiser their learning rates of a step."""
    for group, rate in zip(groups, rates, strict=True):
        group["lr"] = rate
