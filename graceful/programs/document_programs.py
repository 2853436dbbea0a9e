"""Programs that read a document from the command line instead of a spec, with their output. Runs in the driver.

Programs are imported when they run, so that a command loads what it needs alone.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from graceful import gate
from graceful.errors import EXIT_HELD, EXIT_INFRASTRUCTURE
from graceful.programs import default_home
from graceful.programs.outcomes import Outcome, lines_of
from graceful.programs.present import Talk
from graceful.programs.runs.run import Run
from graceful.programs.spec_programs import refreshed


def _diff(document: dict[str, Any]) -> Outcome:
    from graceful.lineage import Store
    from graceful.programs.versions import diff, diff_page
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
    return said, EXIT_HELD if held else 0, lines_of(lines)


def _index(document: dict[str, Any]) -> Outcome:
    from graceful.programs.indexing import program

    done = program.act(program.Action.of(document), default_home())
    return done.document, done.code, lines_of(done.lines)


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
    return result, EXIT_HELD if held else 0, lines_of(adapter_lines(result))


def _backfill(document: dict[str, Any]) -> Outcome:
    from graceful.programs.indexing import backfilling

    done = backfilling.act(backfilling.Action.of(document), default_home())
    return done.document, done.code, lines_of(done.lines)


def _compare_search(document: dict[str, Any]) -> Outcome:
    from graceful.programs.searches.comparing import Asked, compare
    from graceful.views.search_difference import screen

    found = compare(Asked(**document))
    return found.document(), 0, lambda console: console.print(screen(found))


def _label_next(document: dict[str, Any]) -> Outcome:
    from graceful.programs.searches.labelling import Asked, label_next
    from graceful.views.labelling import screen

    found = label_next(Asked(**document))
    return found.document(), 0, lambda console: console.print(screen(found))


def _combine(document: dict[str, Any]) -> Outcome:
    from graceful.programs.versions import combine
    from graceful.views.explanation import predictions

    quiet, home = bool(document.pop("quiet", False)), default_home()
    wanted = combine.Wanted(**document)
    section = combine.spec_of(wanted, home)
    if wanted.dry_run:
        rows = combine.preview(section, home)
        return [asdict(row) for row in rows], 0, lambda console: console.print(predictions(rows))
    with Talk(console=Console(stderr=True), quiet=quiet) as progress, contextlib.redirect_stdout(sys.stderr):
        return refreshed(Run.of(section, home=home), progress)


def _explain(document: dict[str, Any]) -> Outcome:
    from graceful.programs.versions import explain
    from graceful.views.explanation import screen

    with Talk(console=Console(stderr=True), quiet=bool(document.pop("quiet", False))) as progress:
        explanation = explain.explain(explain.Wanted(**document), default_home(), progress=progress)
    return explanation.document(), 0, lambda console: console.print(screen(explanation))


def _act(document: dict[str, Any]) -> Outcome:
    from graceful.lineage import Store
    from graceful.programs.messages import notifications
    from graceful.programs.versions import act
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
        rows = [{"where": item.where, "what": item.what, "repaired": item.repaired} for item in repairs]
        unrepaired = not action.dry_run and any(not item.repaired for item in repairs)
        summary = {item.where: item.what for item in repairs} or {action.reference: "all is as it should be"}
        return rows, EXIT_INFRASTRUCTURE if unrepaired else 0, lines_of(summary)
    done = act.act(action, home)
    shown = {"done": done.sentence()}
    return asdict(done), 0, lines_of(shown)


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
