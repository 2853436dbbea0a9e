"""The rank that a training loop runs on, its speed, and how all ranks end together. Runs in workers."""

from __future__ import annotations

import math
import os
import resource
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from torch import distributed

from graceful.errors import GracefulError, TrainingError
from graceful.training.checkpoint import Part

WARM_UP = 2
"""Steps of an attempt that its speed leaves out."""
READ_EVERY = 10
_CPU = torch.device("cpu")
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class RankContext:
    """One rank of a training loop, its device, and where its checkpoints go.

    Attributes:
        rank: This rank.
        world_size: Ranks; the default process group joins them if there is more than one.
        device: Where it computes.
        scratch: Folder for checkpoints in the making; None: the system's.
        restore: Opens the newest checkpoint for reading, or None.
        publish: Seals a part of a checkpoint and brings it where checkpoints are kept, perhaps beside training, one
            at a time; consumes the folder.
        report: Called with each trace row on rank 0.
        deadline: `time.monotonic` after which the loop stops; None: the time is limited elsewhere.
        preempted: Returns whether a machine of this run is about to be taken away, as far as this rank has heard; None:
            there are no announcements.
        every: Steps between two looks at the numbers of the device; None: as suits the device.
    """

    rank: int = 0
    world_size: int = 1
    device: torch.device = _CPU
    scratch: Path | None = None
    restore: Callable[[], AbstractContextManager[Path | None]]
    publish: Callable[[Part], None]
    report: Callable[[Mapping[str, object]], None] | None = None
    deadline: float | None = None
    preempted: Callable[[], bool] | None = None
    every: int | None = None

    @property
    def read_every(self) -> int:
        """Return the steps between two readings of numbers on the device; reading a GPU makes it wait for this
        process."""
        return self.every or (1 if self.device.type == "cpu" else READ_EVERY)

    def pids(self) -> list[int]:
        """Return the process ids of all ranks; every rank must call it."""
        numbers = torch.zeros(self.world_size, dtype=torch.int64, device=self.device)
        numbers[self.rank] = os.getpid()
        if self.world_size > 1:
            distributed.all_reduce(numbers)
        pids: list[int] = numbers.tolist()
        return pids


@dataclass
class Clock:
    """Speed of this attempt, warm-up not counted."""

    started: float = field(default_factory=time.monotonic)
    steps: int = 0

    def tick(self) -> None:
        """Count a step."""
        self.steps += 1
        if self.steps == WARM_UP:
            self.started = time.monotonic()

    @property
    def seconds_per_step(self) -> float | None:
        """Return the speed; None while warming up."""
        counted_steps = self.steps - WARM_UP
        return (time.monotonic() - self.started) / counted_steps if counted_steps > 0 else None


def peak_memory_mb(device: torch.device) -> int:
    """Return the peak memory: of the device on GPUs, of the process otherwise."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device) / 2**20)
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


class PeakMemory:
    """Peak memory as it was at most a second ago: asking the kernel can take longer than a small network's step.

    Args:
        device: As of `peak_memory_mb`.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._next, self._mb = -math.inf, 0

    def mb(self) -> int:
        """Return it in MB."""
        now = time.monotonic()
        if now >= self._next:
            self._next, self._mb = now + 1.0, peak_memory_mb(self._device)
        return self._mb


def unanimous(error: GracefulError) -> GracefulError:
    """Mark an error that every rank raises in the same place, so that no rank waits for another."""
    error.facts["unanimous"] = True
    return error


def out_of_time(seconds: float) -> TrainingError:
    """Return the error for a run whose time is up."""
    return TrainingError(
        f"train.timeout: not done after {seconds:g} seconds; raise it and run the same spec again, it resumes"
    )


def together(context: RankContext, prepare: Callable[[], T]) -> T:
    """Do something that may fail on one rank alone; if it does, no rank goes on.

    Raises:
        TrainingError: With the fact `bystander`: another rank failed, and has the reason.
    """
    error: Exception | None = None
    result: T | None = None
    try:
        result = prepare()
    except Exception as e:  # noqa: BLE001  raised again below, once the other ranks know
        error = e
    failed = torch.tensor(int(error is not None), device=context.device)
    if context.world_size > 1:
        distributed.all_reduce(failed)
    if error is not None:
        raise unanimous(error) if isinstance(error, GracefulError) else error
    if int(failed):
        raise unanimous(TrainingError("another worker could not start", {"bystander": True}))
    assert result is not None
    return result
