"""Train one version against its predecessors: a run and its ancestors in, a new bundle out. Runs in the driver."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

from graceful import tasks
from graceful.chain import Predecessor, select
from graceful.chain.ancestor import Ancestor
from graceful.chain.contract import Contract
from graceful.environment import PROFILE_VARIABLE
from graceful.learners import roles
from graceful.models import bases
from graceful.programs.fitting import blend
from graceful.programs.fitting.combining import combined
from graceful.programs.fitting.finishing import Trained, finish
from graceful.programs.fitting.pruned import pruned
from graceful.programs.fitting.readiness import require_ready
from graceful.programs.fitting.reference_training import Recipe, train_references
from graceful.programs.outputs.galleries import require_gallery
from graceful.programs.outputs.predecessor_outputs import CachedOutputs, Views
from graceful.programs.preparation.availability import reads_outputs, require_usable
from graceful.programs.preparation.contract import (
    ConstraintOutputs,
    Unconstrained,
    ask,
    contract,
    near_chance,
    require_kept,
    require_possible,
)
from graceful.programs.preparation.contract_record import record
from graceful.programs.preparation.inspection import require_answers
from graceful.programs.runs.run import Progress, Run, silent
from graceful.spec import Adaptive, RefreshSpec, Registry
from graceful.tasks.base import Samples, Task, notes_of
from graceful.training.driver import TrainingJob
from graceful.training.driver import train as run_training
from graceful.training.job import begun
from graceful.training.objective import needs
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
    if spec.train.method.kind == "combination":
        return combined(replace(run, spec=spec), built, ancestors, progress=progress)
    if spec.train.method.kind == "pruned":
        return pruned(replace(run, spec=spec), built, ancestors)
    if not checked:
        require_ready(spec, built, run_dir=run.folder)
    samples = built.samples("train")
    data_notes = notes_of(built)
    if data_notes:
        progress({"stage": "data", "notes": data_notes})
    job, blended, notes = prepared(replace(run, spec=spec), built, samples, ancestors=ancestors, progress=progress)
    result = run_training(replace(job, task=task), progress=progress)
    record(run.folder, job.contract, result)
    silent_terms = [f"{loss}: never weighed a sample, so it constrained nothing" for loss in result.silent]
    digest, weight_notes = finish(
        spec, built, weights=result.weights, folder=run.model, start=job.start, linearised=result.linearised
    )
    blend_notes: tuple[str, ...] = ()
    if blended is not None:
        new = run.version(run.model).whole()
        blend_notes = blend.record(run.folder, blended, new, batch_size=spec.evaluate.batch_size)
    return Trained(
        folder=run.model,
        digest=digest,
        result=result,
        data=samples.digest,
        notes=(*data_notes, *notes, *blend_notes, *result.notes, *silent_terms, *weight_notes),
        contract=job.contract,
    )


def prepared(
    run: Run, task: Task, samples: Samples, *, ancestors: Sequence[Ancestor], progress: Progress
) -> tuple[TrainingJob, blend.Blended | None, list[str]]:
    """Return the job, with every cache and reference run that it reads, the plan of its blend, and what a reader of the
    report must know of them."""
    spec = run.spec
    lineal = [ancestor for ancestor in ancestors if ancestor.is_ancestor]
    gallery = require_gallery(spec, ancestors, task=task)
    asked = [ancestor.stored.open() for ancestor in (*lineal, *([gallery] if gallery else ()))]
    require_answers(asked, task.samples("test"), split="test")
    start = require_start(spec, lineal[0].stored if lineal else None, task=task)
    selected = _selected(spec, lineal, gallery)
    versions, views = [ancestor.stored.open() for ancestor in selected], Views.of(spec, samples, augments=task.augments)
    require_usable(versions, spec.compatibility, task.classes, clean=views.keyed is None, live=views.live)
    outputs = CachedOutputs(
        samples=samples,
        views=views,
        home=run.home,
        mirror=run.mirror,
        spec=spec,
        progress=progress,
        lost=frozenset(
            ancestor.stored.open().digest for ancestor in ancestors if ancestor.stored.open().unrunnable_reason
        ),
    )
    constraint_outputs = _constraint_outputs(spec, task, versions)
    near_chance_names, chance_notes = _near_chance(run, constraint_outputs, versions)
    chain = tuple(
        replace(_with_cache(ancestor, outputs, task), near_chance=ancestor.name in near_chance_names)
        for ancestor in selected
    )
    recipe = Recipe(run=run, task=task, data=samples.digest, start=start)
    references = train_references(recipe, predecessors=bool(selected), progress=progress)
    budgets_contract = _contract(run, constraint_outputs, references, progress)
    blended = _blended(run, task, versions, references, progress=progress)
    distilled = references if spec.compatibility.reference or blended else ()
    job = TrainingJob(
        spec=spec,
        run_dir=run.folder,
        predecessors=chain,
        references=tuple(outputs.of(run.version(ancestor.folder)) for ancestor in distilled),
        contract=budgets_contract,
        shares=None if blended is None else blended.shares,
        start=start,
        data=samples.digest,
        base=bases.digest_of(spec.task),
        profile=os.environ.get(PROFILE_VARIABLE) == "1",
        mirror=run.mirror,
        home=run.home,
    )
    return job, blended, [*outputs.notes, *chance_notes]


def _blended(
    run: Run, task: Task, chain: Sequence[Predecessor], references: Sequence[Trained], *, progress: Progress
) -> blend.Blended | None:
    """Return the blend's shares, chosen from outputs on held-out samples; None where there is no blend."""
    section, batch_size = run.spec.compatibility.blend, run.spec.evaluate.batch_size
    if section is None or not chain:
        return None
    held_out, evidence = blend.HeldOut.of_task(task), None
    if not any(version.unrunnable_reason for version in chain):
        runs = [run.version(trained.folder).whole() for trained in references]
        evidence = blend.evidence_of(section, chain, runs, held_out, batch_size=batch_size, classes=task.classes)
    blended = blend.plan(
        section,
        evidence,
        names=[version.name for version in chain],
        weighting=run.spec.compatibility.weighting,
        held_out=held_out,
        recorded=begun(run.folder).get("shares"),
    )
    progress(blend.progress_row(blended))
    return blended


def _selected(spec: RefreshSpec, lineal: Sequence[Ancestor], gallery: Ancestor | None) -> tuple[Ancestor, ...]:
    """Return what the losses see: of a query model its gallery model, and ancestors where `against` asks for them."""
    if not spec.compatibility.sees_predecessors:
        return ()
    if gallery is None:
        return select(lineal, spec.compatibility.against)
    return select([gallery, *lineal], spec.compatibility.against)


def _with_cache(ancestor: Ancestor, outputs: CachedOutputs, task: Task) -> Ancestor:
    """Return the ancestor with the folders of its outputs, if training reads them and does not run it in every step."""
    if outputs.views.live or not reads_outputs(ancestor.stored.open(), outputs.spec.compatibility, task.classes):
        return ancestor
    cached = replace(ancestor, cache=outputs.of(ancestor.stored))
    if "gallery" not in needs(outputs.spec.compatibility) or len(roles(ancestor.stored.open().learner)) == 1:
        return cached
    return replace(cached, gallery_cache=outputs.of(ancestor.stored, role="gallery"))


def _focused(spec: RefreshSpec) -> bool:
    return any(loss.prefers_samples for loss in spec.compatibility.losses)


def _constraint_outputs(spec: RefreshSpec, task: Task, chain: Sequence[Predecessor]) -> ConstraintOutputs | None:
    """Return the outputs of predecessors on the constraint split, where they are needed; refuses what cannot
    be met.

    None where it is not needed or cannot be known: the split is empty, or the nearest cannot be run.
    """
    section = spec.compatibility
    if isinstance(section.weighting, Adaptive):
        if not chain:
            return None
        outputs = ask(task, chain, batch_size=spec.evaluate.batch_size)
        require_possible(section.weighting, outputs)
        return outputs
    runnable = [version for version in chain if not version.unrunnable_reason]
    if not _focused(spec) or section.near_chance is None or len(runnable) < 2 or runnable[0] is not chain[0]:
        return None
    if not len(task.samples("constraint")):
        return None
    return ask(task, runnable, batch_size=spec.evaluate.batch_size)


def _near_chance(
    run: Run, constraint_outputs: ConstraintOutputs | None, chain: Sequence[Predecessor]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of the predecessors near chance, and sentences for the report.

    A run that was begun keeps to what it recorded: weights that were lost meanwhile must not change it.
    """
    factor = run.spec.compatibility.near_chance
    if not factor or not _focused(run.spec):
        return (), ()
    reasons = near_chance(constraint_outputs, factor=factor) if constraint_outputs else {}
    recorded = begun(run.folder).get("near_chance")
    if recorded is not None:
        kept_reason = "was near chance when this run began; it pulls only where it is right"
        return tuple(recorded), tuple(reasons.get(name, f"{name}: {kept_reason}") for name in recorded)
    notes = []
    for version in chain[1:]:
        unrunnable = next((candidate for candidate in (version, chain[0]) if candidate.unrunnable_reason), None)
        if unrunnable is not None:
            owner = "" if unrunnable is version else f" of {unrunnable.name}"
            notes.append(f"{version.name}: not known whether it is near chance, the weights{owner} are gone")
    return tuple(reasons), (*reasons.values(), *notes)


def _contract(
    run: Run, constraint_outputs: ConstraintOutputs | None, references: Sequence[Trained], progress: Progress
) -> Contract | None:
    """Return the budgets, where predecessors have them; infeasible ones are refused here, before a step is taken."""
    weighting = run.spec.compatibility.weighting
    if constraint_outputs is None or not isinstance(weighting, Adaptive):
        return None
    runs = [
        Unconstrained(
            version=run.version(trained.folder).whole(),
            errors=tuple(row["validation_error"] for row in trained.result.history),
        )
        for trained in references
    ]
    planned = contract(weighting, constraint_outputs, references=runs)
    for budget in planned.budgets:
        facts = {"budget": budget.bound, "status": str(budget.status), "error": budget.standing.error}
        reference = {"reference_error": budget.standing.reference_error, "ids": budget.standing.n}
        progress({"stage": "budget", "version": budget.name, **facts, **reference})
    require_kept(weighting, planned)
    return planned
