"""What graceful asks of a network: an embedding and a classifier on top of it. Any nn.Module can provide them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from graceful.errors import SpecError

CODE_FAULTS = (
    RuntimeError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    NameError,
    ImportError,
)
"""What the code of a network raises where it does not fit; not what machines raise (OSError, MemoryError)."""


@runtime_checkable
class Network(Protocol):
    """An nn.Module with these two methods. The size of its embedding is read off what `embed` returns."""

    def embed(self, x: Any) -> Tensor:
        """Return the embeddings [B, d] of a batch as the learner's `collate` makes it, not normalised."""
        ...

    def classify(self, embedding: Tensor) -> Tensor:
        """Return the logits [B, C] of embeddings [B, d]. This is the head that influence losses freeze."""
        ...


class Outputs(NamedTuple):
    """What one forward pass yields."""

    embedding: Tensor
    """[B, d]"""
    logits: Tensor
    """[B, C]"""
    mask: Tensor | None = None
    """[B] bool; None: True for all. False: the network has no answer for this sample, e.g. an empty text. In training
    the sample has weight 0 in the task's loss and in every other one, while means still divide by B. A version that is
    finished answers it with NaN: caches mark it as absent, and where versions are measured it counts as wrong and is
    never found. Its embedding and logits are not read, but must be finite in training, since zero times NaN is NaN."""


def filled(outputs: Outputs, value: float) -> Outputs:
    """Return outputs whose rows without an answer hold a value; the same outputs where there is no mask."""
    if outputs.mask is None:
        return outputs
    rows = outputs.mask.unsqueeze(1)
    embedding, logits = (torch.where(rows, tensor, value) for tensor in (outputs.embedding, outputs.logits))
    return Outputs(embedding, logits, outputs.mask)


def answers(outputs: Outputs) -> Outputs:
    """Return outputs as a finished version gives them: fp32, NaN where it has no answer, no mask."""
    exact = Outputs(outputs.embedding.float(), outputs.logits.float(), outputs.mask)
    return filled(exact, torch.nan)._replace(mask=None)


class Forward(nn.Module):
    """Gives a network a single `forward`, which is what engines (DDP, DeepSpeed) wrap.

    Args:
        network: The network.
        run: Network and batch -> outputs: a learner's `forward`.
    """

    def __init__(self, network: nn.Module, run: Callable[[nn.Module, Any], Outputs] | None = None) -> None:
        super().__init__()
        self.network = network
        self._run = run or outputs_of

    def forward(self, batch: Any) -> Outputs:
        """Return the outputs of the network for a batch."""
        return self._run(self.network, batch)


def outputs_of(network: nn.Module, x: Any) -> Outputs:
    """Return the outputs of a network with `embed` and `classify` for a batch.

    Args:
        network: With `embed` and `classify`.
        x: The batch, as `embed` takes it.

    Raises:
        SpecError: One of the two returned something else than a tensor.
    """
    embedding = network.embed(x)  # type: ignore[operator]
    _require_tensor(embedding, network, "embed", "[B, d]")
    logits = network.classify(embedding)  # type: ignore[operator]
    _require_tensor(logits, network, "classify", "[B, classes]")
    return Outputs(embedding, logits)


def _require_tensor(value: object, network: nn.Module, method: str, shape: str) -> None:
    if isinstance(value, Tensor):
        return
    part = getattr(network, {"embed": "body", "classify": "head"}[method], None)
    where = f"{type(network).__name__}.{method}()"
    if isinstance(network, Headed):
        where += f", which is {type(part).__name__}.forward(),"
    raise SpecError(f"task: {where} returned {_type_text(value)}; must return one tensor {shape}, correct network()")


def _type_text(value: object) -> str:
    """Say what a value is, with what it holds where it is a container."""
    kind = type(value).__name__
    if isinstance(value, dict):
        return f"a {kind} with the keys {', '.join(map(repr, list(value)[:4]))}"
    if isinstance(value, tuple | list):
        return f"a {kind} of {', '.join(type(item).__name__ for item in value[:4])}"
    return f"a {kind}"


class Headed(nn.Module):
    """A Network from two modules: a body that embeds and a head that classifies."""

    def __init__(self, body: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.head = head

    def embed(self, x: Tensor) -> Tensor:
        """Return the embeddings [B, d] of an input [B, ...]."""
        return cast(Tensor, self.body(x))

    def classify(self, embedding: Tensor) -> Tensor:
        """Return the logits [B, C] of embeddings [B, d]."""
        return cast(Tensor, self.head(embedding))
