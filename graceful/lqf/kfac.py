"""Kronecker factors of the curvature, as a preconditioner. They follow from w0 and inputs alone; labels have no part.

The Hessian of the objective is J'WJ/N + penalty, the same at every delta. A linear layer's block of it is close to
A x G, A the second moment of its inputs (with a 1 for the bias), G that of J'u at its outputs for u ~ N(0, I).
Convolutions are linear layers on patches. Parameters of other layers get the diagonal.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graceful.learners.batch import Batch
from graceful.lqf.tangent import Run, differentiable, plain
from graceful.models.base import outputs_of

Reduce = Callable[[Tensor], Tensor]
"""Adds a tensor up over workers, in place, and returns it."""
LARGEST_FACTOR = 4_096
"""Rows of a factor; larger layers get the diagonal."""
INPUTS, OUTPUTS, SQUARES = "inputs ", "outputs ", "squares "
"""Prefixes of the names of parameters: second moments of a layer's inputs and of what reaches its outputs, and
squares."""


@dataclass
class _Layer:
    """A linear layer or convolution: its parameters among the flat vector, and its two factors."""

    module: nn.Module
    weight: str
    bias: str | None
    inputs: Tensor
    outputs: Tensor
    rows: int = 0


@dataclass(frozen=True, kw_only=True)
class _Block:
    """One layer in the basis of its factors."""

    weight: slice
    bias: slice | None
    shape: tuple[int, int]
    left: Tensor
    right: Tensor
    curvature: Tensor

    def to(self, dtype: torch.dtype) -> _Block:
        """Return it in another precision."""
        tensors = {name: getattr(self, name).to(dtype) for name in ("left", "right", "curvature")}
        return replace(self, **tensors)

    def write(self, result: Tensor, vector: Tensor, change: Callable[[Tensor, _Block], Tensor]) -> None:
        """Put the layer's part of a flat vector, changed in the basis of the factors, into a result."""
        matrix = vector[self.weight].reshape(self.shape)
        if self.bias is not None:
            matrix = torch.cat([matrix, vector[self.bias].unsqueeze(1)], dim=1)
        changed = self.left @ change(self.left.T @ matrix @ self.right, self) @ self.right.T
        if self.bias is not None:
            result[self.bias] = changed[:, -1]
            changed = changed[:, :-1]
        result[self.weight] = changed.reshape(-1)


@dataclass(frozen=True, kw_only=True)
class Factors:
    """Blocks of layers, and the diagonal of what is in no layer."""

    blocks: tuple[_Block, ...]
    diagonal: Tensor
    alone: Tensor = field(repr=False)

    def preconditioner(self, penalty: float, *, weight: float = 1.0) -> Callable[[Tensor], Tensor]:
        """Return `(curvature x weight + penalty)^-1` as a function of a flat gradient.

        Args:
            penalty: l of the problem.
            weight: Mean weight of the samples in the problem.
        """
        scale = 1.0 / (self.diagonal * weight + penalty)

        def apply(gradient: Tensor) -> Tensor:
            step = torch.where(self.alone, gradient * scale, gradient)
            for block in self.blocks:
                block.write(step, gradient, lambda rotated, block: rotated / (block.curvature * weight + penalty))
            return step

        return apply

    def spread(self, penalty: float, *, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
        """Return `(curvature + penalty)^-1/2` as a differentiable function of a flat vector.

        Args:
            penalty: l of the problem.
            dtype: The dtype of the vectors.
        """
        alone, scale = self.alone, ((self.diagonal + penalty) ** -0.5).to(dtype)
        blocks = [block.to(dtype) for block in self.blocks]

        def apply(vector: Tensor) -> Tensor:
            parts = torch.where(alone, vector * scale, 0.0)
            for block in blocks:
                root = (block.curvature + penalty) ** -0.5
                part = torch.zeros_like(vector)
                block.write(part, vector, lambda rotated, _, root=root: rotated * root)  # type: ignore[misc]
                parts = parts + part
            return parts

        return apply

    def times(self, vector: Tensor) -> Tensor:
        """Return the curvature times a flat vector."""
        product = vector * self.diagonal
        for block in self.blocks:
            block.write(product, vector, lambda rotated, block: rotated * block.curvature)
        return product


def factors(
    network: nn.Module,
    batches: Iterable[Batch],
    names: Sequence[str],
    *,
    samples: int,
    run: Run = outputs_of,
    reduce: Reduce | None = None,
    first: int = 0,
    stride: int = 1,
) -> Factors:
    """Return the factors of some samples; arguments as of `measured`."""
    moments = measured(network, batches, names, samples=samples, run=run, reduce=reduce, first=first, stride=stride)
    return assembled(network, names, moments)


def measured(
    network: nn.Module,
    batches: Iterable[Batch],
    names: Sequence[str],
    *,
    samples: int,
    run: Run = outputs_of,
    reduce: Reduce | None = None,
    first: int = 0,
    stride: int = 1,
) -> dict[str, Tensor]:
    """Return the moments that factors are made of, from this worker's samples; they follow from w0 and inputs alone.

    Args:
        network: At w0, in eval mode.
        batches: The batches of this worker.
        names: Parameters with a delta, in the order of the flat vector.
        samples: N over all workers.
        run: Network and batch -> outputs.
        reduce: Adds up over workers; None: there is one.
        first, stride: Number of this worker's first batch among all, and how far the next one is; cotangents follow
            from these numbers.
    """
    parameters = dict(network.named_parameters())
    layers = _layers(network, names)
    covered = {name for layer in layers for name in (layer.weight, layer.bias) if name is not None}
    rest = [name for name in names if name not in covered]
    squares = {name: torch.zeros_like(parameters[name], dtype=torch.float64) for name in rest}
    _measure(network, batches, layers, rest, squares, run=run, seeds=itertools.count(first, stride))
    reduced = reduce or (lambda tensor: tensor)
    moments = {f"{SQUARES}{name}": reduced(squares[name]) / samples for name in rest}
    for layer in layers:
        inputs, outputs = reduced(layer.inputs), reduced(layer.outputs)
        rows = reduced(torch.tensor(float(layer.rows), dtype=torch.float64, device=inputs.device))
        moments[f"{INPUTS}{layer.weight}"] = inputs / rows.clamp(min=1.0)
        moments[f"{OUTPUTS}{layer.weight}"] = outputs / samples
    return moments


def assembled(network: nn.Module, names: Sequence[str], moments: Mapping[str, Tensor]) -> Factors:
    """Return factors from what `measured` gave for the same network and parameters."""
    parameters = dict(network.named_parameters())
    spans = _spans(parameters, names)
    total = sum(parameters[name].numel() for name in names)
    device = next(iter(parameters.values())).device
    diagonal = torch.zeros(total, dtype=torch.float64, device=device)
    alone = torch.zeros(total, dtype=torch.bool, device=device)
    for key in (key for key in moments if key.startswith(SQUARES)):
        span = spans[key.removeprefix(SQUARES)]
        diagonal[span] = moments[key].to(diagonal).reshape(-1)
        alone[span] = True
    blocks = tuple(_block(layer, spans, moments) for layer in _layers(network, names))
    return Factors(blocks=blocks, diagonal=diagonal, alone=alone)


def _spans(parameters: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, slice]:
    spans, start = {}, 0
    for name in names:
        spans[name] = slice(start, start + parameters[name].numel())
        start += parameters[name].numel()
    return spans


def _layers(network: nn.Module, names: Sequence[str]) -> list[_Layer]:
    """Return the layers whose weight has a delta, is used by one module alone, and whose factors are small enough."""
    owners: dict[int, int] = {}
    for module in network.modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    chosen, layers = set(names), []
    for prefix, module in network.named_modules():
        plain_layer = isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)
        weight = f"{prefix}.weight" if prefix else "weight"
        if not plain_layer or weight not in chosen or owners[id(module.weight)] > 1:
            continue
        with_bias = module.bias is not None and weight.removesuffix("weight") + "bias" in chosen
        rows, columns = len(module.weight), module.weight[0].numel() + with_bias
        if max(rows, columns) > LARGEST_FACTOR:
            continue
        kind = {"dtype": torch.float64, "device": module.weight.device}
        bias = weight.removesuffix("weight") + "bias" if with_bias else None
        layers.append(
            _Layer(module, weight, bias, torch.zeros(columns, columns, **kind), torch.zeros(rows, rows, **kind))
        )
    return layers


def _measure(
    network: nn.Module,
    batches: Iterable[Batch],
    layers: Sequence[_Layer],
    rest: Sequence[str],
    squares: Mapping[str, Tensor],
    *,
    run: Run,
    seeds: Iterator[int],
) -> None:
    """Add up inputs of layers and what cotangents make of their outputs; the rest by gradients of whole batches."""
    parameters = dict(network.named_parameters())
    wanted = [parameters[name] for name in rest] + [parameters[layer.weight] for layer in layers]
    flags = [parameter.requires_grad for parameter in parameters.values()]
    handles = [layer.module.register_forward_hook(_hook(layer)) for layer in layers]
    try:
        network.requires_grad_(requires_grad=True)
        for batch in batches:
            with differentiable(), torch.enable_grad():
                logits = run(network, plain(batch)).logits
                generator = torch.Generator().manual_seed(next(seeds))
                noise = torch.randn(logits.shape, generator=generator, dtype=torch.float64).to(logits)
                found = torch.autograd.grad((logits * noise).sum(), wanted, allow_unused=True)
            for name, gradient in zip(rest, found, strict=False):
                if gradient is not None:
                    squares[name].add_(gradient.double().square())
    finally:
        for handle in handles:
            handle.remove()
        for parameter, flag in zip(parameters.values(), flags, strict=True):
            parameter.requires_grad_(flag)


def _hook(layer: _Layer) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    def record(module: nn.Module, inputs: tuple[Tensor, ...], outputs: Tensor) -> None:
        patches = _patches(module, inputs[0].detach())
        if layer.bias is not None:
            patches = torch.cat([patches, torch.ones_like(patches[:, :1])], dim=1)
        layer.inputs.add_((patches.T @ patches).double())
        layer.rows += len(patches)

        def add(gradient: Tensor) -> None:
            rows = gradient.movedim(1, -1) if isinstance(module, nn.Conv2d) else gradient
            rows = rows.reshape(-1, rows.shape[-1])
            layer.outputs.add_((rows.T @ rows).double())

        outputs.register_hook(add)  # type: ignore[no-untyped-call]

    return record


def _patches(module: nn.Module, inputs: Tensor) -> Tensor:
    """Return the inputs of a layer as rows, [B x positions, columns]."""
    if isinstance(module, nn.Linear):
        return inputs.reshape(-1, inputs.shape[-1])
    assert isinstance(module, nn.Conv2d)
    if isinstance(module.padding, str) or module.padding_mode != "zeros":
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        inputs = F.pad(inputs, module._reversed_padding_repeated_twice, mode=mode)
        unfolded = F.unfold(inputs, module.kernel_size, module.dilation, 0, module.stride)
    else:
        unfolded = F.unfold(inputs, module.kernel_size, module.dilation, module.padding, module.stride)
    return unfolded.movedim(1, -1).reshape(-1, unfolded.shape[1])


def _block(layer: _Layer, spans: Mapping[str, slice], moments: Mapping[str, Tensor]) -> _Block:
    """Turn two factors into their eigenbases; the inputs' one is a mean over rows, the outputs' one over samples."""
    right_values, right = torch.linalg.eigh(moments[f"{INPUTS}{layer.weight}"].to(layer.inputs))
    left_values, left = torch.linalg.eigh(moments[f"{OUTPUTS}{layer.weight}"].to(layer.outputs))
    weight = layer.module.weight
    assert isinstance(weight, Tensor)
    return _Block(
        weight=spans[layer.weight],
        bias=None if layer.bias is None else spans[layer.bias],
        shape=(len(weight), weight[0].numel()),
        left=left,
        right=right,
        curvature=left_values.clamp(min=0.0)[:, None] * right_values.clamp(min=0.0)[None, :],
    )
