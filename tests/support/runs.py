"""Train a version against the bundles of its predecessors, and make jobs of them: what tests of many modules need."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from graceful.chain.ancestor import Ancestor
from graceful.chain.budgets import Budget
from graceful.chain.contract import Contract, Correctness, Promise
from graceful.programs.fitting import train as program
from graceful.programs.fitting.finishing import Trained
from graceful.programs.runs.run import Run
from graceful.spec import RefreshSpec
from graceful.training.job import TrainingJob


def train(
    document: RefreshSpec, *, run_dir: Path, home: Path, ancestors: Sequence[Path] = (), **options: Any
) -> Trained:
    """Train the version of a spec in a folder, against bundles, latest first."""
    run = Run.of(document, home=home, folder=run_dir)
    return program.train(run, ancestors=run.chain(ancestors), **options)


def predecessors(
    document: RefreshSpec, bundles: Sequence[Path], caches: Iterable[Path | None] = ()
) -> tuple[Ancestor, ...]:
    """Bundles, each with the cache of its outputs; without caches all run live."""
    chain = Run.of(document, home=Path()).chain(bundles)
    known = dict(enumerate(caches))
    return tuple(replace(one, cache=known.get(index)) for index, one in enumerate(chain))


def job_of(
    document: RefreshSpec, run_dir: Path, bundles: Sequence[Path], caches: Iterable[Path | None] = (), **options: Any
) -> TrainingJob:
    """Return the job of a spec against bundles."""
    return TrainingJob(spec=document, run_dir=run_dir, predecessors=predecessors(document, bundles, caches), **options)


def contract_of(budgets: Iterable[Budget], *, ids: int = 4) -> Contract:
    """Return a contract with predecessors that know and get right everything; the reference error is 10 %."""
    everything = np.ones(ids, dtype=np.bool_)
    promises = [
        Promise(budget=one, correctness=Correctness(name=one.name, right=everything, known=everything))
        for one in budgets
    ]
    return Contract(promises=tuple(promises), reference_error=0.1)
