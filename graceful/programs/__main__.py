"""Entry point of a job: `python -m graceful.programs refresh < resolved-spec.json`. Runs in the driver process.

On a cluster the resolved spec is the file that GRACEFUL_RUN_SPEC names, and the last line on stdout is the outcome. A
held version ends with 0 there: a cluster that sees another code starts the job again, for the same verdict.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from graceful import consoles, crash, documents, environment, gate, homes, patience, redact, spec, startup
from graceful.environment import OUTCOME_VARIABLE, RUN_SPEC_VARIABLE
from graceful.errors import (
    EXIT_BUG,
    EXIT_HELD,
    EXIT_INFRASTRUCTURE,
    EXIT_INTERRUPTED,
    EXIT_PIPE_CLOSED,
    GracefulError,
    SpecError,
)
from graceful.launch import outcome
from graceful.programs import default_home, log_archive
from graceful.programs.present import Talk
from graceful.programs.run import Run


def main(arguments: list[str] | None = None) -> int:
    """Run one program and return its exit code; errors of ours are one line on stderr."""
    startup.write_anything()
    if RUN_SPEC_VARIABLE not in os.environ:
        return _ended(_main(arguments))
    with log_archive.kept() as archive:
        return _ended(_main(arguments, archive))


def _job_name(resolved: spec.RefreshSpec, program: str) -> str:
    """Return the run id under which a program was submitted: a search is a run beside that of its version."""
    trials = (resolved.tune or spec.Tune()).trials
    return f"{resolved.run_id}-{program}-{trials}" if program == "tune" else resolved.run_id


def _ended(ended: outcome.Outcome) -> int:
    """Tell others how the program ended, and return its exit code."""
    if OUTCOME_VARIABLE in os.environ:
        with contextlib.suppress(OSError):  # a full disk loses the reason, not the exit code
            Path(os.environ[OUTCOME_VARIABLE]).write_text(ended.line() + "\n", encoding="utf-8")
    if RUN_SPEC_VARIABLE not in os.environ:
        return ended.exit_code
    with startup.result_on_stdout(partial(_say, Console(stderr=True))):
        sys.stdout.write(ended.line() + "\n")
    return 0 if ended.exit_code == EXIT_HELD else ended.exit_code


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m graceful.programs", description=__doc__)
    parser.add_argument("program", choices=sorted([*PROGRAMS, *DOCUMENTS, "lineage"]))
    parser.add_argument("model", nargs="?", help="of lineage; the others read a resolved spec from stdin")
    parser.add_argument("--output", choices=("table", "json", "yaml"), default="table")
    parser.add_argument("--matrix", action="store_true", help="of evaluate: every version against every other")
    parser.add_argument("--versions", default="", help="of evaluate --matrix: only these, separated by commas")
    parser.add_argument("--draw", type=Path, help="of lineage: write the picture there")
    parser.add_argument("--last", type=int, help="of lineage: only so many of the newest versions")
    parser.add_argument("--dry-run", action="store_true", help="of searches: what would be searched")
    parser.add_argument("--quiet", action="store_true")
    return parser.parse_args(arguments)


def _main(arguments: list[str] | None, archive: log_archive.Archive | None = None) -> outcome.Outcome:
    options = _options(arguments)
    talk = Console(stderr=True)
    lines = logging.StreamHandler()
    lines.setFormatter(_Redacted("%(message)s"))
    logging.basicConfig(handlers=[lines])
    patience.report_waiting = _waits
    environment.clean()  # for MLflow and child processes, too
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a job that is stopped ends like Ctrl-C
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})  # kept while we were imported
        logging.getLogger().setLevel(startup.log_level(os.environ))
        run = None
        if options.program not in ("lineage", *DOCUMENTS):
            run = Run.of(spec.parse(_document(), where="the resolved spec"))
            if archive is not None:
                archive.begin(run, name=_job_name(run.spec, options.program))
        os.environ.update(homes.variables(run.home if run else default_home()))
        if options.program == "lineage":
            result, code, show = _lineage(options)
        elif options.program in DOCUMENTS:
            result, code, show = DOCUMENTS[options.program](_document())
        elif run is not None:
            with Talk(console=talk, quiet=options.quiet) as progress, contextlib.redirect_stdout(sys.stderr):
                names = [name.strip() for name in options.versions.split(",") if name.strip()]
                program = PROGRAMS[options.program]
                if options.matrix:
                    program = partial(_matrix, names=names)
                elif options.dry_run:
                    program = _space if options.program == "tune" else _architectures
                result, code, show = program(run, progress)
        with startup.result_on_stdout(partial(_say, talk)):
            _print(result, options.output, show)
    except GracefulError as e:
        _say(talk, e.message)
        retryable = e.exit_code == EXIT_INFRASTRUCTURE
        return outcome.Outcome(exit_code=e.exit_code, message=e.message, error=type(e).__name__, retryable=retryable)
    except BrokenPipeError:
        startup.silence_stdout()
        return outcome.Outcome(exit_code=EXIT_PIPE_CLOSED)
    except KeyboardInterrupt:
        _say(talk, "interrupted; run the same command again to resume")
        return outcome.Outcome(exit_code=EXIT_INTERRUPTED)
    except Exception as e:  # noqa: BLE001  # the last line of defence: a bug of ours becomes one line and a log
        line = crash.line(e)
        _say(talk, line)
        return outcome.Outcome(exit_code=EXIT_BUG, message=line, error=type(e).__name__)
    return outcome.Outcome(exit_code=code, message=_said(result))


def _say(talk: Console, message: str) -> None:
    talk.print(f"graceful: {message}", markup=False, highlight=False, soft_wrap=True)


def _waits(why: str) -> None:
    """For people here, or on a cluster for `graceful status`, which reads the log's end."""
    mark = outcome.WAITS if RUN_SPEC_VARIABLE in os.environ else "graceful: "
    sys.stderr.write(f"{mark}{why}\n" if why or mark == outcome.WAITS else "graceful: it answers again\n")
    sys.stderr.flush()


def _said(result: Any) -> str:
    """What a status must repeat of a program that ended well: that it skipped its work, and why."""
    if isinstance(result, dict) and result.get("outcome") == "unmet":
        return "no point of the search keeps the error rate; its log says what is closest and what to relax"
    skipped = isinstance(result, dict) and result.get("outcome") == "skipped"
    return f"{outcome.SKIPPED}{'; '.join(result['reasons'])}" if skipped else ""


Show = Callable[[Console], None]
Outcome = tuple[Any, int, Show]


def _refresh(run: Run, progress: Talk) -> Outcome:
    from graceful.programs import failure_record, notifications
    from graceful.programs.constraint_report import FILE as CONSTRAINTS
    from graceful.programs.novelty import skipped
    from graceful.programs.refresh import refresh
    from graceful.views.chain import Judged, chain_table, pair_table, pairs_of
    from graceful.views.constraints import constraint_table, remarks

    skip = skipped(run) if run.spec.if_new_data else None
    if skip is not None:
        notifications.of_refresh(run).again()
        return asdict(skip), 0, _lines({skip.run_id: f"{skip.outcome}, {'; '.join(skip.reasons)}"})
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
    return result, 0, _lines(result)


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


def _matrix(run: Run, progress: Talk, *, names: Sequence[str]) -> Outcome:
    from graceful.programs.refresh import matrix_of
    from graceful.views.heat import matrix_tables

    document = matrix_of(run, names=names, progress=progress)

    def show(console: Console) -> None:
        for table in matrix_tables(document):
            console.print(table)
        console.print(f"matrix: {run.folder / 'matrix.html'}", markup=False, highlight=False, soft_wrap=True)

    return document, 0, show


def _tune(run: Run, progress: Talk) -> Outcome:
    from graceful.programs import failure_record
    from graceful.programs.tune import run_of
    from graceful.programs.tuning.present import search_and_show

    search = run_of(run.spec)
    with failure_record.once(search, retried=RUN_SPEC_VARIABLE in os.environ):
        return search_and_show(search, progress)


def _space(run: Run, progress: Talk) -> Outcome:
    from graceful.programs.tuning.words import dry_run

    document = dry_run(run.spec)
    if run.spec.compatibility.blend is not None:
        from graceful.programs.tune import run_of
        from graceful.programs.tuning import teacher

        document["teacher"] = teacher.predicted(run_of(run.spec))
    flat = {key: value for key, value in document.items() if key != "space"}
    return document, 0, _lines({**document["space"], **flat})


def _search_architecture(run: Run, progress: Talk) -> Outcome:
    from graceful.programs.architectures.present import result_lines, result_table
    from graceful.programs.architectures.program import run_of, search

    document = search(run_of(run.spec), progress=progress)

    def show(console: Console) -> None:
        console.print(result_table(document))
        for line in result_lines(document):
            console.print(line, markup=False, highlight=False, soft_wrap=True)

    return document, 0, show


def _architectures(run: Run, progress: Talk) -> Outcome:
    from graceful.programs.architectures.program import dry_run

    document = dry_run(run.spec)
    return document, 0, _lines(document)


def _lineage(options: argparse.Namespace) -> Outcome:
    from graceful.lineage import Store
    from graceful.lineage.family import tree
    from graceful.programs.lineage import NEWEST, draw, strangers, versions
    from graceful.views.chain import chain_table, pair_table

    model = options.model
    if not model:
        raise SpecError("lineage: give the name of a model, e.g. `graceful lineage glyphs`")
    store = Store(None, default_home())
    last = options.last or (NEWEST if options.output == "table" else None)
    listed = versions(store, model, last=last)
    family, foreign = store.family(model, most=options.last or NEWEST), strangers(store, model)
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


def _diff(document: dict[str, Any]) -> Outcome:
    from graceful.lineage import Store
    from graceful.programs import diff, diff_page
    from graceful.views.difference import screen

    difference = diff.difference(Store(None, default_home()), document["old"], document["new"])
    if document.get("html"):
        difference = diff_page.write(difference, Path(document["html"]), document.get("spec"))
    return difference.document(), 0, lambda console: console.print(screen(difference))


def _export(document: dict[str, Any]) -> Outcome:
    from graceful.programs.exporting.program import Wanted, export

    with contextlib.redirect_stdout(sys.stderr):  # exporters talk
        exported = export(Wanted(**document), default_home())
    said = exported.document
    lines = {
        "file": f"{said['file']}, {said['bytes']:,} bytes",
        "latency": f"p50 {said['p50_ms']:.3f} ms, p95 {said['p95_ms']:.3f} ms, one sample on one core",
        "verdict": said["outcome"],
        **{f"constraint {number}": reason for number, reason in enumerate(said["reasons"], start=1)},
    }
    held = exported.verdict.outcome == gate.Outcome.HELD
    return said, EXIT_HELD if held else 0, _lines(lines)


def _index(document: dict[str, Any]) -> Outcome:
    from graceful.programs.indexing import program

    done = program.act(program.Action.of(document), default_home())
    return done.document, done.code, _lines(done.lines)


def _adapt(document: dict[str, Any]) -> Outcome:
    from graceful.programs.adapting.from_files import adapt_files
    from graceful.programs.adapting.program import Wanted, adapt
    from graceful.views.adapters import adapter_lines

    with (
        Talk(console=Console(stderr=True), quiet=document["quiet"]) as progress,
        contextlib.redirect_stdout(sys.stderr),
    ):
        wanted, out = Wanted(**document["wanted"]), document.get("out")
        if out is None:
            result = adapt(wanted, default_home(), progress=progress)
        else:
            result = adapt_files(wanted, Path(out), relevance=document["relevance"], progress=progress)
    held = result["outcome"] == gate.Outcome.HELD
    return result, EXIT_HELD if held else 0, _lines(adapter_lines(result))


def _backfill(document: dict[str, Any]) -> Outcome:
    from graceful.programs.indexing import backfilling

    done = backfilling.act(backfilling.Action.of(document), default_home())
    return done.document, done.code, _lines(done.lines)


def _compare_search(document: dict[str, Any]) -> Outcome:
    from graceful.programs.searches.comparing import Asked, compare
    from graceful.views.search_difference import screen

    found = compare(Asked(**document))
    return found.document(), 0, lambda console: console.print(screen(found))


def _label_next(document: dict[str, Any]) -> Outcome:
    from graceful.programs.labelling import Asked, label_next
    from graceful.views.labelling import screen

    found = label_next(Asked(**document))
    return found.document(), 0, lambda console: console.print(screen(found))


def _combine(document: dict[str, Any]) -> Outcome:
    from graceful.programs import combine
    from graceful.views.explanation import predictions

    quiet, home = bool(document.pop("quiet", False)), default_home()
    wanted = combine.Wanted(**document)
    section = combine.spec_of(wanted, home)
    if wanted.dry_run:
        rows = combine.preview(section, home)
        return [asdict(row) for row in rows], 0, lambda console: console.print(predictions(rows))
    with Talk(console=Console(stderr=True), quiet=quiet) as progress, contextlib.redirect_stdout(sys.stderr):
        return _refresh(Run.of(section, home=home), progress)


def _explain(document: dict[str, Any]) -> Outcome:
    from graceful.programs import explain
    from graceful.views.explanation import screen

    with Talk(console=Console(stderr=True), quiet=bool(document.pop("quiet", False))) as progress:
        explanation = explain.explain(explain.Wanted(**document), default_home(), progress=progress)
    return explanation.document(), 0, lambda console: console.print(screen(explanation))


def _act(document: dict[str, Any]) -> Outcome:
    from graceful.lineage import Store
    from graceful.programs import act, notifications
    from graceful.views.chain import history_table

    action, home = act.Action(**document), default_home()
    if action.action == "history":
        past = act.history(action, home)
        events = [act.event_document(event) for event in past]
        table = history_table(events, title=f"history of {action.reference}")
        return events, 0, lambda console: console.print(table)
    if action.action == "repair":
        store = Store(None, home)
        repairs = store.repair(action.reference, dry_run=action.dry_run, older_than_hours=action.older_than)
        notifications.of_action(action.reference, home).again()
        rows = [{"where": item.where, "what": item.what, "mended": item.repaired} for item in repairs]
        unrepaired = not action.dry_run and any(not item.repaired for item in repairs)
        summary = {item.where: item.what for item in repairs} or {action.reference: "all is as it should be"}
        return rows, EXIT_INFRASTRUCTURE if unrepaired else 0, _lines(summary)
    done = act.act(action, home)
    shown = {"done": done.sentence()}
    return asdict(done), 0, _lines(shown)


def _lines(result: dict[str, Any]) -> Show:
    def show(console: Console) -> None:
        for key, value in result.items():
            console.print(f"{key}: {value}", markup=False, highlight=False, soft_wrap=True)

    return show


PROGRAMS: dict[str, Callable[[Run, Talk], Outcome]] = {
    "refresh": _refresh,
    "train": _train,
    "evaluate": _evaluate,
    "tune": _tune,
    "search-architecture": _search_architecture,
}


DOCUMENTS: dict[str, Callable[[dict[str, Any]], Outcome]] = {
    "act": _act,
    "adapt": _adapt,
    "compare-search": _compare_search,
    "label-next": _label_next,
    "index": _index,
    "backfill": _backfill,
    "combine": _combine,
    "diff": _diff,
    "explain": _explain,
    "export": _export,
}
"""Programs that read no spec but what the command line asks for."""


def _document() -> dict[str, Any]:
    path = os.environ.get(RUN_SPEC_VARIABLE)
    where = path or "stdin"
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8") if path else sys.stdin.read())
    except OSError as e:
        raise SpecError(
            f"{where}: cannot be read ({e.strerror}); {RUN_SPEC_VARIABLE} must name the resolved spec"
        ) from e
    except ValueError as e:
        raise SpecError(f"{where}: must be the resolved spec as JSON ({e}); start jobs through `graceful`") from e
    if not isinstance(document, dict):
        raise SpecError(f"{where}: must be the resolved spec as a JSON object, got {type(document).__name__}")
    return document


class _Redacted(logging.Formatter):
    """Libraries log addresses and headers when they are asked for details."""

    def format(self, record: logging.LogRecord) -> str:
        return redact.record(super().format(record))


def _print(result: Any, output: str, show: Show) -> None:
    if output == "json":
        sys.stdout.write(json.dumps(result, indent=2) + "\n")
    elif output == "yaml":
        sys.stdout.write(documents.dump(result, allow_unicode=False))
    else:
        show(consoles.of_results())
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
