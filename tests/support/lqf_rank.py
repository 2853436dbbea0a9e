"""One rank of a linearised run, without Ray; importable by processes that are spawned."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from torch import distributed

from graceful import spec
from graceful.training.job import TrainingJob
from graceful.training.methods import run
from graceful.training.rank_context import RankContext


def job(folder: Path, **method: object) -> TrainingJob:
    """Return a job on some digits that conjugate gradients solve."""
    document = {
        "model": "digits",
        "name": "v1",
        "task": {"kind": "digits", "share": 0.05, "network": {"embedding": 16}},
        "train": {
            "method": {"kind": "lqf", "solver": "pcg", "penalty": 0.1, "tolerance": 1e-5, **method},
            "batch_size": 16,
            "checkpoint_every": 10,
            "num_workers": 0,
        },
    }
    return TrainingJob(spec=spec.parse(document, where="test"), run_dir=folder)


def solved(folder: str) -> dict[str, object]:
    """Run this process's rank; what rank 0 returns is the outcome."""
    Path(folder).mkdir(exist_ok=True)
    return run(job(Path(folder)), _context(), digest="0" * 64)


def stepped(folder: str, engine: dict[str, object]) -> dict[str, object]:
    """Run this process's rank by steps of the ordinary loop with an engine."""
    Path(folder).mkdir(exist_ok=True)
    solver = job(Path(folder), solver="sgd_kfac")
    document = solver.spec.dump()
    document["train"] |= {"engine": engine, "epochs": 2, "batch_size": 30, "clip": 0.0, "num_workers": 2}
    return run(replace(solver, spec=spec.parse(document, where="test")), _context(), digest="0" * 64)


def _context() -> RankContext:
    return RankContext(
        rank=distributed.get_rank(),
        world_size=distributed.get_world_size(),
        restore=lambda: nullcontext(None),
        publish=lambda part: shutil.rmtree(part.folder, ignore_errors=True),
    )
