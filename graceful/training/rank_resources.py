"""The resources of Ray that a training process takes. Runs in the driver.

Where pods hold several processes, or more cores than one process takes, the backend says what each takes, so that in
each pod run as many as were planned.
"""

from __future__ import annotations

import json
import os
from typing import Any

from graceful.environment import RANK_VARIABLE, WORKERS_VARIABLE
from graceful.errors import SpecError
from graceful.spec import Train


def workers(train: Train) -> int:
    """Return how many training processes a run has: the environment's number, else `train.num_workers`.

    Raises:
        SpecError: The environment says no number of processes among which a batch can be divided.
    """
    text = os.environ.get(WORKERS_VARIABLE)
    if not text or train.num_workers == 0:
        return train.num_workers
    parts = int(text) * train.accumulation if text.isdecimal() else 0
    if parts == 0 or train.batch_size % parts:
        raise SpecError(
            f"{WORKERS_VARIABLE}={text:.40}: must be a number of processes by which train.batch_size ="
            f" {train.batch_size} is divisible, with train.accumulation = {train.accumulation}; write"
            f" {train.num_workers}, or leave it out"
        )
    return int(text)


def allowed(train: Train) -> list[int]:
    """Return the numbers of training processes on which a run may be, in rising order: one, if it is not elastic.

    Raises:
        SpecError: As `workers`.
    """
    return [workers(train)] if os.environ.get(WORKERS_VARIABLE) else train.worker_counts


def per_rank(*, use_gpu: bool) -> dict[str, float]:
    """Return Ray's resources of one training process: a CPU, or the environment's resources, and a GPU if it uses one.

    Raises:
        SpecError: The variable holds something else than numbers by name.
    """
    text = os.environ.get(RANK_VARIABLE) or '{"CPU": 1}'
    try:
        resources = {str(name): float(amount) for name, amount in json.loads(text).items()}
    except (ValueError, TypeError, AttributeError) as e:
        raise SpecError(f'{RANK_VARIABLE} must be JSON such as {{"CPU": 4, "rank": 1}}, got {text!r:.80}') from e
    return {**resources, "GPU": 1.0} if use_gpu else resources


def fitting(available: dict[str, float], *, use_gpu: bool) -> int:
    """Return how many training processes fit into resources of Ray; raises as `per_rank`."""
    needed = per_rank(use_gpu=use_gpu)
    return min(int(available.get(name, 0.0) / amount + 1e-9) for name, amount in needed.items() if amount)


def groups(available: dict[str, float], *, size: int, use_gpu: bool) -> int:
    """Return how many groups of so many training processes fit into resources of Ray, at least one."""
    return max(1, fitting(available, use_gpu=use_gpu) // size)


def actor_options(*, use_gpu: bool) -> dict[str, Any]:
    """Return what one training process takes, as options of an actor of Ray; raises as `per_rank`."""
    resources = per_rank(use_gpu=use_gpu)
    return {"num_cpus": resources.pop("CPU", 0.0), "num_gpus": resources.pop("GPU", 0.0), "resources": resources}
