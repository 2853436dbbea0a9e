"""What is measured of a linearised version in the making: on held-out samples, and how far its delta goes. Workers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, distributed
from torch.func import functional_call

from graceful import learners
from graceful.learners import Batch
from graceful.lqf.network import Linearised
from graceful.lqf.operators import Batched
from graceful.lqf.tangent import Run, Tangent
from graceful.models.base import Forward
from graceful.tasks.base import Samples
from graceful.training import batches
from graceful.training.batches import Materials
from graceful.training.fixed_batches import FixedBatches, fixed_batches
from graceful.training.linear_start import LinearStart
from graceful.training.rank_context import RankContext

MOST = 1_024
"""Validation samples that penalty and temperature are chosen on."""
FAR = 0.5
"""Share of what delta changes by which the network at w0 + delta may differ from its linearisation without a note."""


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Some validation samples, the same on every rank.

    Attributes:
        part: The samples; None: the split is empty.
        labels: [N].
        classes: C.
        run: Network and batch -> outputs.
    """

    part: FixedBatches | None
    labels: Tensor
    classes: int
    run: Run

    @classmethod
    def of(cls, materials: Materials, run: Run, *, size: int) -> HeldOut:
        """Choose them by the digests of their ids."""
        samples, classes = materials.validation, len(materials.task.classes)
        if not len(samples):
            return cls(part=None, labels=torch.zeros(0, dtype=torch.int64), classes=classes, run=run)
        whole = fixed_batches(samples, materials.learner, size=size, device=materials.device)
        part = whole.some(MOST)
        labels = torch.from_numpy(samples.labels[part.rows]).to(materials.device)
        return cls(part=part, labels=labels, classes=classes, run=run)

    def error_of(self, start: LinearStart, amplitude: float) -> Callable[[Tensor], float] | None:
        """Return what tells the mean squared error of a delta [P] against the labels; None without samples."""
        if self.part is None:
            return None
        tangent = Tangent(start.network, self.run, start.names)
        derivative = Batched(tangent, self.part, sizes=self.part.sizes, classes=self.classes)
        at_start = torch.cat([tangent.outputs(batch).logits.reshape(-1) for batch in self.part]).double()
        truth = amplitude * torch.nn.functional.one_hot(self.labels, self.classes).double().reshape(-1)
        return lambda delta: float((at_start + derivative.push(delta) - truth).square().mean())

    def temperature(self, network: Linearised, amplitude: float) -> float:
        """Return the temperature of the smallest cross-entropy; without samples a fifth of the amplitude."""
        if self.part is None:
            return amplitude / 5.0
        logits = torch.cat([network.outputs_by(self.run, batch).logits for batch in self.part]).double()
        return temperature_of(logits, self.labels, amplitude)


def temperature_of(logits: Tensor, labels: Tensor, amplitude: float) -> float:
    """Return the temperature with the smallest cross-entropy; without samples a fifth of the amplitude."""
    if not len(labels):
        return amplitude / 5.0
    grid = (amplitude * torch.logspace(-2.5, 1.0, 71, dtype=torch.float64)).tolist()
    losses = [torch.nn.functional.cross_entropy(logits / temperature, labels) for temperature in grid]
    return float(grid[int(torch.stack(losses).nan_to_num(torch.inf).argmin())])


def error_of(network: Linearised, materials: Materials, samples: Samples, *, size: int, context: RankContext) -> float:
    """Return the error on a split, over all ranks; every rank must ask. 0 for an empty one."""
    whole = fixed_batches(samples, materials.learner, size=size, device=context.device)
    own = whole.positions[context.rank :: context.world_size]
    forward = partial(learners.run, materials.learner, network)
    right, total = batches.evaluate(materials.task, samples, own, forward=forward, device=context.device)
    counts = torch.tensor([right, total], dtype=torch.float64, device=context.device)
    if context.world_size > 1:
        distributed.all_reduce(counts)
    right, total = counts.tolist()
    return 1.0 - right / total if total else 0.0


def locality(tangent: Tangent, network: Linearised, batch: Batch) -> tuple[str, ...]:
    """Return a sentence where the network at w0 + delta is far from its linearisation; nothing where it is near."""
    deltas = network.deltas()
    at, along = tangent.push(batch, deltas)
    moved = {f"network.{name}": start + deltas[name] for name, start in tangent.start.items()}
    with torch.no_grad():
        other = functional_call(Forward(network.network, tangent.run), moved, (batch,)).logits
    length = float(along.logits.norm())
    distance = float((other - at.logits - along.logits).norm()) / length if length > 0.0 else 0.0
    if distance <= FAR:
        return ()
    return (
        "LQF: starting weights plus delta, used as ordinary weights, are another model: its outputs differ by"
        f" {distance:.2g} of what delta changes",
    )
