"""Adapters in a network of a checkpoint, through the package peft, loaded on first use. Driver and workers."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from graceful.errors import SpecError
from graceful.models import packages
from graceful.spec.adapters import Lora

_TRANSPOSED = "Conv1D"
"""The linear layer of transformers whose weights are stored the other way round, in GPT-2."""


def adapt(body: nn.Module, section: Lora) -> None:
    """Put adapters into a network, in place, and freeze everything else in it.

    The adapters change nothing until they are trained: B begins at zero, A follows from torch's global seed.

    Args:
        body: A model of transformers, or any module with linear layers.
        section: Which layers, and how.

    Raises:
        SpecError: No layer has one of the names, or the package peft is missing.
    """
    peft = packages.package("peft")
    names = {name.rpartition(".")[2] for name, module in body.named_modules() if _is_linear(module)}
    missing = [name for name in section.targets if not _names_a_layer(name, body)]
    if missing or not (names or section.targets):
        has = f"its linear layers are {', '.join(sorted(names)[:12])}" if names else "it has no linear layers"
        lacks = f"the model has no layer {', '.join(missing)}" if missing else "name the layers to adapt"
        raise SpecError(f"task.network.peft.targets: {lacks}; {has}")
    config = peft.LoraConfig(
        r=section.r,
        lora_alpha=section.alpha,
        lora_dropout=section.dropout,
        target_modules=list(section.targets or sorted(names)),
        fan_in_fan_out=any(type(module).__name__ == _TRANSPOSED for module in body.modules()),
    )
    try:
        peft.inject_adapter_in_model(config, body)
    except (ValueError, TypeError) as e:  # a layer of a kind that cannot be adapted
        reason = " ".join(str(e).split())[:200]
        raise SpecError(f"task.network.peft.targets: {reason}") from e


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == _TRANSPOSED


def _names_a_layer(name: str, body: nn.Module) -> bool:
    return any(path == name or path.endswith(f".{name}") for path, _ in body.named_modules())


def base_names(body: nn.Module, *, prefix: str, absent: Collection[str]) -> frozenset[str]:
    """Return the names of the parameters that are not trained, because the checkpoint has them.

    Args:
        body: After `adapt`.
        prefix: The prefix of the body in the network's state, e.g. `body.`.
        absent: Parameters of the body, by their names before `adapt`, that the checkpoint has no weights for.
    """
    return frozenset(
        prefix + name
        for name, parameter in body.named_parameters()
        if not parameter.requires_grad and name.replace(".base_layer.", ".") not in absent
    )
