"""A linearised network as a module: starting weights, delta, and outputs that are affine in delta. All processes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from graceful.errors import SpecError
from graceful.learners.batch import Batch
from graceful.lqf.activations import make_leaky
from graceful.lqf.tangent import Run, Tangent
from graceful.models.base import Outputs, outputs_of
from graceful.models.weights import base_names


class Linearised(nn.Module):
    """`f(x; w0) + J(x) delta` in place of a network; its embedding is linearised likewise.

    Args:
        network: With the weights w0; it is put into eval mode, made leaky and frozen, and stays in this module.
        names: Parameters that have a delta.
        slope: Of leaky activations; 0: they stay as they are.
        temperature: Logits are divided by it, so that their softmax is a probability; it changes no answer.

    Attributes:
        network: The network at w0.
        delta: One tensor for each of the names.
        base_names: Tensors that the version only names, see `models.weights`.
    """

    def __init__(
        self, network: nn.Module, names: Sequence[str], *, slope: float = 0.0, temperature: float = 1.0
    ) -> None:
        super().__init__()
        make_leaky(network, slope)
        self.network = network.eval().requires_grad_(requires_grad=False)
        self.slope, self.temperature, self.names = slope, temperature, tuple(names)
        self.base_names = frozenset(f"network.{name}" for name in base_names(network))
        parameters = dict(network.named_parameters())
        self.delta = _Tree()
        for name in self.names:
            self.delta.put(name, torch.zeros_like(parameters[name]))
        size = getattr(network, "embedding_size", None)
        if isinstance(size, int):
            self.embedding_size = size

    def train(self, mode: bool = True) -> Linearised:
        """Stay in eval mode: statistics of normalisation belong to w0."""
        return super().train(mode=False)

    def outputs_by(self, run: Run, batch: Batch) -> Outputs:
        """Return the outputs of a batch.

        Args:
            run: How the network at w0 makes outputs of it.
            batch: What `run` takes.
        """
        moved = Tangent(self.network, run, self.names).moved(batch, self.deltas())
        return moved._replace(logits=moved.logits / self.temperature)

    def embed(self, x: Any) -> Tensor:
        """Return the embeddings [B, d] of a batch."""
        return self.outputs_by(outputs_of, x).embedding

    def classify(self, embedding: Tensor) -> Tensor:
        """Return the logits [B, C] of embeddings [B, d] by the head with its delta.

        Logits of a batch differ from these by the product of both deltas, which a linearised network leaves out.
        """
        deltas = self.deltas()
        moved = {name: p + deltas.get(name, 0.0) for name, p in self.network.named_parameters()}
        run = partial(torch.func.functional_call, _Classify(self.network))
        logits: Tensor = run({f"network.{name}": tensor for name, tensor in moved.items()}, (embedding,))
        return logits / self.temperature

    def deltas(self) -> dict[str, Tensor]:
        """Return delta by the names of the parameters."""
        return {name: self.delta.get(name) for name in self.names}

    def put(self, deltas: Mapping[str, Tensor]) -> None:
        """Replace delta, in place."""
        with torch.no_grad():
            for name in self.names:
                self.delta.get(name).copy_(deltas[name])


class _Classify(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, embedding: Tensor) -> Tensor:
        logits: Tensor = self.network.classify(embedding)  # type: ignore[operator]
        return logits


class _Tree(nn.Module):
    """Tensors under dotted names, so that the state has `delta.<name of the parameter>`."""

    def put(self, name: str, tensor: Tensor) -> None:
        first, _, rest = name.partition(".")
        if not rest:
            self.register_parameter(first, nn.Parameter(tensor, requires_grad=False))
            return
        if first not in self._modules:
            self.add_module(first, _Tree())
        child = self._modules[first]
        assert isinstance(child, _Tree)
        child.put(rest, tensor)

    def get(self, name: str) -> Tensor:
        tensor: Tensor = self.get_parameter(name)
        return tensor


def names_of(network: nn.Module, patterns: Sequence[str]) -> tuple[str, ...]:
    """Return the parameters that patterns choose, in the network's order; all trained ones where there is no pattern.

    Args:
        network: The network.
        patterns: Shell patterns of names, such as `body.encoder.layer.5.*`, or of modules, such as `head`.

    Raises:
        SpecError: A pattern that chooses nothing, or nothing is trained.
    """
    trained = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    for pattern in patterns:
        if not any(_chosen(name, pattern) for name in trained):
            parts = ", ".join(dict.fromkeys(".".join(name.split(".")[:2]) for name in trained))
            raise SpecError(
                f"train.method.scope: {pattern} is the name of no trained parameter or module; the network has"
                f" {parts[:200]}"
            )
    names = tuple(name for name in trained if not patterns or any(_chosen(name, pattern) for pattern in patterns))
    if not names:
        raise SpecError("train.method: the network has no trained parameter, so nothing can be linearised")
    return names


def _chosen(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


def start_digest(network: nn.Module, *, slope: float) -> str:
    """Return the SHA-256 of w0: all tensors of a network and the slope of its activations.

    Deltas of two versions may be added only where it is the same.
    """
    total = hashlib.sha256(f"slope {slope!r}".encode())
    for name, tensor in sorted(network.state_dict().items()):
        value = tensor.detach().cpu().contiguous()
        total.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        total.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
