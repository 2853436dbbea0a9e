"""Train one version against its predecessors: spec and bundles in, a new bundle out. Runs in the driver."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load_file

from graceful import targets, tasks
from graceful.chain import Predecessor, select
from graceful.chain.contract import Contract
from graceful.errors import DataError, SpecError
from graceful.models import bundle
from graceful.programs import exclusive
from graceful.programs.constraint_report import record
from graceful.programs.contract import Unconstrained, contract
from graceful.spec import Adaptive, Compatibility, RefreshSpec
from graceful.spec.training import LIMITS
from graceful.storage import Mirror, sha256_json
from graceful.targets.eviction import evict
from graceful.tasks.base import Samples, Task
from graceful.training.driver import TrainingJob, TrainingResult
from graceful.training.driver import train as run_training
from graceful.training.objective import needs

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
        data: Digest of the training samples.
        notes: What a reader of the report must know of the predecessors' outputs it was trained with.
        contract: What it had promised its predecessors, where they have budgets.
    """

    folder: Path
    digest: str
    result: TrainingResult
    data: str
    notes: tuple[str, ...] = ()
    contract: Contract | None = None


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
    samples = built.samples("train")
    _require_sound(built, samples)
    versions = [bundle.load(folder, augment_like=spec.task) for folder in ancestors]
    folder_of = {version.name: folder for version, folder in zip(versions, ancestors, strict=True)}
    wanted = select(versions, spec.compatibility.against) if spec.compatibility.losses else ()
    views = _views(spec, samples, augments=built.augments)
    mirror = Mirror.of(home)
    outputs = _Outputs(samples=samples, views=views, home=home, mirror=mirror, spec=spec, progress=progress)
    references = _references(
        spec, home=home, task=built, mirror=mirror, data=samples.digest, budgets=bool(wanted), progress=progress
    )
    free = [bundle.load(one.folder, augment_like=spec.task) for one in references]
    promised = _contract(spec, built, wanted, references, free)
    live = views.live or not needs(spec.compatibility) - {"head"}
    job = TrainingJob(
        spec=spec,
        run_dir=run_dir,
        predecessors=tuple(folder_of[version.name] for version in wanted),
        caches=tuple(None if live else outputs.of(version) for version in wanted),
        references=tuple(outputs.of(version) for version in free) if spec.compatibility.reference else (),
        contract=promised,
        task=task,
        data=samples.digest,
        mirror=mirror,
    )
    result = run_training(job, progress=progress)
    record(run_dir, promised, result)
    trained = _export(spec, built, result, run_dir / "model", data=samples.digest, notes=tuple(outputs.notes))
    return replace(trained, contract=promised)


def _require_sound(task: Task, train: Samples) -> None:
    """Refuse data on which a verdict would mean nothing: one class, or a test split that was trained on."""
    if len(task.classes) < 2:
        raise DataError(f"task: one class, {task.classes[0]!r}, leaves nothing to tell apart; give at least two")
    shared = np.intersect1d(train.ids, task.samples("test").ids)
    if len(shared):
        raise DataError(f"task: {len(shared)} ids are in train and in test, e.g. {shared[0]}; keep them apart")


def _views(spec: RefreshSpec, samples: Samples, *, augments: bool) -> Views:
    mode = targets.plan_views(spec.compatibility.targets, augments=augments)
    if mode != "keyed":
        if mode == "live" and spec.compatibility.reference:
            raise SpecError("compatibility.targets.mode: live has no cache for reference runs; write keyed")
        return Views(live=mode == "live")
    count = spec.compatibility.targets.views
    return Views(keyed=targets.key_views(samples.ids, seed=spec.train.seed, count=count))


@dataclass(frozen=True, kw_only=True)
class _Outputs:
    """Caches of what versions say about the training data, and notes about those that are not what they should be."""

    samples: Samples
    views: Views
    home: Path
    mirror: Mirror
    spec: RefreshSpec
    progress: Progress
    notes: list[str] = field(default_factory=list)
    open: list[targets.Cache] = field(default_factory=list)

    def of(self, version: Predecessor) -> Path:
        """Folder of a version's outputs, built if need be and compared with the version run now."""

        def tell(done: int, total: int) -> None:
            self.progress({"stage": f"outputs of {version.name}", "step": done, "steps": total})

        section = self.spec.compatibility.targets
        if section.limit_gb is not None:
            evict(self.home / "targets", limit=int(section.limit_gb * 1e9))
        cache = targets.build(
            version,
            self.samples,
            views=self.views.keyed,
            root=self.home / "targets",
            mirror=self.mirror,
            batch_size=self.spec.evaluate.batch_size,
            top=section.top,
            progress=tell,
        )
        self.open.append(cache)
        covered = cache.coverage(self.samples.ids)
        if covered < 1.0:
            partial = f"its outputs are finite on {covered:.1%} of the training samples"
            self.notes.append(f"{version.name}: {partial}")
        cache.check(version, self.samples, self.views.keyed).require(f"{cache.folder}: {version.name}")
        return cache.folder


def _references(
    spec: RefreshSpec, *, home: Path, task: Task, mirror: Mirror, data: str, budgets: bool, progress: Progress
) -> list[Trained]:
    """Train the unconstrained runs: those to distil from, or one to measure budgets with.

    A reference run depends on task, training data and recipe alone, so it is kept under their digest and shared by all
    runs, whichever model family they belong to.
    """
    section, found = spec.compatibility, []
    runs = section.reference.runs if section.reference else 0
    if budgets and isinstance(section.weighting, Adaptive) and section.weighting.reference_error is None:
        runs = max(runs, 1)
    for index in range(1, runs + 1):
        found.append(_reference(spec, index, home=home, task=task, mirror=mirror, data=data, progress=progress))
    return found


def reference_run(spec: RefreshSpec, index: int, *, home: Path, task: Task, progress: Progress = silent) -> Path:
    """Bundle of an unconstrained run of this recipe, trained unless some run has done so.

    Args:
        spec: Its recipe; what it owes predecessors does not matter.
        index: From 1; each has a seed of its own.
        home: Folder of the caches that runs share.
        task: Built from the spec.
        progress: Called with each row of the metrics trace.
    """
    data, mirror = task.samples("train").digest, Mirror.of(home)
    return _reference(spec, index, home=home, task=task, mirror=mirror, data=data, progress=progress).folder


def _reference(
    spec: RefreshSpec, index: int, *, home: Path, task: Task, mirror: Mirror, data: str, progress: Progress
) -> Trained:
    train = spec.train.model_copy(update={"seed": spec.train.seed + index * REFERENCE_SEED_STRIDE})
    recipe = {
        "task": spec.task.model_dump(mode="json"),
        "transform": tasks.transform_digest(spec.task),
        "train": train.model_dump(mode="json", exclude=LIMITS),
        "data": data,
    }
    name = f"reference-{sha256_json(recipe)[:16]}"
    shared = {"model": "reference", "name": name, "compatibility": Compatibility(), "train": train}
    free = spec.model_copy(update=shared)
    work = home / "references" / f"{name}.{spec.run_id}"
    job = TrainingJob(spec=free, run_dir=work, task=task, data=data, mirror=mirror)
    return _shared(job, home / "references" / name, task=task, data=data, progress=progress)


def _shared(job: TrainingJob, folder: Path, *, task: Task, data: str, progress: Progress) -> Trained:
    """Train a run into a folder of its own and seal it under a name that all runs share; the first to finish wins."""
    mirror, work = job.mirror, job.run_dir
    with exclusive(folder.parent.with_name("locks") / folder.name, wait=True):
        if not mirror.unseal(folder):
            _export(job.spec, task, run_training(job, progress=progress), work / "model", data=data)
            for checkpoints in ("ray", "checkpoints"):
                mirror.forget_folder(work / checkpoints)
            work.rename(folder)
            mirror.seal(folder)
            mirror.forget_folder(work)
        here = replace(job, run_dir=folder, mirror=Mirror.NONE)
        result = run_training(here, progress=progress)
        digest = bundle.digest(folder / "model")
    return Trained(folder=folder / "model", digest=digest, result=result, data=data)


def _contract(
    spec: RefreshSpec,
    task: Task,
    chain: Sequence[Predecessor],
    references: Sequence[Trained],
    free: Sequence[Predecessor],
) -> Contract | None:
    """Budgets, where predecessors have them; infeasible ones are refused here, before a step is taken."""
    weighting = spec.compatibility.weighting
    if not isinstance(weighting, Adaptive) or not chain:
        return None
    runs = [
        Unconstrained(version=version, errors=tuple(row["validation_error"] for row in one.result.history))
        for version, one in zip(free, references, strict=True)
    ]
    return contract(weighting, task, chain, references=runs, batch_size=spec.evaluate.batch_size)


def _export(
    spec: RefreshSpec, task: Task, result: TrainingResult, folder: Path, *, data: str, notes: tuple[str, ...] = ()
) -> Trained:
    network = task.network(task.classes)
    network.load_state_dict(load_file(result.weights))
    digest = bundle.save(folder, network=network, spec=spec, classes=task.classes)
    return Trained(folder=folder, digest=digest, result=result, data=data, notes=notes)
