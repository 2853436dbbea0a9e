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
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from graceful import consoles, crash, documents, environment, homes, patience, redact, spec, startup
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
from graceful.programs import default_home, spec_programs
from graceful.programs.document_programs import DOCUMENTS
from graceful.programs.housekeeping import log_archive
from graceful.programs.outcomes import Show
from graceful.programs.present import Talk
from graceful.programs.runs.run import Run
from graceful.programs.spec_programs import PROGRAMS
from graceful.storage import Mirror


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
                archive.begin(run.mirror.uri, name=_job_name(run.spec, options.program))
        os.environ.update(homes.variables(run.home if run else default_home()))
        if options.program == "lineage":
            result, code, show = spec_programs.lineage(options)
        elif options.program in DOCUMENTS:
            document = _document()
            if archive is not None:
                archive.begin(Mirror.of(default_home()).uri, name=document.get("run_id", options.program))
            result, code, show = DOCUMENTS[options.program](document)
        elif run is not None:
            with Talk(console=talk, quiet=options.quiet) as progress, contextlib.redirect_stdout(sys.stderr):
                names = [name.strip() for name in options.versions.split(",") if name.strip()]
                program = PROGRAMS[options.program]
                if options.matrix:
                    program = partial(spec_programs.matrix, names=names)
                elif options.dry_run:
                    program = spec_programs.space if options.program == "tune" else spec_programs.architectures
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
    """Print the line for people here, or on a cluster for `graceful status`, which reads the log's end."""
    mark = outcome.WAITS if RUN_SPEC_VARIABLE in os.environ else "graceful: "
    sys.stderr.write(f"{mark}{why}\n" if why or mark == outcome.WAITS else "graceful: it answers again\n")
    sys.stderr.flush()


def _said(result: Any) -> str:
    """Return what a status must repeat of a program that ended well: that it skipped its work, and why."""
    if isinstance(result, dict) and result.get("outcome") == "unmet":
        return "no point of the search keeps the error rate; its log says what is closest and what to relax"
    skipped = isinstance(result, dict) and result.get("outcome") == "skipped"
    return f"{outcome.SKIPPED}{'; '.join(result['reasons'])}" if skipped else ""


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
