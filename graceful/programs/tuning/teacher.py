"""Where a search of a blend begins: the front of its teacher, known from outputs before a trial is trained. Driver."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from graceful import tasks
from graceful.chain import Predecessor, select, shares
from graceful.chain.ancestor import Ancestor
from graceful.chain.shares import Evidence
from graceful.errors import GracefulError
from graceful.losses.search import Value
from graceful.programs.fitting import blend
from graceful.programs.fitting.reference_training import finished_reference, reference_run
from graceful.programs.runs import ancestry
from graceful.programs.runs.run import Run
from graceful.programs.tuning import space
from graceful.programs.tuning.bench import Bench, of_trials
from graceful.programs.tuning.splits import part
from graceful.spec import RefreshSpec
from graceful.tasks.base import Task

MARGINS = (1.0, 0.5, 0.0, 2.0)
"""Multiples of `blend.margin` for which a search begins with the share that the teacher's front names."""


def evidence(
    spec: RefreshSpec, task: Task, *, chain: Sequence[Predecessor], references: Sequence[Predecessor]
) -> Evidence:
    """Ask all versions about the part of the held-out samples that the search sees."""
    section = spec.compatibility.blend
    assert section is not None
    return blend.evidence_of(
        section,
        chain,
        references,
        blend.HeldOut.of([part(task, spec, "search")]),
        classes=task.classes,
        batch_size=spec.evaluate.batch_size,
    )


def known_points(bench: Bench) -> list[dict[str, Value]]:
    """Return the points that a search of a blend begins with; its reference runs must be finished."""
    spec, section = bench.spec, bench.spec.compatibility.blend
    assert section is not None
    run, latest = Run.of(of_trials(spec), home=bench.home, folder=bench.folder), bench.ancestors[0].stored
    references = [
        run.version(reference_run(run, index, task=bench.task, latest=latest).folder).whole()
        for index in range(1, bench.references + 1)
    ]
    known = evidence(spec, bench.task, chain=_chain(spec, bench.ancestors), references=references)
    front, parameters = shares.front(known), space.parameters(spec)
    written = space.written(spec)
    points: list[dict[str, Value]] = []
    for multiple in MARGINS:
        bound = (1.0 - multiple * section.margin) * known.reference_error
        total = shares.choose(front, largest_error=bound).total
        point = space.within({**written, space.SHARE: total, "runs": bench.references}, parameters)
        if point not in points:
            points.append(point)
    return points


def predicted(run: Run) -> list[dict[str, Any]] | str:
    """Return the front of the teacher as rows, or why it is not known yet: nothing is trained for it."""
    try:
        ancestors = ancestry.fetch(run, ancestry.read(run.store, run.spec, run.folder, keep=False))
        if not ancestors:
            return f"not known, {run.spec.model} has no champion yet"
        return front_of(run, ancestors, tasks.build(run.spec.task))
    except GracefulError as e:
        return f"not known, {e.message}"


def front_of(run: Run, ancestors: Sequence[Ancestor], task: Task) -> list[dict[str, Any]] | str:
    """Return the front of the teacher of a search as rows, or why it is not known yet."""
    spec, section = run.spec, run.spec.compatibility.blend
    assert section is not None
    latest, trials = ancestors[0].stored, replace(run, spec=of_trials(spec))
    folders = [finished_reference(trials, index, task=task, latest=latest) for index in range(1, section.runs + 1)]
    references = [run.version(folder).whole() for folder in folders if folder is not None]
    if len(references) < section.runs:
        return f"not known, {section.runs - len(references)} of {section.runs} reference runs are not trained yet"
    known = evidence(spec, task, chain=_chain(spec, ancestors), references=references)
    return [
        {"share": teacher.total, "error": round(teacher.error, 4), "worst_nfr": round(teacher.worst, 4)}
        for teacher in shares.front(known)[::5]
    ]


def _chain(spec: RefreshSpec, ancestors: Sequence[Ancestor]) -> list[Predecessor]:
    return [ancestor.stored.whole() for ancestor in select(ancestors, spec.compatibility.against)]
