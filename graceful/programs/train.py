"""Train one version against its predecessors: spec and bundles in, a new bundle out. Runs in the driver."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load_file

from graceful import targets, tasks
from graceful.chain import Predecessor, select
from graceful.errors import SpecError
from graceful.models import bundle
from graceful.programs import exclusive
from graceful.spec import Compatibility, RefreshSpec
from graceful.storage import sha256_json
from graceful.tasks.base import Task
from graceful.training.driver import TrainingJob, TrainingResult
from graceful.training.driver import train as run_training

Progress = Callable[[Mapping[str, object]], None]
REFERENCE_SEED_STRIDE = 1009
"""Reference run r uses seed + r * stride, so that its seeds never meet those of neighbouring runs."""


def silent(row: Mapping[str, object]) -> None:
    """Report no progress."""


@dataclass(frozen=True, kw_only=True)
class Views:
    """What the caches hold.

    Attributes:
        live: No cache: predecessors run in every step.
        keyed: [V, N] view numbers of V cached views; None: the one clean view.
    """

    live: bool = False
    keyed: NDArray[np.uint64] | None = None


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A new version on disk.

    Attributes:
        folder: Its bundle.
        digest: SHA-256 of the bundle.
        result: How training went.
    """

    folder: Path
    digest: str
    result: TrainingResult


def train(
    spec: RefreshSpec,
    *,
    run_dir: Path,
    home: Path,
    ancestors: Sequence[Path] = (),
    task: Task | None = None,
    progress: Progress = silent,
) -> Trained:
    """Train the version a spec describes; finished parts are reused, an interrupted run resumes.

    Args:
        spec: What to train.
        run_dir: Folder of this run.
        home: Folder of the caches that runs share.
        ancestors: Bundles of the chain, latest first.
        task: Already built task, for callers that train many versions on the same data.
        progress: Called with each row of the metrics trace.

    Raises:
        SpecError, DataError: The spec does not fit the data or the chain.
        TrainingError: Training failed; nothing of the chain is touched.
    """
    built = task or tasks.build(spec.task)
    versions = [bundle.load(folder, augment_like=spec.task) for folder in ancestors]
    folder_of = {version.name: folder for version, folder in zip(versions, ancestors, strict=True)}
    wanted = select(versions, spec.compatibility.against) if spec.compatibility.losses else ()
    views = _views(spec, built)
    references = _references(spec, home=home, task=built, views=views, progress=progress)
    job = TrainingJob(
        spec=spec,
        run_dir=run_dir,
        predecessors=tuple(folder_of[version.name] for version in wanted),
        caches=tuple(
            None if views.live else _cache(version, spec=spec, task=built, views=views, home=home, progress=progress)
            for version in wanted
        ),
        references=references,
        task=task,
    )
    return _export(spec, built, run_training(job, progress=progress), run_dir / "model")


def _views(spec: RefreshSpec, task: Task) -> Views:
    mode = targets.plan_views(spec.compatibility.targets, augments=task.augments)
    if mode != "keyed":
        if mode == "live" and spec.compatibility.reference:
            raise SpecError("compatibility.targets.mode: live has no cache for reference runs; write keyed")
        return Views(live=mode == "live")
    ids = task.samples("train").ids
    return Views(keyed=targets.key_views(ids, seed=spec.train.seed, count=spec.compatibility.targets.views))


def _cache(
    version: Predecessor, *, spec: RefreshSpec, task: Task, views: Views, home: Path, progress: Progress
) -> Path:
    """Folder of the version's outputs on the training data."""

    def tell(done: int, total: int) -> None:
        progress({"stage": f"outputs of {version.name}", "step": done, "steps": total})

    cache = targets.build(
        version,
        task.samples("train"),
        views=views.keyed,
        root=home / "targets",
        batch_size=spec.evaluate.batch_size,
        progress=tell,
    )
    return cache.folder


def _references(spec: RefreshSpec, *, home: Path, task: Task, views: Views, progress: Progress) -> tuple[Path, ...]:
    """Train the unconstrained reference runs and cache their outputs like any predecessor's.

    A reference run depends on task and training recipe alone, so it is kept under that digest and shared by all runs.
    """
    wanted = spec.compatibility.reference
    caches: list[Path] = []
    for index in range(1, (wanted.runs if wanted else 0) + 1):
        seed = spec.train.seed + index * REFERENCE_SEED_STRIDE
        train = spec.train.model_copy(update={"seed": seed})
        recipe = {"task": spec.task.model_dump(mode="json"), "train": train.model_dump(mode="json")}
        name = f"reference-{sha256_json(recipe)[:16]}"
        free = spec.model_copy(update={"name": name, "compatibility": Compatibility(), "train": train})
        folder = home / "references" / name
        with exclusive(folder):
            result = run_training(TrainingJob(spec=free, run_dir=folder, task=task), progress=progress)
            trained = _export(free, task, result, folder / "model")
        version = bundle.load(trained.folder, augment_like=spec.task)
        caches.append(_cache(version, spec=spec, task=task, views=views, home=home, progress=progress))
    return tuple(caches)


def _export(spec: RefreshSpec, task: Task, result: TrainingResult, folder: Path) -> Trained:
    network = task.network(task.classes)
    network.load_state_dict(load_file(result.weights))
    digest = bundle.save(folder, network=network, spec=spec, classes=task.classes)
    return Trained(folder=folder, digest=digest, result=result)
