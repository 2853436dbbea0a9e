"""Find the reference runs of versions: versions of the same recipe without constraints. Runs in the driver.

A version that was trained without predecessors is its own unconstrained run. For the others those count that were
trained as references, with the same task, data and recipe and another seed. Nothing is trained here: what does not
exist stays unknown.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from graceful.chain import Predecessor
from graceful.errors import GracefulError
from graceful.models import bundle, bundle_files
from graceful.programs.fitting.reference_training import REFERENCE_SEED_STRIDE
from graceful.programs.runs.run import Run
from graceful.storage import read_bytes, sha256_json
from graceful.training.job import SPEC

MOST = 3
"""Runs of the newest version that are asked; of older ones the first."""


@dataclass(frozen=True, kw_only=True)
class ReferenceRuns:
    """The unconstrained runs of one version.

    Attributes:
        runs: None if there are none here.
        reason: What they are, or why there are none; one sentence for people.
    """

    runs: tuple[Predecessor, ...] = ()
    reason: str


def reference_runs_of(run: Run, versions: Sequence[Predecessor]) -> dict[str, ReferenceRuns]:
    """Return the unconstrained runs of each version, looked up under its own model family.

    Args:
        run: In whose home runs and references are.
        versions: Newest first.
    """
    return {version.name: _of(run, version, most=MOST if version is versions[0] else 1) for version in versions}


def _of(run: Run, version: Predecessor, *, most: int) -> ReferenceRuns:
    run_id, mirror = f"{version.model}-{version.name}", run.mirror
    folder = run.home / "runs" / run_id
    path, description = folder / SPEC, folder / "model" / bundle_files.DESCRIPTION
    try:
        if not all(file.exists() or mirror.restore_file(file) for file in (path, description)):
            return ReferenceRuns(reason=f"none known, run {run_id} is not in this home")
        if bundle.recorded_digest(description.parent) != version.digest:
            return ReferenceRuns(reason=f"none known, run {run_id} of this home trained another version")
        job = json.loads(read_bytes(path))["job"]
        if not job["predecessors"] and not job["references"]:
            return (
                ReferenceRuns(reason=f"it is one, but {version.unrunnable_reason}")
                if version.unrunnable_reason
                else ReferenceRuns(runs=(version,), reason="it is one")
            )
        runs: list[Predecessor] = []
        for index in range(1, most + 1):
            folder = run.home / "references" / reference_name(job, index)
            if not mirror.unseal(folder):
                break
            runs.append(run.version(folder / "model").whole())
    except (GracefulError, ValueError, KeyError, TypeError, RecursionError) as e:
        return ReferenceRuns(reason=f"cannot be read ({e})")
    if not runs:
        return ReferenceRuns(reason="none here; compatibility.reference or adaptive weighting trains one")
    same_start = ", started at the same predecessor, so not independent of it" if "start" in job else ""
    return ReferenceRuns(runs=tuple(runs), reason=f"{len(runs)} of its recipe, other seed{same_start}")


def reference_name(job: dict[str, Any], index: int) -> str:
    """Name of the index-th reference run, from 1, of what a run's `spec.json` says it trained."""
    train = {**job["train"], "seed": job["train"]["seed"] + index * REFERENCE_SEED_STRIDE}
    recipe = {"task": job["task"], "transform": job["transform"], "train": train, "data": job["data"]}
    recipe |= {"start": job["start"]} if "start" in job else {}
    return f"reference-{sha256_json(recipe)[:16]}"
