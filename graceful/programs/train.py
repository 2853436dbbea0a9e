"""Train one version against its predecessors: spec and bundles in, a new bundle out. Runs in the driver."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from graceful import tasks
from graceful.chain import Kept, Predecessor, select
from graceful.chain.contract import Contract
from graceful.models import bundle
from graceful.programs import exclusive
from graceful.programs.availability import reads_outputs, require_usable
from graceful.programs.constraint_report import record
from graceful.programs.contract import (
    ConstraintOutputs,
    Unconstrained,
    ask,
    contract,
    near_chance,
    require_kept,
    require_possible,
)
from graceful.programs.finishing import finish
from graceful.programs.inspection import require_answers
from graceful.programs.outputs import CachedOutputs, Views
from graceful.programs.readiness import require_ready
from graceful.spec import Adaptive, Compatibility, RefreshSpec, Registry
from graceful.spec.training import LIMITS
from graceful.storage import Mirror, sha256_json
from graceful.tasks.base import Samples, Task, notes_of
from graceful.training.driver import TrainingJob, TrainingResult
from graceful.training.driver import train as run_training
from graceful.training.job import begun
from graceful.training.start import require_start

Progress = Callable[[Mapping[str, object]], None]
REFERENCE_SEED_STRIDE = 1009
"""Reference run r uses seed + r * stride, so that its seeds never meet those of neighbouring runs."""


def silent(row: Mapping[str, object]) -> None:
    """Report no progress."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A new version on disk.

    Attributes:
        folder: Its bundle.
        digest: SHA-256 of the bundle.
        result: How training went.
        data: Digest of the training samples.
        notes: What a reader of the report must know of the data, and of the predecessors' outputs it was trained with.
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
    checked: bool = False,
    progress: Progress = silent,
) -> Trained:
    """Train the version a spec describes; finished parts are reused, an interrupted run resumes.

    Args:
        spec: What to train.
        run_dir: Folder of this run.
        home: Folder of the caches that runs share.
        ancestors: Bundles of the chain, latest first.
        task: Already built task, for callers that train many versions on the same data.
        checked: The caller has called `require_ready`.
        progress: Called with each row of the metrics trace.

    Raises:
        SpecError, DataError: The spec does not fit the data or the chain.
        TrainingError: Training failed; nothing of the chain is touched.
    """
    spec = spec.model_copy(update={"registry": Registry()})  # workers and their records need no address of it
    built = task or tasks.build(spec.task)
    if not checked:
        require_ready(spec, built, run_dir=run_dir)
    samples = built.samples("train")
    of_data = notes_of(built)
    if of_data:
        progress({"stage": "data", "notes": of_data})
    job, notes = _prepared(spec, built, samples, run_dir=run_dir, home=home, ancestors=ancestors, progress=progress)
    result = run_training(replace(job, task=task), progress=progress)
    record(run_dir, job.contract, result)
    silent = [f"{one}: never weighed a sample, so it constrained nothing" for one in result.silent]
    trained = _export(spec, built, result, run_dir / "model", data=samples.digest, start=job.start)
    return replace(trained, contract=job.contract, notes=(*of_data, *notes, *silent, *trained.notes))


def _prepared(
    spec: RefreshSpec,
    built: Task,
    samples: Samples,
    *,
    run_dir: Path,
    home: Path,
    ancestors: Sequence[Path],
    progress: Progress,
) -> tuple[TrainingJob, list[str]]:
    """The job, with every cache and reference run that it reads, and what a reader of the report must know of them."""
    versions = [
        bundle.load(folder, augment_like=spec.task, trusted=spec.trust.code_digests, at_least=Kept.NOTHING)
        for folder in ancestors
    ]
    require_answers(versions, built.samples("test"), split="test")
    start = require_start(spec, ancestors[0] if ancestors else None, task=built)
    folder_of = {version.name: folder for version, folder in zip(versions, ancestors, strict=True)}
    wanted = select(versions, spec.compatibility.against) if spec.compatibility.losses else ()
    views = Views.of(spec, samples, augments=built.augments)
    require_usable(wanted, spec.compatibility, built.classes, clean=views.keyed is None, live=views.live)
    mirror = Mirror.of(home)
    outputs = CachedOutputs(
        samples=samples,
        views=views,
        home=home,
        mirror=mirror,
        spec=spec,
        progress=progress,
        lost=frozenset(version.digest for version in versions if version.lost),
    )
    asked = _asked(spec, built, wanted)
    weak, judged = _near_chance(spec, run_dir, asked, wanted)
    cached = [not views.live and reads_outputs(version, spec.compatibility, built.classes) for version in wanted]
    caches = [
        outputs.of(version, folder_of[version.name]) if yes else None
        for version, yes in zip(wanted, cached, strict=True)
    ]
    recipe = _Recipe(spec=spec, home=home, task=built, mirror=mirror, data=samples.digest, start=start)
    references = _references(recipe, budgets=bool(wanted), progress=progress)
    free = [bundle.load(one.folder, augment_like=spec.task, trusted=spec.trust.code_digests) for one in references]
    promised = _contract(spec, asked, references, free, progress)
    job = TrainingJob(
        spec=spec,
        run_dir=run_dir,
        predecessors=tuple(folder_of[version.name] for version in wanted),
        caches=tuple(caches),
        references=tuple(outputs.of(version, one.folder) for version, one in zip(free, references, strict=True))
        if spec.compatibility.reference
        else (),
        contract=promised,
        near_chance=weak,
        start=start,
        data=samples.digest,
        mirror=mirror,
    )
    return job, [*outputs.notes, *judged]


@dataclass(frozen=True, kw_only=True)
class _Recipe:
    """What a reference run depends on, and where it is kept.

    Attributes:
        spec: Its task and training.
        home: Folder of the caches that runs share.
        task: Built.
        mirror: Of the home.
        data: Digest of the training samples.
        start: Bundle at whose weights it starts, like the run it is compared with; None: at random.
    """

    spec: RefreshSpec
    home: Path
    task: Task
    mirror: Mirror
    data: str
    start: Path | None


def _references(recipe: _Recipe, *, budgets: bool, progress: Progress) -> list[Trained]:
    """Train the unconstrained runs: those to distil from, or one to measure budgets with.

    A reference run depends on task, training data, recipe and start alone, so it is kept under their digest and shared
    by all runs, whichever model family they belong to.
    """
    section = recipe.spec.compatibility
    runs = section.reference.runs if section.reference else 0
    if budgets and isinstance(section.weighting, Adaptive) and section.weighting.reference_error is None:
        runs = max(runs, 1)
    return [_reference(recipe, index, progress=progress) for index in range(1, runs + 1)]


def reference_run(
    spec: RefreshSpec, index: int, *, home: Path, task: Task, latest: Path | None = None, progress: Progress = silent
) -> Path:
    """Bundle of an unconstrained run of this recipe, trained unless some run has done so.

    Args:
        spec: Its recipe; what it owes predecessors does not matter.
        index: From 1; each has a seed of its own.
        home: Folder of the caches that runs share.
        task: Built from the spec.
        latest: Bundle of the latest predecessor, for `train.start: latest`.
        progress: Called with each row of the metrics trace.

    Raises:
        SpecError: It cannot start there.
    """
    start, data = require_start(spec, latest, task=task), task.samples("train").digest
    recipe = _Recipe(spec=spec, home=home, task=task, mirror=Mirror.of(home), data=data, start=start)
    return _reference(recipe, index, progress=progress).folder


def _reference(recipe: _Recipe, index: int, *, progress: Progress) -> Trained:
    spec, home = recipe.spec, recipe.home
    train = spec.train.model_copy(update={"seed": spec.train.seed + index * REFERENCE_SEED_STRIDE})
    document = {
        "task": spec.task.model_dump(mode="json"),
        "transform": tasks.transform_digest(spec.task),
        "train": train.model_dump(mode="json", exclude=LIMITS),
        "data": recipe.data,
    }
    if recipe.start is not None:
        document["start"] = bundle.recorded_digest(recipe.start)
    name = f"reference-{sha256_json(document)[:16]}"
    shared = {"model": "reference", "name": name, "compatibility": Compatibility(), "train": train}
    job = TrainingJob(
        spec=spec.model_copy(update=shared),
        run_dir=home / "references" / f"{name}.{spec.run_id}",
        start=recipe.start,
        task=recipe.task,
        data=recipe.data,
        mirror=recipe.mirror,
    )
    return _shared(job, home / "references" / name, task=recipe.task, data=recipe.data, progress=progress)


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


def _focused(spec: RefreshSpec) -> bool:
    return any(loss.prefers_samples for loss in spec.compatibility.losses)


def _asked(spec: RefreshSpec, task: Task, chain: Sequence[Predecessor]) -> ConstraintOutputs | None:
    """What predecessors say of the constraint split, where budgets or their errors matter; refuses what cannot be met.

    None where nobody needs to know, or nobody can: the split is empty, or the nearest cannot be run.
    """
    section = spec.compatibility
    if isinstance(section.weighting, Adaptive):
        if not chain:
            return None
        found = ask(task, chain, batch_size=spec.evaluate.batch_size)
        require_possible(section.weighting, found)
        return found
    able = [version for version in chain if not version.lost]
    if not _focused(spec) or section.near_chance is None or len(able) < 2 or able[0] is not chain[0]:
        return None
    if not len(task.samples("constraint")):
        return None
    return ask(task, able, batch_size=spec.evaluate.batch_size)


def _near_chance(
    spec: RefreshSpec, run_dir: Path, asked: ConstraintOutputs | None, chain: Sequence[Predecessor]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the predecessors near chance, and sentences for the report.

    A run that was begun keeps to what it recorded: weights that were lost meanwhile must not change it.
    """
    factor = spec.compatibility.near_chance
    if not factor or not _focused(spec):
        return (), ()
    found = near_chance(asked, factor=factor) if asked else {}
    recorded = begun(run_dir).get("near_chance")
    if recorded is not None:
        kept = "was near chance when this run began; it pulls only where it is right"
        return tuple(recorded), tuple(found.get(name, f"{name}: {kept}") for name in recorded)
    notes = []
    for version in chain[1:]:
        lost = next((one for one in (version, chain[0]) if one.lost), None)
        if lost is not None:
            who = "" if lost is version else f" of {lost.name}"
            notes.append(f"{version.name}: not known whether it is near chance, the weights{who} are gone")
    return tuple(found), (*found.values(), *notes)


def _contract(
    spec: RefreshSpec,
    asked: ConstraintOutputs | None,
    references: Sequence[Trained],
    free: Sequence[Predecessor],
    progress: Progress,
) -> Contract | None:
    """Budgets, where predecessors have them; infeasible ones are refused here, before a step is taken."""
    weighting = spec.compatibility.weighting
    if asked is None or not isinstance(weighting, Adaptive):
        return None
    runs = [
        Unconstrained(version=version, errors=tuple(row["validation_error"] for row in one.result.history))
        for version, one in zip(free, references, strict=True)
    ]
    promised = contract(weighting, asked, references=runs)
    for budget in promised.budgets:
        facts = {"budget": budget.bound, "status": str(budget.status), "error": budget.standing.error}
        reference = {"reference_error": budget.standing.reference_error, "ids": budget.standing.n}
        progress({"stage": "budget", "version": budget.name, **facts, **reference})
    require_kept(weighting, promised)
    return promised


def _export(
    spec: RefreshSpec, task: Task, result: TrainingResult, folder: Path, *, data: str, start: Path | None = None
) -> Trained:
    digest, notes = finish(spec, task, weights=result.weights, folder=folder, start=start)
    return Trained(folder=folder, digest=digest, result=result, data=data, notes=notes)
