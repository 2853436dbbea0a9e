"""Adapters in a network of a checkpoint, through the package peft, loaded on first use. Driver and workers."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import nn

from graceful.errors import SpecError
from graceful.models import packages
from graceful.spec.adapters import Lora


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
    names = {name.rpartition(".")[2] for name, module in body.named_modules() if isinstance(module, nn.Linear)}
    missing = [name for name in section.targets if not _names_a_layer(name, body)]
    if missing or not names:
        has = f"its linear layers are {', '.join(sorted(names)[:12])}" if names else "it has no linear layers"
        raise SpecError(f"task.network.peft.targets: the model has no layer {', '.join(missing)}; {has}")
    config = peft.LoraConfig(
        r=section.r,
        lora_alpha=section.alpha,
        lora_dropout=section.dropout,
        target_modules=list(section.targets or sorted(names)),
    )
    try:
        peft.inject_adapter_in_model(config, body)
    except (ValueError, TypeError) as e:  # a layer of a kind that cannot be adapted
        reason = " ".join(str(e).split())[:200]
        raise SpecError(f"task.network.peft.targets: {reason}") from e


def _names_a_layer(name: str, body: nn.Module) -> bool:
    return any(path == name or path.endswith(f".{name}") for path, _ in body.named_modules())


def base_names(body: nn.Module, *, prefix: str, absent: Collection[str]) -> frozenset[str]:
    """Return the names of the parameters that are not trained, because the checkpoint has them.

    Args:
        body: After `adapt`.
        prefix: Of the body in the network's state, e.g. `body.`.
        absent: Parameters of the body, by their names before `adapt`, that the checkpoint has no weights for.
    """
    return frozenset(
        prefix + name
        for name, parameter in body.named_parameters()
        if not parameter.requires_grad and name.replace(".base_layer.", ".") not in absent
    )


def without(state: Any, names: Collection[str]) -> dict[str, Any]:
    """Return a state without some of its tensors."""
    return {name: tensor for name, tensor in state.items() if name not in names}
