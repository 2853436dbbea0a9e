"""The numbers of steps: summed over ranks beside the backward pass, left on the device, and read some steps at a time.

Runs in workers. On the CPU they are read in every step, since nothing is gained by waiting.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed

from graceful.training.objective import ObjectiveValue


@dataclass(frozen=True, kw_only=True)
class StepReading:
    """What is known of one step.

    Attributes:
        step: From 0.
        epoch: From 0.
        rate: Learning rate.
        positions: The positions of this rank's samples, a slice each.
        slices: Means over ranks, a mapping for each slice: `total`, each part of the loss, and `correct`.
        norm: The norm of the gradient; None: not known.
    """

    step: int
    epoch: int
    rate: float
    positions: Sequence[NDArray[np.int64]]
    slices: Sequence[Mapping[str, float]]
    norm: float | None

    @property
    def finite_norm(self) -> float | None:
        """Return the norm as JSON can hold it; with fp16, steps whose norm is not finite are left out and no error."""
        return self.norm if self.norm is None or math.isfinite(self.norm) else None

    @property
    def means(self) -> dict[str, float]:
        """Return the means over ranks and slices."""
        sums: dict[str, float] = {}
        for means in self.slices:
            for name, number in means.items():
                sums[name] = sums.get(name, 0.0) + number / len(self.slices)
        return sums


PREEMPTED = "preempted"
"""Above 0: a rank has heard that a machine is about to be taken away."""


class Numbers:
    """The losses of one step, of all its slices.

    Args:
        world_size: Ranks.
        preempted: Announcements that a machine is taken away; None: there are none.
    """

    def __init__(self, world_size: int, *, preempted: bool | None = None) -> None:
        self._world_size, self._preempted = world_size, preempted
        self._names: list[list[str]] = []
        self._sums: list[Tensor] = []
        self._works: list[Any] = []

    def add(self, value: ObjectiveValue) -> None:
        """Begin to sum the numbers of a slice over ranks; the backward pass need not wait for it."""
        numbers = torch.stack([value.total.detach(), *value.parts.values(), value.correct]).double()
        names = ["total", *value.parts, "correct"]
        if self._preempted is not None:
            numbers = torch.cat([numbers, numbers.new_full((1,), float(self._preempted))])
            names.append(PREEMPTED)
        if self._world_size > 1:
            self._works.append(distributed.all_reduce(numbers, async_op=True))
        self._names.append(names)
        self._sums.append(numbers)

    def means(self) -> list[Tensor]:
        """Return the means over ranks, a vector for each slice, on the device; a GPU waits for the sums, not we."""
        for work in self._works:
            work.wait()
        self._works.clear()
        return self._sums if self._world_size == 1 else [numbers / self._world_size for numbers in self._sums]

    def named(self, rows: Sequence[Sequence[float]]) -> list[dict[str, float]]:
        """Return the means of each slice by name."""
        return [dict(zip(names, row, strict=True)) for names, row in zip(self._names, rows, strict=True)]


def read_all(tensors: Sequence[Tensor]) -> list[list[float]]:
    """Return vectors as lists of numbers, with one copy from the device."""
    numbers: list[float] = torch.cat([tensor.reshape(-1).double() for tensor in tensors]).tolist()
    rows, start = [], 0
    for tensor in tensors:
        rows.append(numbers[start : start + tensor.numel()])
        start += tensor.numel()
    return rows


@dataclass(frozen=True, kw_only=True)
class Unread:
    """A step whose numbers are still on the device; attributes as of `StepReading`, and the numbers.

    `rows` are the means, where they have been read already.
    """

    step: int
    epoch: int
    rate: float
    positions: Sequence[NDArray[np.int64]]
    numbers: Numbers
    means: Sequence[Tensor]
    norm: Tensor | float | None
    rows: Sequence[Sequence[float]] | None = None


class Readings:
    """Steps whose numbers have not been read yet."""

    def __init__(self) -> None:
        self._unread: list[Unread] = []

    def __len__(self) -> int:
        return len(self._unread)

    def add(self, unread: Unread) -> None:
        """Take a step in."""
        self._unread.append(unread)

    def read(self) -> list[StepReading]:
        """Return the steps since the last call; waits for the device once."""
        steps, self._unread = self._unread, []
        if not steps:
            return []
        norms = [step.norm for step in steps if isinstance(step.norm, Tensor)]
        unread = [mean for step in steps if step.rows is None for mean in step.means]
        rows = iter(read_all([*unread, *norms]) if unread or norms else [])
        slices = [step.numbers.named(step.rows or [next(rows) for _ in step.means]) for step in steps]
        found = []
        for step, named in zip(steps, slices, strict=True):
            norm = next(rows)[0] if isinstance(step.norm, Tensor) else step.norm
            found.append(
                StepReading(
                    step=step.step, epoch=step.epoch, rate=step.rate, positions=step.positions, slices=named, norm=norm
                )
            )
        return found
