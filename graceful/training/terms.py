"""One loss against one predecessor on one batch: what the objective adds up. Runs in workers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from graceful.errors import SpecError
from graceful.losses import registry
from graceful.losses.base import Loss
from graceful.losses.ops import focus
from graceful.losses.ops.pair import Pair
from graceful.losses.ops.reduction import weighted_mean
from graceful.models.base import CODE_FAULTS


@dataclass(frozen=True, kw_only=True)
class Term:
    """One loss bound to one predecessor.

    Attributes:
        key: `<kind>/<version>`, the name of its value in logs.
        loss: Its section of the spec.
        index: Position of the predecessor.
        constants: What `Loss.constants` returned, on the device of the objective.
    """

    key: str
    loss: Loss
    index: int
    constants: tuple[Tensor, ...]


@contextmanager
def blamed(loss: Loss, version: str) -> Iterator[None]:
    """Name the loss, its package and the predecessor in what the code of another package raises.

    Raises:
        SpecError: In place of the exception, for losses that are not graceful's own.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except CODE_FAULTS as e:
        if registry.is_own(type(loss)):
            raise
        reason = f"{type(e).__name__}: {' '.join(str(e).split())}"
        raise SpecError(
            f"compatibility.losses: {loss.kind} of {type(loss).__module__} fails against {version} ({reason});"
            " correct that package, or leave the loss out"
        ) from e


def value(term: Term, pair: Pair, *, mean: Tensor | None) -> Tensor:
    """Return `mean_i(F_i D_i)` of one term, before its weight.

    Args:
        term: The loss.
        pair: The batch beside the term's predecessor.
        mean: Running mean of the sample weights; None where their mean is known before training.
    """
    with blamed(term.loss, pair.version.name):
        values, participates = term.loss.compare(pair, term.constants)
        weights = term.loss.sample_weights(pair)
        if values.shape != pair.labels.shape or participates.shape != pair.labels.shape:
            shapes = f"{list(values.shape)} and {list(participates.shape)}"
            raise ValueError(f"values and participates are {shapes}, must be one number for each sample")
    if pair.outputs.mask is not None:
        participates = participates & pair.outputs.mask
    if weights is not None:
        version = pair.version
        divisor: float | Tensor | None = mean
        if divisor is None:
            share = version.correct_share or 0.0
            divisor = term.loss.mean_weight(correct_share=share, near_chance=version.near_chance)
        weights = focus.normalise(weights, mean=divisor)
    return weighted_mean(values, weights=weights, participates=participates)
