"""Weights of a network as bytes and back: all of them, or the head alone. Drivers and workers; nothing here is code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_weights
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from graceful.errors import DataError, NonFiniteError, SpecError
from graceful.models.base import CODE_FAULTS

_HEAD = "head."


def base_names(network: nn.Module) -> frozenset[str]:
    """Return which tensors of a network's state are those of a checkpoint that the version only names."""
    names: frozenset[str] = getattr(network, "base_names", frozenset())
    return names


def own_state(network: nn.Module) -> dict[str, Tensor]:
    """Return what a version keeps of a network's state: all of it but what `base_names` says."""
    elsewhere = base_names(network)
    return {name: tensor for name, tensor in network.state_dict().items() if name not in elsewhere}


def load_own(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put into a network what `own_state` returned of one of the same shape."""
    network.load_state_dict(state, strict=not base_names(network))


def state_of(network: nn.Module) -> dict[str, Tensor]:
    """Return copies on the CPU, floating-point as fp32; tensors that share storage are written once each, and those of
    a checkpoint that the version only names are left out.

    Raises:
        NonFiniteError: A weight is NaN or infinite. A buffer may hold infinities, as masks do, but no NaN.
        SpecError: The state holds something that a file of tensors cannot hold.
    """
    state, buffers = {}, {name for name, _ in network.named_buffers(remove_duplicate=False)}
    for name, tensor in portable(own_state(network)).items():
        bad = tensor.isnan() if name in buffers else ~tensor.isfinite()
        if bool(bad.any()):
            raise NonFiniteError(f"weights {name}: not finite; the version is not saved, train again with a lower lr")
        state[name] = tensor
    return state


def portable(state: Mapping[str, object]) -> dict[str, Tensor]:
    """Return copies on the CPU, floating-point as fp32, each with storage of its own.

    Raises:
        SpecError: Something in the state is not a dense tensor, or of a type that safetensors files do not have.
    """
    tensors = {}
    for name, value in state.items():
        if not isinstance(value, Tensor) or is_lazy(value):
            kind = "a tensor without a shape yet" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise _cannot_be_saved(name, kind, "keep it as a buffer, or build it again in network()")
        if value.layout is not torch.strided or value.is_quantized or value.is_complex():
            kind = str(value.layout if value.layout is not torch.strided else value.dtype).removeprefix("torch.")
            raise _cannot_be_saved(name, f"a tensor of type {kind}", "keep a dense, real one")
        dtype = torch.float32 if value.is_floating_point() else value.dtype
        tensors[name] = value.detach().to("cpu", dtype, copy=True).contiguous()
    return tensors


def _cannot_be_saved(name: str, kind: str, remedy: str) -> SpecError:
    return SpecError(f"task: {name} in the state of the network is {kind}, which no version can hold; {remedy}")


def head_of(network: nn.Module, *, embedding_size: int) -> dict[str, Tensor] | None:
    """Return the weights that `classify` reads if they are those of the submodule `head` alone, else None.

    Tried out with NaN in place of the other weights, which are put back. Not on a copy: networks with hooks, locks or
    the weight normalisation of old cannot be copied.
    """
    head = getattr(network, "head", None)
    if not isinstance(head, nn.Module):
        return None
    first = next(head.parameters(), None)
    device, dtype = (torch.device("cpu"), torch.float32) if first is None else (first.device, first.dtype)
    before, training = {name: tensor.clone() for name, tensor in network.state_dict().items()}, network.training
    try:
        with torch.no_grad():
            ones = torch.ones(1, embedding_size, device=device, dtype=dtype)
            logits: Tensor = erase_body(network).eval().classify(ones)  # type: ignore[operator]
    except CODE_FAULTS:  # it does not classify the embedding, so the head alone is of no use
        return None
    finally:
        network.load_state_dict(before)
        network.train(training)
    if not bool(logits.isfinite().all()):
        return None
    return {name: tensor for name, tensor in state_of(network).items() if name.startswith(_HEAD)}


def erase_body(network: nn.Module) -> nn.Module:
    """Make every floating-point tensor outside the head NaN, so that outputs which depend on it are NaN too."""
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
        kind: The kind of its task, for messages.
        head_only: They are those of the head; the others become NaN.

    Raises:
        DataError: They do not fit.
    """
    try:
        state = parse_weights(weights)
    except (SafetensorError, ValueError) as e:
        reason = " ".join(str(e).split())
        raise DataError(f"{path}: not a safetensors file ({reason}); fetch the version again") from e
    wanted = {key: tensor for key, tensor in own_state(network).items() if not head_only or key.startswith(_HEAD)}
    problem = difference(wanted, state)
    if problem:
        cause = "its Python file has changed" if kind == "python" else "the network's code differs"
        raise DataError(f"{path}: {problem}; {cause}, restore what version {name} was trained with")
    network.load_state_dict(state, strict=not head_only and not base_names(network))
    if head_only:
        erase_body(network)


def difference(expected: Mapping[str, Tensor], actual: Mapping[str, Tensor]) -> str | None:
    """Return the first difference between two states by name and shape, as a phrase; None where there is none."""
    for name, tensor in expected.items():
        if name not in actual:
            return f"tensor {name} is missing"
        if actual[name].shape != tensor.shape:
            return f"tensor {name} must have shape {list(tensor.shape)}, got {list(actual[name].shape)}"
    extra = [name for name in actual if name not in expected]
    return f"tensor {extra[0]} is not part of the network" if extra else None
