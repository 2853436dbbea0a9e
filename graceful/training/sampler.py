"""Which samples make up each optimiser step: a pure function of seed and epoch. Runs in workers.

An epoch is one permutation of the training positions, cut into global batches. A global batch is cut into accumulation
slices and each slice into ranks, all of equal size, so the mean over ranks and slices is the mean over the batch and
the same samples meet in the same step however many workers there are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from graceful.errors import SpecError


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """Batches of a run.

    The last samples of an epoch that do not fill a batch are left out; another permutation leaves out others.

    Attributes:
        samples: Number of training samples.
        batch_size: Samples per optimiser step over all ranks.
        accumulation: Slices per optimiser step.
        world_size: Ranks.
        seed: Of the permutations.
    """

    samples: int
    batch_size: int
    accumulation: int
    world_size: int
    seed: int

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
        """Optimiser steps in each epoch, at least 1."""
        return self.samples // self.batch_size

    @property
    def slice_size(self) -> int:
        """Samples of one rank in one slice."""
        return self.batch_size // (self.accumulation * self.world_size)

    def epoch(self, epoch: int) -> NDArray[np.int64]:
        """Positions of an epoch: [steps, accumulation, world_size, slice_size] int64."""
        order = np.random.Generator(np.random.PCG64([self.seed, epoch])).permutation(self.samples)
        used = order[: self.steps_per_epoch * self.batch_size].astype(np.int64)
        return used.reshape(self.steps_per_epoch, self.accumulation, self.world_size, self.slice_size)


def shard(count: int, *, rank: int, world_size: int, size: int) -> list[NDArray[np.int64]]:
    """Positions that one rank evaluates, in equally many batches on every rank.

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
