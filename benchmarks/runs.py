"""Train and measure versions in this process, as cheaply as the product allows: what the glyphs benchmarks share."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from graceful import spec, tasks
from graceful.chain import Predecessor
from graceful.models import bundle
from graceful.programs.fitting.train import train
from graceful.programs.runs.run import Run
from graceful.tasks.base import Split, Task
from graceful.training.job import begun

T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 14: 2.145}
"""Two-sided 95 % points of Student's t by degrees of freedom."""


def refresh_spec(name: str, *, task: Mapping[str, Any], seed: int, **sections: Any) -> spec.RefreshSpec:
    """Return a spec for one inline run on plain torch; the recipe of science (SGD 0.05, 4 epochs, clip 5) is the
    default."""
    recipe = {"num_workers": 0, "engine": {"kind": "torch"}, "seed": seed, **sections.pop("train", {})}
    return spec.parse({"model": "bench", "name": name, "task": dict(task), "train": recipe, **sections})


def trained(
    wanted: spec.RefreshSpec, *, folder: Path, ancestors: Sequence[Path] = (), task: Task
) -> tuple[Path, float]:
    """Train a version; its bundle and the CPU seconds that took, reference runs and caches included.

    Raises:
        ValueError: It has the seed of an ancestor. Versions of one seed begin with the same rows of the head where
            classes and embedding have the same size, and their embeddings are compatible without any loss.
    """
    before = cpu_seconds()
    for ancestor in ancestors:
        if begun(ancestor.parent)["train"]["seed"] == wanted.train.seed:
            raise ValueError(f"{wanted.name} has the seed of {ancestor.parent.name}; give it another one")
    run = Run.of(wanted, home=folder.parent, folder=folder)
    done = train(run, ancestors=run.chain(ancestors), task=task)
    return done.folder, cpu_seconds() - before


def cpu_seconds() -> float:
    """Return the CPU seconds of this process so far."""
    times = os.times()
    return times.user + times.system


def flips(new: Predecessor, old: Predecessor, *, task: Task, split: Split) -> dict[str, float]:
    """Return the error of both, NFR and relative NFR on one split, in percent, over ids whose class both know."""
    samples = task.samples(split)
    right_new, right_old = right(new, task, split), right(old, task, split)
    known = np.isin(np.asarray(samples.classes), old.classes)[samples.labels]
    error, old_error = 1 - right_new[known].mean(), 1 - right_old[known].mean()
    negative = float((right_old & ~right_new)[known].mean())
    relative = negative / ((1 - old_error) * error) if error > 0 and old_error < 1 else math.nan
    return {
        "error": 100 * float(1 - right_new.mean()),
        "old_error": 100 * float(old_error),
        "nfr": 100 * negative,
        "relative_nfr": 100 * float(relative),
    }


def right(version: Predecessor, task: Task, split: Split) -> np.ndarray:
    """Return [N] bool: which ids of the split this version answers right."""
    samples = task.samples(split)
    items = samples.read(np.arange(len(samples), dtype=np.int64))
    predicted = np.asarray(version.classes)[version(items).logits.argmax(dim=1).numpy()]
    return np.asarray(predicted == np.asarray(samples.classes)[samples.labels])


def load(folder: Path) -> Predecessor:
    """Open a bundle."""
    return bundle.load(folder)


def task_of(section: Mapping[str, Any]) -> Task:
    """Build a task once, so that many versions can share its data."""
    return tasks.build(refresh_spec("x", task=section, seed=0).task)


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean of paired differences and half the width of its 95 % t interval."""
    n = len(values)
    if n < 2:
        return statistics.fmean(values), math.inf
    near = max((df for df in T_95 if df <= n - 1), default=1)
    return statistics.fmean(values), T_95[near] * statistics.stdev(values) / math.sqrt(n)
