"""A network and its derivative in the direction of some parameters, at fixed weights. Driver, workers, serving.

Forward-mode products come from `torch.func.jvp`; where an operation has none, from two reverse-mode passes. Both need
the mathematics of attention instead of its fused kernels, which have no forward mode.
"""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, jvp, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from graceful.errors import SpecError, one_line
from graceful.learners.batch import Batch, apply, size, take
from graceful.models.base import CODE_FAULTS, Forward, Outputs

Run = Callable[[nn.Module, Any], Outputs]
"""Network and batch -> outputs: a learner's `forward` with its encoder."""
Tensors = Mapping[str, Tensor]
AT_ONCE = 8
"""Samples whose rows of J are made at once: each has the activations of a forward pass for every class."""
_LOCK = threading.RLock()
"""functional_call exchanges the parameters of a module while it runs, so one thread at a time may be inside."""


class Piece(NamedTuple):
    """A part of one parameter, flattened."""

    name: str
    start: int
    stop: int


class Tangent:
    """Outputs of a network at fixed weights, and products with their derivative J by some of its parameters.

    Args:
        network: In eval mode; its parameters are the weights w0 and stay as they are.
        run: Network and batch -> outputs.
        names: Parameters that the derivative is taken by, as `named_parameters` names them.

    Attributes:
        run: As given.
        start: Parameters at w0, by name.
    """

    def __init__(self, network: nn.Module, run: Run, names: Sequence[str]) -> None:
        self.run = run
        self._module = Forward(network, run)
        parameters = dict(network.named_parameters())
        self.start: dict[str, Tensor] = {name: parameters[name].detach() for name in names}
        self._forward_mode = True
        self._at_once = AT_ONCE

    def outputs(self, batch: Batch) -> Outputs:
        """Return the outputs at w0."""
        with differentiable(), torch.no_grad():
            result: Outputs = self._module(plain(batch))
        return result

    def moved(self, batch: Batch, delta: Tensors) -> Outputs:
        """Return outputs at w0 plus their derivative in the direction `delta`: what the linearised network gives."""
        at, along = self.push(batch, delta)
        return Outputs(at.embedding + along.embedding, at.logits + along.logits, at.mask)

    def push(self, batch: Batch, delta: Tensors) -> tuple[Outputs, Outputs]:
        """Return outputs at w0, and J delta for the embedding [B, d] and the logits [B, C]."""
        direction = {name: delta[name] for name in self.start}
        with differentiable(), torch.no_grad():
            function, masks = self._function(plain(batch))
            if self._forward_mode:
                try:
                    values, tangents = jvp(function, (self.start,), (direction,))[:2]
                    return _outputs(values, masks), _outputs(tangents)
                except (NotImplementedError, RuntimeError) as e:
                    if "forward AD" not in str(e) and "jvp" not in str(e):
                        raise
                    self._forward_mode = False
            return self._push_by_reverse(function, masks, direction)

    def _push_by_reverse(
        self, function: Callable[[Tensors], tuple[Tensor, Tensor]], masks: list[Tensor | None], direction: Tensors
    ) -> tuple[Outputs, Outputs]:
        """Return J v as the derivative of the linear map u -> J'u, by two reverse passes."""
        values, pull = vjp(function, self.start)[:2]
        zeros = tuple(torch.zeros_like(value) for value in values)
        pull_again = vjp(lambda cotangents: pull(cotangents)[0], zeros)[1]
        (tangents,) = pull_again(dict(direction))
        return _outputs(values, masks), _outputs(tangents)

    def pull(self, batch: Batch, cotangent: Tensor) -> dict[str, Tensor]:
        """Return J'u, added up over the samples of a batch, for a cotangent u [B, C] of the logits."""
        with differentiable(), torch.no_grad():
            function = self._function(plain(batch))[0]
            pull = vjp(lambda parameters: function(parameters)[1], self.start)[1]
            (gradients,) = pull(cotangent)
        result: dict[str, Tensor] = gradients
        return result

    def rows(self, batch: Batch, pieces: Sequence[Piece]) -> Tensor:
        """Return rows of J, [B, C, P], with respect to some pieces of the parameters, joined in order.

        Several samples at once where the network's code allows it (`vmap`), else one after the other.
        """
        batch = plain(batch)
        with differentiable(), torch.no_grad():
            chosen = tuple(self.start[piece.name].reshape(-1)[piece.start : piece.stop] for piece in pieces)

            def alone(values: tuple[Tensor, ...], sample: Batch) -> Tensor:
                return self._alone(self._with(pieces, values), sample)

            try:
                rows = vmap(jacrev(alone), in_dims=(None, 0), chunk_size=self._at_once)(chosen, batch)
            except CODE_FAULTS:
                each = [jacrev(alone)(chosen, take(batch, index)) for index in range(size(batch))]
                rows = tuple(torch.stack(parts) for parts in zip(*each, strict=True))
        return torch.cat(tuple(rows), dim=2)

    def _with(self, pieces: Sequence[Piece], values: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return the parameters with some pieces replaced."""
        parameters = dict(self.start)
        for piece, value in zip(pieces, values, strict=True):
            whole = self.start[piece.name]
            parts = (parameters[piece.name].reshape(-1)[: piece.start], value, whole.reshape(-1)[piece.stop :])
            parameters[piece.name] = torch.cat(parts).reshape(whole.shape)
        return parameters

    def _alone(self, parameters: Tensors, sample: Batch) -> Tensor:
        """Return the logits [C] of one sample, which comes without the axis of samples."""
        function, _ = self._function(apply(sample, lambda tensor: tensor.unsqueeze(0)))
        return function(parameters)[1][0]

    def _function(self, batch: Batch) -> tuple[Callable[[Tensors], tuple[Tensor, Tensor]], list[Tensor | None]]:
        masks: list[Tensor | None] = []

        def function(parameters: Tensors) -> tuple[Tensor, Tensor]:
            named = {f"network.{name}": tensor for name, tensor in parameters.items()}
            outputs: Outputs = functional_call(self._module, named, (batch,))
            masks.append(outputs.mask)
            return outputs.embedding, outputs.logits

        return function, masks


def require_derivative(tangent: Tangent, batch: Batch, *, seed: int = 0) -> None:
    """Refuse a network that has no derivative by its parameters, or says a wrong one.

    The derivative along a random direction is compared with a difference of outputs: where they point elsewhere, the
    code replaces its derivative by another function's (straight-through) or cuts it off (integers, `detach`).

    Args:
        tangent: The network.
        batch: A few samples.
        seed: The seed of the direction.

    Raises:
        SpecError: One line with the reason.
    """
    generator = torch.Generator().manual_seed(seed)
    direction = {}
    for name, tensor in tangent.start.items():
        noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor)
        scale = tensor.norm() / noise.norm().clamp(min=1e-12)
        direction[name] = noise * torch.where(scale > 0.0, scale, 0.1)
    try:
        _, along = tangent.push(batch, direction)
    except CODE_FAULTS as e:
        raise SpecError(
            f"train.method: the network cannot be differentiated for lqf ({one_line(e)[:160]}); use operations that"
            " have second derivatives, or leave train.method out"
        ) from e
    predicted = along.logits.double()
    if not bool(predicted.isfinite().all()):
        raise SpecError(
            "train.method: the derivative of the network is not finite; start from other weights, or leave train.method"
            " out"
        )
    step = 1e-3
    shifted = [_shifted(tangent, batch, direction, sign * step) for sign in (1.0, -1.0)]
    measured = (shifted[0] - shifted[1]).double() / (2.0 * step)
    gap, length = float((measured - predicted).norm()), float(measured.norm())
    if float(predicted.norm()) == 0.0 or gap > 0.5 * max(length, float(predicted.norm())):
        raise SpecError(
            f"train.method: the derivative of the network is not that of its outputs (they change by {length:.3g} along"
            f" a random direction, the derivative says {float(predicted.norm()):.3g}); lqf needs a network without"
            " straight-through or integer operations, leave train.method out"
        )


def _shifted(tangent: Tangent, batch: Batch, direction: Tensors, step: float) -> Tensor:
    with differentiable(), torch.no_grad():
        function, _ = tangent._function(plain(batch))
        return function({name: start + step * direction[name] for name, start in tangent.start.items()})[1]


def _outputs(tensors: tuple[Tensor, Tensor], masks: Sequence[Tensor | None] = (None,)) -> Outputs:
    return Outputs(tensors[0], tensors[1], masks[0])


def plain(batch: Batch) -> Batch:
    """Return a batch without tensors of inference mode, which no derivative passes."""
    return apply(batch, lambda tensor: tensor.clone() if tensor.is_inference() else tensor)


@functools.cache
def _load_forward_mode() -> None:
    """Make torch load what its forward mode needs, without its warning about its own use of torch.jit."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        jvp(torch.sin, (torch.zeros(1),), (torch.zeros(1),))


@contextmanager
def differentiable() -> Iterator[None]:
    """Let attention and transformer layers compute by operations that have forward and second derivatives."""
    with _LOCK, torch.inference_mode(mode=False), sdpa_kernel(SDPBackend.MATH):
        _load_forward_mode()
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(value=False)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(value=fast)
