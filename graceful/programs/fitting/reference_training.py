"""Train reference runs: versions of the same recipe without constraints. Runs in the driver.

A reference run depends on task, training data, recipe and start alone, so it is kept under their digest and shared by
all runs, whichever model family they belong to.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from graceful import tasks
from graceful.models import bases, bundle
from graceful.models.stored import StoredVersion
from graceful.programs import exclusive
from graceful.programs.fitting.finishing import Trained, finish
from graceful.programs.runs.run import Progress, Run, silent
from graceful.spec import Adaptive, Compatibility
from graceful.spec.training import LIMITS
from graceful.storage import Mirror, sha256_json
from graceful.tasks.base import Task
from graceful.training.driver import TrainingJob
from graceful.training.driver import train as run_training
from graceful.training.start import require_start

REFERENCE_SEED_STRIDE = 1009
"""Reference run r uses seed + r * stride, so that its seeds never meet those of neighbouring runs."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a reference run depends on, and where it is kept.

    Attributes:
        run: Whose task and training it has, and whose home it is kept in.
        task: Built.
        data: Digest of the training samples.
        start: The version at whose weights it starts, like the run it is compared with; None: at random.
    """

    run: Run
    task: Task
    data: str
    start: StoredVersion | None


def train_references(recipe: Recipe, *, predecessors: bool, progress: Progress) -> list[Trained]:
    """Train the unconstrained runs: those to distil from, or one to measure budgets with.

    Args:
        recipe: Theirs.
        predecessors: Whether training sees any; without them there are no budgets, and nothing to blend with.
        progress: Called with each row of the metrics trace.
    """
    section = recipe.run.spec.compatibility
    runs = section.reference_runs if predecessors or section.blend is None else 0
    if predecessors and isinstance(section.weighting, Adaptive) and section.weighting.reference_error is None:
        runs = max(runs, 1)
    return [_reference(recipe, index, progress=progress) for index in range(1, runs + 1)]


def reference_run(
    run: Run, index: int, *, task: Task, latest: StoredVersion | None = None, progress: Progress = silent
) -> Trained:
    """Return an unconstrained run of this recipe, trained unless some run has done so.

    Args:
        run: Its recipe; the losses against predecessors do not matter.
        index: From 1; each has a seed of its own.
        task: Built from the spec.
        latest: The latest predecessor, for `train.start: latest`.
        progress: Called with each row of the metrics trace.

    Raises:
        SpecError: It cannot start there.
    """
    start, data = require_start(run.spec, latest, task=task), task.samples("train").digest
    return _reference(Recipe(run=run, task=task, data=data, start=start), index, progress=progress)


def finished_reference(run: Run, index: int, *, task: Task, latest: StoredVersion | None = None) -> Path | None:
    """Return the bundle of an unconstrained run that some run has trained, here or in the bucket; None: not yet.

    Arguments and errors as of `reference_run`.
    """
    start, data = require_start(run.spec, latest, task=task), task.samples("train").digest
    job, name = _job(Recipe(run=run, task=task, data=data, start=start), index)
    folder = job.run_dir.with_name(name)
    return folder / "model" if run.mirror.unseal(folder) else None


def _reference(recipe: Recipe, index: int, *, progress: Progress) -> Trained:
    job, name = _job(recipe, index)
    return _shared(job, name, recipe, progress=progress)


def _job(recipe: Recipe, index: int) -> tuple[TrainingJob, str]:
    """Return the job of a reference run, and the name under which all runs share it."""
    spec, shelf = recipe.run.spec, recipe.run.home / "references"
    train = spec.train.model_copy(update={"seed": spec.train.seed + index * REFERENCE_SEED_STRIDE})
    document = {
        "task": spec.task.model_dump(mode="json"),
        "transform": tasks.transform_digest(spec.task),
        "train": train.model_dump(mode="json", exclude=LIMITS),
        "data": recipe.data,
    }
    base = bases.digest_of(spec.task)
    if base is not None:
        document["base"] = base
    if recipe.start is not None:
        document["start"] = bundle.recorded_digest(recipe.start.folder)
    name = f"reference-{sha256_json(document)[:16]}"
    shared = {"model": "reference", "name": name, "compatibility": Compatibility(), "train": train, "gallery": None}
    job = TrainingJob(
        spec=spec.model_copy(update=shared),
        run_dir=shelf / f"{name}.{spec.run_id}",
        start=recipe.start,
        task=recipe.task,
        data=recipe.data,
        base=base,
        mirror=recipe.run.mirror,
        home=recipe.run.home,
    )
    return job, name


def _shared(job: TrainingJob, name: str, recipe: Recipe, *, progress: Progress) -> Trained:
    """Train a run into a folder of its own and seal it under a name that all runs share; the first to finish wins."""
    mirror, work, folder = job.mirror, job.run_dir, job.run_dir.with_name(name)
    with exclusive(folder.parent.with_name("locks") / folder.name, wait=True):
        if not mirror.unseal(folder):
            trained = run_training(job, progress=progress)
            finish(job.spec, recipe.task, weights=trained.weights, folder=work / "model", linearised=trained.linearised)
            for checkpoints in ("ray", "checkpoints"):
                mirror.delete_folder(work / checkpoints)
            work.rename(folder)
            mirror.seal(folder)
            mirror.delete_folder(work)
        here = replace(job, run_dir=folder, mirror=Mirror.NONE)
        result = run_training(here, progress=progress)
        digest = bundle.digest(folder / "model")
    return Trained(folder=folder / "model", digest=digest, result=result, data=recipe.data)
