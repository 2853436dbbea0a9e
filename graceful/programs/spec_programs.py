"""Programs that read a resolved spec: result, exit code, and what a terminal shows of it. Runs in the driver.

Programs are imported when they run, so that a command loads what it needs alone.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict

from rich.console import Console

from graceful import gate
from graceful.environment import RUN_SPEC_VARIABLE
from graceful.errors import EXIT_HELD, SpecError
from graceful.programs import default_home
from graceful.programs.outcomes import Outcome, lines_of
from graceful.programs.present import Talk
from graceful.programs.runs.run import Run


def refreshed(run: Run, progress: Talk) -> Outcome:
    """Refresh a version: train, evaluate, judge, register, promote; or say why there is nothing to do."""
    from graceful.programs.evaluation.constraint_report import FILE as CONSTRAINTS
    from graceful.programs.messages import notifications
    from graceful.programs.refresh import refresh
    from graceful.programs.runs import failure_record
    from graceful.programs.runs.novelty import skipped
    from graceful.views.chain import Judged, chain_table, pair_table, pairs_of
    from graceful.views.constraints import constraint_table, remarks

    skip = skipped(run) if run.spec.if_new_data else None
    if skip is not None:
        notifications.of_refresh(run).again()
        return asdict(skip), 0, lines_of({skip.run_id: f"{skip.outcome}, {'; '.join(skip.reasons)}"})
    with failure_record.once(run, retried=RUN_SPEC_VARIABLE in os.environ):
        result, report = refresh(run, progress=progress)

    def show(console: Console) -> None:
        champion = "there is no champion yet" if result.champion is None else f"champion is version {result.champion}"
        title = f"{result.run_id}: {result.outcome}, version {result.version}, {champion}"
        console.print(chain_table([Judged.of(report, result.outcome)], title=title))
        if report.pairs:
            console.print(pair_table(pairs_of(report, result.outcome), title="query models on galleries"))
        path = run.folder / CONSTRAINTS
        constraints = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"predecessors": []}
        if any(predecessor["budget"] is not None for predecessor in constraints["predecessors"]):
            console.print(constraint_table(constraints))
        for line in (*(remarks(constraints) if constraints["predecessors"] else ()), *result.reasons):
            console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
        page = result.report.removesuffix(".json") + ".html"
        console.print(f"report: {page}", markup=False, highlight=False, soft_wrap=True)
        console.print(
            f"next:   graceful lineage {run.spec.model}   |   graceful ui   |   graceful gate {result.report} SPEC",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )

    return asdict(result), EXIT_HELD if result.outcome == gate.Outcome.HELD else 0, show


def _train(run: Run, progress: Talk) -> Outcome:
    from graceful.programs.refresh import train_only

    trained = train_only(run, progress=progress)
    result = {
        "run_id": run.spec.run_id,
        "bundle": str(trained.folder),
        "digest": trained.digest,
        "steps": trained.result.steps,
        "seconds": round(trained.result.seconds, 1),
        "validation_error": trained.result.validation_error,
    }
    return result, 0, lines_of(result)


def _evaluate(run: Run, progress: Talk) -> Outcome:
    from graceful.programs.refresh import evaluate_only
    from graceful.views.chain import Judged, chain_table, pair_table, pairs_of

    report, verdict = evaluate_only(run, progress=progress)
    path = run.folder / "report.json"
    result = {"run_id": run.spec.run_id, "report": str(path), "outcome": str(verdict.outcome)}

    def show(console: Console) -> None:
        console.print(chain_table([Judged.of(report, verdict.outcome)], title=run.spec.run_id))
        if report.pairs:
            console.print(pair_table(pairs_of(report, str(verdict.outcome)), title="query models on galleries"))
        console.print(f"report: {path}", markup=False, highlight=False, soft_wrap=True)

    return result, 0, show


def matrix(run: Run, progress: Talk, *, names: Sequence[str]) -> Outcome:
    """Measure versions of a model against each other."""
    from graceful.programs.refresh import matrix_of
    from graceful.views.heat import matrix_tables

    document = matrix_of(run, names=names, progress=progress)

    def show(console: Console) -> None:
        for table in matrix_tables(document):
            console.print(table)
        console.print(f"matrix: {run.folder / 'matrix.html'}", markup=False, highlight=False, soft_wrap=True)

    return document, 0, show


def _tune(run: Run, progress: Talk) -> Outcome:
    from graceful.programs.runs import failure_record
    from graceful.programs.tuning.present import search_and_show
    from graceful.programs.tuning.program import run_of

    search = run_of(run.spec)
    with failure_record.once(search, retried=RUN_SPEC_VARIABLE in os.environ):
        return search_and_show(search, progress)


def space(run: Run, progress: Talk) -> Outcome:
    """Say what a search would try, without training anything."""
    from graceful.programs.tuning.words import dry_run

    document = dry_run(run.spec)
    if run.spec.compatibility.blend is not None:
        from graceful.programs.tuning import teacher
        from graceful.programs.tuning.program import run_of

        document["teacher"] = teacher.predicted(run_of(run.spec))
    flat = {key: value for key, value in document.items() if key != "space"}
    return document, 0, lines_of({**document["space"], **flat})


def _search_architecture(run: Run, progress: Talk) -> Outcome:
    from graceful.programs.architectures.present import result_lines, result_table
    from graceful.programs.architectures.program import run_of, search
    from graceful.programs.architectures.pruning import prune
    from graceful.spec.architectures import require_searchable

    pruning = require_searchable(run.spec).pruning
    document = (search if pruning is None else prune)(run_of(run.spec), progress=progress)

    def show(console: Console) -> None:
        console.print(result_table(document))
        for line in result_lines(document):
            console.print(line, markup=False, highlight=False, soft_wrap=True)

    return document, 0, show


def architectures(run: Run, progress: Talk) -> Outcome:
    """Say what a search of architectures would try, without training anything."""
    from graceful.programs.architectures import program, pruning
    from graceful.spec.architectures import require_searchable

    section = require_searchable(run.spec)
    document = (program if section.pruning is None else pruning).dry_run(run.spec)
    return document, 0, lines_of(document)


def lineage(options: argparse.Namespace) -> Outcome:
    """Show the versions of a model, and what each one broke."""
    from graceful.lineage import Store
    from graceful.lineage.family import tree
    from graceful.programs.versions.lineage import NEWEST, draw, unregistered_note, versions
    from graceful.views.chain import chain_table, pair_table

    model = options.model
    if not model:
        raise SpecError("lineage: give the name of a model, e.g. `graceful lineage glyphs`")
    store = Store(None, default_home())
    last = options.last or (NEWEST if options.output == "table" else None)
    listed = versions(store, model, last=last)
    family, foreign = store.family(model, most=options.last or NEWEST), unregistered_note(store, model)
    if options.draw is not None:
        draw(family, options.draw, listed)

    def show(console: Console) -> None:
        for line in tree(family):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        console.print(chain_table([version.judged() for version in listed], title=f"{model}, in {store.display_uri}"))
        paired = [pair for version in listed for pair in version.pairs()]
        if paired:
            console.print(pair_table(paired, title="query models on galleries"))
        if foreign:
            console.print(foreign, markup=False, highlight=False, soft_wrap=True)
        if family.older:
            console.print(f"the newest {last} versions; --last N shows more", markup=False, highlight=False)

    return [version.document() for version in listed], 0, show


PROGRAMS: dict[str, Callable[[Run, Talk], Outcome]] = {
    "refresh": refreshed,
    "train": _train,
    "evaluate": _evaluate,
    "tune": _tune,
    "search-architecture": _search_architecture,
}
