"""A search while it runs: a live table on a terminal, one line per trial elsewhere; its result. In the driver."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from graceful.errors import EXIT_HELD, RegistryError
from graceful.programs.present import Talk
from graceful.programs.runs.run import Run
from graceful.programs.tuning import result
from graceful.programs.tuning.program import SPEC, Watch, tune
from graceful.programs.tuning.study import Tried
from graceful.programs.tuning.words import conclusion, point_text
from graceful.spec import RefreshSpec

SHOWN = 12
"""Rows of the live table: the best and the latest."""


def search_and_show(run: Run, talk: Talk) -> tuple[dict[str, Any], int, Any]:
    """Search and show it; returns the result, the exit code, and how to print it."""
    with talk.live() as show:

        def watch(before: Sequence[Tried]) -> Watch:
            return watching(run, before, talk=talk, show=show)

        document = tune(run, progress=talk, watch=watch)
    code = EXIT_HELD if document["outcome"] == result.UNMET else 0

    def print_result(console: Console) -> None:
        console.print(_table(document["candidates"], run.spec))
        for line in conclusion(document):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        folder = document["folder"]
        console.print(f"pictures: {folder}/tune.html", markup=False, highlight=False, soft_wrap=True)
        if document["outcome"] == result.MET:
            step = "copy it and `graceful refresh` it:" if "://" in folder else "graceful refresh"
            console.print(f"next:     {step} {folder}/{SPEC}", markup=False, highlight=False, soft_wrap=True)

    return document, code, print_result


def watching(run: Run, before: Sequence[Tried], *, talk: Talk, show: Any = None) -> Watch:
    """Tell people and MLflow about every trial."""
    log = run.store.search_log(run.spec.recorded(), run_id=run.spec.run_id)
    trials_by_number = {trial.number: trial for trial in before}

    def record(tried: Tried) -> None:
        log.trial(tried.number, point=tried.point, record=tried.record, state=tried.state)

    for trial in before:
        record(trial)

    def on_trial(tried: Tried) -> None:
        trials_by_number[tried.number] = tried
        try:
            record(tried)
        except RegistryError as e:  # the journal has it; it is recorded at the end, or when the search continues
            talk({"stage": "registry", "why": e.message})
        if show is not None:
            show(live_table(list(trials_by_number.values())))
        elif tried.state != "running":
            talk({"stage": "trial", "number": tried.number, "state": tried.state, **_facts(tried)})

    def concluded(document: dict[str, Any], files: Sequence[Path]) -> None:
        for trial in trials_by_number.values():
            record(trial)
        log.end(document, files)

    return Watch(trial=on_trial, result=concluded)


def _facts(tried: Tried) -> dict[str, Any]:
    record = tried.record
    if tried.state != "complete":
        return {"why": record.get("failed", "")}
    facts = {"error": record["error"], "excess_upper": record["excess_upper"], "nfr": record["nfr"]}
    return {**facts, "feasible": record["feasible"], "seconds": record["seconds"], "point": point_text(tried.point)}


def live_table(trials: Sequence[Tried]) -> Table:
    """Return a table of the running trials, the best and the latest."""
    completed = [trial for trial in trials if trial.state == "complete"]
    running = [trial for trial in trials if trial.state == "running"]
    best = sorted(completed, key=lambda trial: (not trial.feasible, trial.record["nfr"]))[: SHOWN // 2]
    latest = [trial for trial in sorted(completed, key=lambda trial: -trial.number) if trial not in best][
        : SHOWN - len(best)
    ]
    table = Table(title=f"{len(completed)} trials complete, {len(running)} running", title_justify="left")
    for column in ("trial", "NFR", "error", "excess at most", "keeps it", "seconds", "point"):
        table.add_column(column, justify="left" if column == "point" else "right")
    for trial in [*best, *latest]:
        record = trial.record
        cells = (f"{100 * record['nfr']:.2f}", f"{100 * record['error']:.2f}", f"{100 * record['excess_upper']:+.2f}")
        keeps_error = "[green]yes[/green]" if trial.feasible else "[yellow]no[/yellow]"
        table.add_row(str(trial.number), *cells, keeps_error, f"{record['seconds']:.0f}", point_text(trial.point))
    for trial in running:
        table.add_row(str(trial.number), "", "", "", "", "...", point_text(trial.point))
    return table


def _table(candidates: Sequence[Mapping[str, Any]], spec: RefreshSpec) -> Table:
    title = f"{spec.run_id}: best trials again, fresh seeds, held-back ids"
    table = Table(title=title, title_justify="left", caption="rates in percent", caption_justify="left")
    for column in (
        "trial",
        "NFR promised",
        "NFR kept",
        "reference NFR",
        "error kept",
        "limit",
        "excess at most",
        "keeps it",
    ):
        table.add_column(column, justify="right")
    for candidate in candidates:
        score = candidate["held_back"]
        if score is None:
            table.add_row(str(candidate["trial"]), _pct(candidate["promised"]["nfr"]), "failed", "", "", "", "", "no")
            continue
        table.add_row(
            str(candidate["trial"]),
            _pct(candidate["promised"]["nfr"]),
            _pct(score["nfr"]),
            _pct(score["reference_nfr"]),
            _pct(score["error"]),
            _pct(score["limit"]),
            f"{100 * score['excess_upper']:+.2f}",
            "yes" if score["feasible"] else "no",
        )
    return table


def _pct(rate: float) -> str:
    return f"{100 * rate:.2f}"
