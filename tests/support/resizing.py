"""A run of two ranks that goes on with one and then with two again, beside one that two ranks trained throughout."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from torch import distributed

from graceful import spec
from tests.support.training import Trained, run_distributed, section

KINDS = ("torch", "zero0", "zero1", "zero2")
TWO, ONE, TWO_AGAIN = range(2), range(2, 4), range(4, 5)


def _part(kind: str, optimizer: spec.Optimizer, source: str, target: str, steps: range) -> dict[str, Any]:
    """Go on from a folder (empty: from the start), save into another; weights and losses."""
    trained = Trained(section(kind, optimizer=optimizer))
    if source:
        trained.engine.load(Path(source))
    trained.run(steps)
    if target:
        own = Path(f"{target}-{distributed.get_rank()}")
        own.mkdir(parents=True)
        trained.engine.save(own)
    return {"losses": trained.losses, "weights": trained.weights()}


def _all(optimizer: spec.Optimizer, folder: str, source: str, target: str, steps: range) -> dict[str, dict[str, Any]]:
    return {
        kind: _part(kind, optimizer, *(f"{folder}/{kind}-{name}" if name else "" for name in (source, target)), steps)
        for kind in KINDS
    }


def resized(optimizer: spec.Optimizer, folder: Path) -> dict[str, dict[str, Any]]:
    """Return weights and losses of a run that changed its ranks, and of one that did not, by engine."""
    whole = run_distributed(_all, 2, optimizer, str(folder / "whole"), "", "", range(5))[0]
    stages = []
    for ranks, source, target, steps in ((2, "", "a", TWO), (1, "a", "b", ONE), (2, "b", "c", TWO_AGAIN)):
        stages.append(run_distributed(_all, ranks, optimizer, str(folder), source, target, steps)[0])
        for kind in KINDS:
            for part in sorted(folder.glob(f"{kind}-{target}-*")):
                shutil.copytree(part, folder / f"{kind}-{target}", dirs_exist_ok=True)
    return {
        kind: {
            "losses": [loss for stage in stages for loss in stage[kind]["losses"]],
            "weights": stages[-1][kind]["weights"],
            "whole": whole[kind],
        }
        for kind in KINDS
    }


def largest_difference(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> float:
    """Return the largest difference of two networks' weights, relative to the largest weight."""
    scale = max(float(np.abs(value).max()) for value in right.values())
    return max(float(np.abs(left[name] - right[name]).max()) for name in right) / scale
