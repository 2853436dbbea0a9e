"""Which samples make up each optimiser step: a pure function of seed and epoch. Runs in workers.

An epoch is one permutation of the training positions, cut into global batches. A global batch is cut into accumulation
slices and each slice into ranks, all of equal size, so the mean over ranks and slices is the mean over the batch and
the same samples meet in the same step however many workers there are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import overload

import numpy as np
from numpy.typing import NDArray

from graceful.errors import SpecError
from graceful.tasks.runs import Runs
from graceful.training.block_order import BlockOrder
from graceful.training.permutation import permuted

IN_MEMORY = 2**24
"""Up to so many samples an epoch's permutation is an array; of more, each position is computed when it is needed."""


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """Batches of a run.

    The last samples of an epoch that do not fill a batch are left out; another permutation leaves out others.

    Attributes:
        samples: Number of training samples.
        batch_size: Samples per optimiser step over all ranks.
        accumulation: Slices per optimiser step.
        world_size: Ranks.
        seed: The seed of the permutations.
        runs: Neighbours that are read together; None: an epoch is one permutation of all samples.
        in_order: Every epoch has the samples in their own order, as a stream gives them.
    """

    samples: int
    batch_size: int
    accumulation: int
    world_size: int
    seed: int
    runs: Runs | None = None
    in_order: bool = False

    def __post_init__(self) -> None:
        if self.batch_size > self.samples:
            raise SpecError(
                f"train.batch_size must be at most the {self.samples} training samples, got {self.batch_size};"
                " write a smaller one"
            )
        parts = self.accumulation * self.world_size
        if self.batch_size % parts:
            raise SpecError(
                f"train.batch_size must divide by workers x accumulation = {parts}, got {self.batch_size};"
                f" write {max(self.batch_size // parts, 1) * parts}"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Return the number of optimiser steps in each epoch, at least 1."""
        return self.samples // self.batch_size

    @property
    def slice_size(self) -> int:
        """Return the number of samples of one rank in one slice."""
        return self.batch_size // (self.accumulation * self.world_size)

    def epoch(self, epoch: int) -> NDArray[np.int64]:
        """Return the positions of an epoch: [steps, accumulation, world_size, slice_size] int64."""
        used = self._order(epoch)(np.arange(self.steps_per_epoch * self.batch_size, dtype=np.int64))
        return used.reshape(self.steps_per_epoch, self.accumulation, self.world_size, self.slice_size)

    def slices(self, epoch: int, *, first_step: int, rank: int) -> Order:
        """Return the positions of one rank in the remaining steps of an epoch, slice by slice."""
        return Order(self, self._order(epoch), first_step=first_step, rank=rank)

    def _order(self, epoch: int) -> Callable[[NDArray[np.int64]], NDArray[np.int64]]:
        """Return the permutation of an epoch as a function of places in it."""
        if self.in_order:
            return lambda places: places
        if self.runs is not None:
            return BlockOrder(self.runs, key=(self.seed, epoch))
        if self.samples > IN_MEMORY:
            return partial(permuted, count=self.samples, key=(self.seed, epoch))
        order = np.random.Generator(np.random.PCG64([self.seed, epoch])).permutation(self.samples)
        return lambda places: order[places].astype(np.int64, copy=False)


class Order(Sequence[NDArray[np.int64]]):
    """Positions of one rank in some steps of an epoch, [slice_size] for each slice; computed when asked for.

    Attributes:
        accumulation: Slices of each step.
    """

    def __init__(
        self,
        sampler: Sampler,
        order: Callable[[NDArray[np.int64]], NDArray[np.int64]],
        *,
        first_step: int,
        rank: int,
    ) -> None:
        self._sampler, self._order, self._first_step, self._rank = sampler, order, first_step, rank
        self.accumulation = sampler.accumulation

    def __len__(self) -> int:
        return (self._sampler.steps_per_epoch - self._first_step) * self.accumulation

    @overload
    def __getitem__(self, index: int) -> NDArray[np.int64]: ...
    @overload
    def __getitem__(self, index: slice) -> list[NDArray[np.int64]]: ...
    def __getitem__(self, index: int | slice) -> NDArray[np.int64] | list[NDArray[np.int64]]:
        """Return the positions of one slice, or of several."""
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(f"slice {index} of {len(self)}")
        size = self._sampler.slice_size
        number = self._first_step * self.accumulation + index
        start = (number * self._sampler.world_size + self._rank) * size
        return self._order(np.arange(start, start + size, dtype=np.int64))


def shard(count: int, *, rank: int, world_size: int, size: int) -> list[NDArray[np.int64]]:
    """Return the positions that one rank evaluates, in equally many batches on every rank.

    A rank that runs out gets empty batches, because an engine with sharded weights needs every rank in every forward
    pass.

    Args:
        count: Positions in all.
        rank: This rank.
        world_size: Ranks.
        size: Largest batch.

    Returns:
        Disjoint over ranks, together every position once: [n] int64 each, n in [0, size].
    """
    positions = np.arange(rank, count, world_size, dtype=np.int64)
    most = -(-count // world_size)
    return [positions[start : start + size] for start in range(0, most, size)]
