"""What a training step costs by the number of predecessors: cached and merged, or live in every step.

    python -m benchmarks.chain_step            # ten minutes, writes benchmarks/results/chain_step.json
    python -m benchmarks.chain_step --quick    # a few steps, prints only

A step is what the training loop does: read and transform the batch, fetch what predecessors say, forward, losses,
backward, update. New version `s2` or, cached only, the larger `m`, batch 128; predecessors of the same size with random
weights, whose outputs cost the same as those of trained ones. What predecessors cost does not depend on the network, so
its share falls as the network grows.

Every round runs all settings in turn, in changing order; ratios are taken within a round,
medians over rounds. Times are CPU seconds of this process, which other work on the machine disturbs least; wall seconds
stand beside them.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from benchmarks import results, runs
from graceful import learners, targets
from graceful.chain.ancestor import Ancestor
from graceful.models import bundle
from graceful.models.stored import StoredVersion
from graceful.tasks.base import Task
from graceful.training import batches, engine
from graceful.training.job import TrainingJob
from graceful.training.objective import Objective
from graceful.training.sampler import Sampler

SIZES = ("s2", "m")
COUNTS = (1, 2, 4, 8, 16)
LOSSES = [{"kind": "focal_distillation", "weight": 0.3}]


def task_section(size: str) -> dict[str, Any]:
    """Return the data, and a network of one size."""
    return {"kind": "glyphs", "network": {"size": size, "embedding": 64, "head": "cosine"}}


def predecessors(folder: Path, task: Task, size: str) -> list[tuple[Path, Path]]:
    """Bundles of random versions and the caches of their outputs."""
    found = []
    samples = task.samples("train")
    for index in range(max(COUNTS)):
        torch.manual_seed(index)
        wanted = runs.refresh_spec(f"v{index}", task=task_section(size), seed=0)
        bundle.save(folder / f"v{index}", network=task.network(task.classes), spec=wanted, classes=task.classes)
        version = bundle.load(folder / f"v{index}")
        cache = targets.build(version, samples, views=None, root=folder / "targets")
        found.append((folder / f"v{index}", cache.folder))
    return found


Times = tuple[float, float]
"""CPU and wall seconds."""


def stepper(
    count: int, mode: str, chain: list[tuple[Path, Path]], task: Task, size: str
) -> tuple[Callable[[int], Times], float]:
    """Return a function that trains so many steps and returns the seconds of one; and the seconds opening took."""
    wanted = {"losses": LOSSES, "against": "all", "targets": {"mode": "live" if mode == "live" else "auto"}}
    document = runs.refresh_spec("new", task=task_section(size), seed=0, compatibility=wanted if count else {})
    job = TrainingJob(
        spec=document,
        run_dir=Path(),
        predecessors=tuple(
            Ancestor(stored=StoredVersion(folder=folder), cache=None if mode == "live" else cache)
            for folder, cache in chain[:count]
        ),
    )
    start = time.process_time()
    cpu = torch.device("cpu")
    materials = batches.gather(job, task, device=cpu)
    materials.remix({version.name: 1.0 / count for version in materials.versions})
    opening = time.process_time() - start
    learner = materials.learner
    objective = Objective(
        job.compatibility, task.classes, materials.versions, groups=materials.groups, task_loss=learner.task_loss
    )
    sampler = Sampler(samples=len(materials.train), batch_size=128, accumulation=1, world_size=1, seed=0)
    torch.manual_seed(0)
    forward = partial(learners.run, learner)
    trained = engine.build(document.train, task.network(task.classes), device=cpu, run=forward)
    order = sampler.slices(0, first_step=0, rank=0)

    def run(steps: int) -> Times:
        begun, wall = time.process_time(), time.perf_counter()
        for slices in islice(materials.slices(order, epoch=0), steps):
            for one in slices:
                outputs = trained.forward(one.batch)
                value = objective(outputs, one.labels, one.old, one.reference, one.merged, batch=one.batch)
                trained.backward(value.total)
            trained.step(0.01)
        return (time.process_time() - begun) / steps, (time.perf_counter() - wall) / steps

    return run, opening


def measure(size: str, rounds: int, steps: int) -> list[dict[str, Any]]:
    """Return one row for each mode and number of predecessors."""
    task = runs.task_of(task_section(size))
    modes = ("cached", "live") if size == SIZES[0] else ("cached",)
    settings: list[tuple[str, int]] = [("none", 0), *((mode, count) for mode in modes for count in COUNTS)]
    with tempfile.TemporaryDirectory() as scratch:
        chain = predecessors(Path(scratch), task, size)
        ready = {setting: stepper(setting[1], setting[0], chain, task, size) for setting in settings}
        seconds: dict[tuple[str, int], list[Times]] = {setting: [] for setting in settings}
        order = random.Random(0)
        for number in range(rounds + 1):
            for setting in order.sample(settings, len(settings)):
                taken = ready[setting][0](steps)
                if number:
                    seconds[setting].append(taken)
    base, first = ([cpu for cpu, _ in seconds[setting]] for setting in (("none", 0), ("cached", 1)))
    rows = []
    for mode, count in settings:
        own = [cpu for cpu, _ in seconds[mode, count]]
        ratios = [one / none for one, none in zip(own, base, strict=True)]
        spread = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
        row = {
            "network": size,
            "mode": mode if count else "cached",
            "predecessors": count,
            "seconds_per_step": round(statistics.median(own), 6),
            "ratio_to_none": round(statistics.median(ratios), 4),
            "ratio_quartiles": [round(spread[0], 4), round(spread[2], 4)],
            "ratio_to_one_cached": round(statistics.median(x / y for x, y in zip(own, first, strict=True)), 4),
            "wall_seconds_per_step": round(statistics.median(wall for _, wall in seconds[mode, count]), 6),
            "seconds_to_open": round(ready[mode, count][1], 3),
            "rounds": rounds,
            "steps_per_round": steps,
        }
        rows.append(row)
    return rows


def main() -> None:
    """Measure, print a table, write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few steps, nothing written")
    options = parser.parse_args()
    torch.set_num_threads(1)
    start = time.perf_counter()
    rows = [row for size in SIZES for row in (measure(size, 3, 4) if options.quick else measure(size, 60, 8))]
    print(f"{'net':<4}{'mode':<8}{'k':>4}{'ms/step':>10}{'ratio':>8}{'quartiles':>18}{'to k=1':>8}{'open, s':>9}")
    for row in rows:
        low, high = row["ratio_quartiles"]
        print(
            f"{row['network']:<4}{row['mode']:<8}{row['predecessors']:>4}{1e3 * row['seconds_per_step']:>10.2f}"
            f"{row['ratio_to_none']:>8.3f}{low:>9.3f}{high:>9.3f}{row['ratio_to_one_cached']:>8.3f}"
            f"{row['seconds_to_open']:>9.2f}"
        )
    if not options.quick:
        print(results.write("chain_step", rows, seconds=time.perf_counter() - start))


if __name__ == "__main__":
    main()
