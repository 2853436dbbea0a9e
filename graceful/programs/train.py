"""Train one version against its predecessors: a run and its ancestors in, a new bundle out. Runs in the driver."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from graceful import tasks
from graceful.chain import Predecessor, select
from graceful.chain.ancestor import Ancestor
from graceful.chain.contract import Contract
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
from graceful.programs.finishing import Trained, finish
from graceful.programs.inspection import require_answers
from graceful.programs.outputs import CachedOutputs, Views
from graceful.programs.readiness import require_ready
from graceful.programs.reference_training import Recipe, train_references
from graceful.programs.run import Progress, Run, silent
from graceful.spec import Adaptive, RefreshSpec, Registry
from graceful.tasks.base import Samples, Task, notes_of
from graceful.training.driver import TrainingJob
from graceful.training.driver import train as run_training
from graceful.training.job import begun
from graceful.training.start import require_start


def train(
    run: Run,
    *,
    ancestors: Sequence[Ancestor] = (),
    task: Task | None = None,
    checked: bool = False,
    progress: Progress = silent,
) -> Trained:
    """Train the version a spec describes; finished parts are reused, an interrupted run resumes.

    Args:
        run: What to train, and where.
        ancestors: The chain, latest first.
        task: Already built task, for callers that train many versions on the same data.
        checked: The caller has called `require_ready`.
        progress: Called with each row of the metrics trace.

    Raises:
        SpecError, DataError: The spec does not fit the data or the chain.
        TrainingError: Training failed; nothing of the chain is touched.
    """
    spec = run.spec.model_copy(update={"registry": Registry()})  # workers and their records need no address of it
    built = task or tasks.build(spec.task)
    if not checked:
        require_ready(spec, built, run_dir=run.folder)
    samples = built.samples("train")
    of_data = notes_of(built)
    if of_data:
        progress({"stage": "data", "notes": of_data})
    job, notes = _prepared(replace(run, spec=spec), built, samples, ancestors=ancestors, progress=progress)
    result = run_training(replace(job, task=task), progress=progress)
    record(run.folder, job.contract, result)
    silent_terms = [f"{one}: never weighed a sample, so it constrained nothing" for one in result.silent]
    digest, of_weights = finish(spec, built, weights=result.weights, folder=run.model, start=job.start)
    return Trained(
        folder=run.model,
        digest=digest,
        result=result,
        data=samples.digest,
        notes=(*of_data, *notes, *silent_terms, *of_weights),
        contract=job.contract,
    )


def _prepared(
    run: Run, task: Task, samples: Samples, *, ancestors: Sequence[Ancestor], progress: Progress
) -> tuple[TrainingJob, list[str]]:
    """The job, with every cache and reference run that it reads, and what a reader of the report must know of them."""
    spec = run.spec
    require_answers([one.stored.open() for one in ancestors], task.samples("test"), split="test")
    start = require_start(spec, ancestors[0].stored if ancestors else None, task=task)
    wanted = select(ancestors, spec.compatibility.against) if spec.compatibility.losses else ()
    versions, views = [one.stored.open() for one in wanted], Views.of(spec, samples, augments=task.augments)
    require_usable(versions, spec.compatibility, task.classes, clean=views.keyed is None, live=views.live)
    outputs = CachedOutputs(
        samples=samples,
        views=views,
        home=run.home,
        mirror=run.mirror,
        spec=spec,
        progress=progress,
        lost=frozenset(one.stored.open().digest for one in ancestors if one.stored.open().unrunnable_reason),
    )
    asked = _asked(spec, task, versions)
    weak, judged = _near_chance(run, asked, versions)
    chain = tuple(replace(_with_cache(one, outputs, task), near_chance=one.name in weak) for one in wanted)
    recipe = Recipe(run=run, task=task, data=samples.digest, start=start)
    references = train_references(recipe, budgets=bool(wanted), progress=progress)
    promised = _contract(run, asked, references, progress)
    distilled = references if spec.compatibility.reference else ()
    job = TrainingJob(
        spec=spec,
        run_dir=run.folder,
        predecessors=chain,
        references=tuple(outputs.of(run.version(one.folder)) for one in distilled),
        contract=promised,
        start=start,
        data=samples.digest,
        mirror=run.mirror,
    )
    return job, [*outputs.notes, *judged]


def _with_cache(ancestor: Ancestor, outputs: CachedOutputs, task: Task) -> Ancestor:
    """The ancestor with the folder of its outputs, if training reads them and does not run it in every step."""
    if outputs.views.live or not reads_outputs(ancestor.stored.open(), outputs.spec.compatibility, task.classes):
        return ancestor
    return replace(ancestor, cache=outputs.of(ancestor.stored))


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
    able = [version for version in chain if not version.unrunnable_reason]
    if not _focused(spec) or section.near_chance is None or len(able) < 2 or able[0] is not chain[0]:
        return None
    if not len(task.samples("constraint")):
        return None
    return ask(task, able, batch_size=spec.evaluate.batch_size)


def _near_chance(
    run: Run, asked: ConstraintOutputs | None, chain: Sequence[Predecessor]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the predecessors near chance, and sentences for the report.

    A run that was begun keeps to what it recorded: weights that were lost meanwhile must not change it.
    """
    factor = run.spec.compatibility.near_chance
    if not factor or not _focused(run.spec):
        return (), ()
    found = near_chance(asked, factor=factor) if asked else {}
    recorded = begun(run.folder).get("near_chance")
    if recorded is not None:
        kept = "was near chance when this run began; it pulls only where it is right"
        return tuple(recorded), tuple(found.get(name, f"{name}: {kept}") for name in recorded)
    notes = []
    for version in chain[1:]:
        lost = next((one for one in (version, chain[0]) if one.unrunnable_reason), None)
        if lost is not None:
            who = "" if lost is version else f" of {lost.name}"
            notes.append(f"{version.name}: not known whether it is near chance, the weights{who} are gone")
    return tuple(found), (*found.values(), *notes)


def _contract(
    run: Run, asked: ConstraintOutputs | None, references: Sequence[Trained], progress: Progress
) -> Contract | None:
    """Budgets, where predecessors have them; infeasible ones are refused here, before a step is taken."""
    weighting = run.spec.compatibility.weighting
    if asked is None or not isinstance(weighting, Adaptive):
        return None
    runs = [
        Unconstrained(
            version=run.version(one.folder).whole(),
            errors=tuple(row["validation_error"] for row in one.result.history),
        )
        for one in references
    ]
    promised = contract(weighting, asked, references=runs)
    for budget in promised.budgets:
        facts = {"budget": budget.bound, "status": str(budget.status), "error": budget.standing.error}
        reference = {"reference_error": budget.standing.reference_error, "ids": budget.standing.n}
        progress({"stage": "budget", "version": budget.name, **facts, **reference})
    require_kept(weighting, promised)
    return promised
