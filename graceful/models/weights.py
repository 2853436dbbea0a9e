"""Weights of a network as bytes and back: all of them, or the head alone. Drivers and workers; nothing here is code."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_weights
from torch import Tensor, nn

from graceful.errors import DataError, NonFiniteError

_HEAD = "head."


def state_of(network: nn.Module) -> dict[str, Tensor]:
    """Copies on the CPU, floating-point as fp32; tensors that share storage are written once each.

    Raises:
        NonFiniteError: A weight is NaN or infinite.
    """
    state = {}
    for name, tensor in network.state_dict().items():
        copied = tensor.detach().to("cpu", torch.float32 if tensor.is_floating_point() else tensor.dtype, copy=True)
        if not bool(torch.isfinite(copied).all()):
            raise NonFiniteError(f"weights {name}: not finite; the version is not saved, train again with a lower lr")
        state[name] = copied.contiguous()
    return state


def head_of(network: nn.Module, *, embedding_size: int) -> dict[str, Tensor] | None:
    """What `classify` reads, if that is the submodule `head` and nothing else; None where it is not.

    Tried out on a copy whose other weights are NaN.
    """
    if not isinstance(getattr(network, "head", None), nn.Module):
        return None
    tried = forget_body(copy.deepcopy(network)).to("cpu", torch.float32).eval()
    with torch.no_grad():
        logits: Tensor = tried.classify(torch.ones(1, embedding_size))  # type: ignore[operator]
    if not bool(logits.isfinite().all()):
        return None
    return {name: tensor for name, tensor in state_of(network).items() if name.startswith(_HEAD)}


def forget_body(network: nn.Module) -> nn.Module:
    """Make every floating-point tensor outside the head NaN, so that nobody takes its answers for answers."""
    for name, tensor in network.state_dict().items():
        if not name.startswith(_HEAD) and tensor.is_floating_point():
            tensor.fill_(torch.nan)
    return network


def fill(network: nn.Module, weights: bytes, *, path: Path, name: str, kind: str, head_only: bool = False) -> None:
    """Put weights into a network that has just been built.

    Args:
        network: As its task builds it.
        weights: A safetensors file, verified.
        path: Where they come from, for messages.
        name: Version, for messages.
        kind: Of its task, for messages.
        head_only: They are those of the head; the others become NaN.

    Raises:
        DataError: They do not fit.
    """
    try:
        state = parse_weights(weights)
    except (SafetensorError, ValueError) as e:
        reason = " ".join(str(e).split())
        raise DataError(f"{path}: not a safetensors file ({reason}); fetch the version again") from e
    wanted = {key: tensor for key, tensor in network.state_dict().items() if not head_only or key.startswith(_HEAD)}
    problem = _difference(wanted, state)
    if problem:
        cause = "its Python file has changed" if kind == "python" else "the network's code differs"
        raise DataError(f"{path}: {problem}; {cause}, restore what version {name} was trained with")
    network.load_state_dict(state, strict=not head_only)
    if head_only:
        forget_body(network)


def _difference(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str | None:
    """First difference between two states by name and shape."""
    for name, tensor in wanted.items():
        if name not in given:
            return f"tensor {name} is missing"
        if given[name].shape != tensor.shape:
            return f"tensor {name} must have shape {list(tensor.shape)}, got {list(given[name].shape)}"
    extra = [name for name in given if name not in wanted]
    return f"tensor {extra[0]} is not part of the network" if extra else None
