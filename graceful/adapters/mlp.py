"""A residual network: Procrustes and a small correction, trained on pairs of vectors. torch, on the CPU."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from graceful.adapters.closed_form import procrustes
from graceful.adapters.maps import Map, rounded, unit
from graceful.errors import DataError

TEMPERATURE = 0.05
"""Temperature of the contrast between the right target and those of the other samples of a batch."""
PATIENCE = 5
"""Epochs without a better validation loss after which training ends."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a residual network is trained.

    Attributes:
        hidden: Width of its layer.
        learning_rate: Of Adam with decoupled weight decay; it falls to 0 along a cosine.
        weight_decay: As a share of the learning rate.
        batch_size: Pairs in a step; each is contrasted with the others in it.
        epochs: At most.
        seed: The seed of its first weights and the order of pairs.
    """

    hidden: int = 512
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    batch_size: int = 256
    epochs: int = 40
    seed: int = 0


def residual_mlp(
    source: NDArray[np.floating[Any]],
    target: NDArray[np.floating[Any]],
    *,
    validation: tuple[NDArray[np.floating[Any]], NDArray[np.floating[Any]]],
    recipe: Recipe | None = None,
    base: Map | None = None,
) -> Map:
    """Return a map that begins as an affine one and is trained to find each sample's own vector in the other space.

    The loss is the cross-entropy of cosine / 0.05 over the targets of the batch, and the squared distance to the right
    one. The weights with the lowest validation loss are kept, those before the first step among them.

    Args:
        source: [N, a]
        target: [N, b]
        validation: Pairs of other samples.
        recipe: How; None: the defaults.
        base: Where it begins, with one matrix; None: Procrustes of the pairs.

    Raises:
        DataError: No pairs, or sets of different length.
    """
    recipe, base = recipe or Recipe(), base or procrustes(source, target)
    if not len(validation[0]):
        raise DataError("adapter: a residual network needs validation pairs, of other ids than those it is trained on")
    x, y, x_held, y_held = (torch.from_numpy(unit(part).astype(np.float32)) for part in (source, target, *validation))
    generator = torch.Generator().manual_seed(recipe.seed)
    parameters = _first(base, recipe.hidden, generator)
    optimizer = torch.optim.AdamW(parameters.values(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    steps_per_epoch = max(1, len(x) // recipe.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.epochs * steps_per_epoch)
    best, kept, since = _held_out(parameters, x_held, y_held, recipe.batch_size), _copies(parameters), 0
    for _ in range(recipe.epochs):
        for rows in torch.randperm(len(x), generator=generator).tensor_split(steps_per_epoch):
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(_loss(parameters, x[rows], y[rows]))
            optimizer.step()
            schedule.step()
        loss = _held_out(parameters, x_held, y_held, recipe.batch_size)
        since += 1
        if loss < best:
            best, kept, since = loss, _copies(parameters), 0
        if since >= PATIENCE:
            break
    return rounded("mlp", **{name: value.numpy() for name, value in kept.items()})


def _first(base: Map, hidden: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Return the parameters of a network that says what `base` says."""
    weight, bias = torch.from_numpy(base.arrays["weight"]), torch.from_numpy(base.arrays["bias"])
    parameters = {
        "weight": weight.clone(),
        "bias": bias.clone(),
        "hidden": torch.randn(len(weight), hidden, generator=generator) / math.sqrt(len(weight)) * 4.0,
        "hidden_bias": torch.zeros(hidden),
        "output": torch.zeros(hidden, len(bias)),
    }
    return {name: value.requires_grad_() for name, value in parameters.items()}


def forward(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
    """Return what a map of these parameters does of unit vectors, [N, a] -> [N, b] of length 1."""
    hidden = F.gelu(x @ parameters["hidden"] + parameters["hidden_bias"], approximate="tanh")
    return F.normalize(x @ parameters["weight"] + parameters["bias"] + hidden @ parameters["output"], dim=1)


def _loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    mapped = forward(parameters, x)
    contrast = F.cross_entropy(mapped @ y.T / TEMPERATURE, torch.arange(len(x)))
    return contrast + (mapped - y).square().sum(1).mean()


@torch.no_grad()
def _held_out(parameters: dict[str, Tensor], x: Tensor, y: Tensor, batch_size: int) -> float:
    parts = [slice(start, start + batch_size) for start in range(0, len(x), batch_size)]
    return math.fsum(float(_loss(parameters, x[part], y[part])) * len(x[part]) for part in parts) / len(x)


def _copies(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in parameters.items()}
