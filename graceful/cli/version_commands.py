"""Commands that change the roles of versions: promote, rollback, hold, retire, history, lineage repair. Client."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import click

from graceful.cli.options import HOME, OUTPUT, VERBOSE, Finite, options

REASON = click.option("--reason", required=True, metavar="TEXT", help="Reason; it stays in the history.")
AUTHOR = click.option(
    "--author", metavar="NAME", help="Author; the name stays in the history.  [default: your user name]"
)


class _Champion(click.ParamType[int]):
    """A number of a version, or `none`, which is 0."""

    name = "N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read it."""
        if isinstance(value, int):
            return value
        if value == "none" or re.fullmatch(r"0{0,9}[1-9][0-9]{0,9}", value):
            return 0 if value == "none" else int(value)
        self.fail(f"must be the number of a version, or none, got {value!r}", param, ctx)


EXPECT = click.option(
    "--expect",
    type=_Champion(),
    metavar="N",
    help="Only if version N is champion now (none: if there is none). Makes repeating the command safe.",
)
WHO = (REASON, AUTHOR)
FORM = (HOME, OUTPUT, VERBOSE)


@click.command(short_help="Make a version the champion.")
@click.argument("version")
@options(*WHO, EXPECT)
@click.option("--waive", is_flag=True, help="Promote it although it is held; the reason is recorded as a waiver.")
@options(*FORM)
def promote(version: str, **arguments: Any) -> int:
    """Make VERSION the champion, after verifying its verdict and its files.

    VERSION is MODEL (the newest that passed), MODEL:NUMBER, MODEL:NAME or MODEL@ALIAS. One promotion
    happens at a time; where another one was faster, this one is refused. Promoting the champion again
    changes nothing.

    \b
    Example:
      graceful promote glyphs:3 --expect 2 --reason "load test passed"
    """
    return _start("promote", version, **arguments)


@click.command(short_help="Make the previous champion the champion again.")
@click.argument("version")
@options(*WHO, EXPECT, *FORM)
def rollback(version: str, **arguments: Any) -> int:
    """Make the previous champion of a model the champion again, after verifying that its files are whole.

    VERSION is MODEL, or a version of it to roll back to. The next rollback goes one further back. Give
    --expect in scripts: with it, a command that is repeated rolls back once.

    \b
    Example:
      graceful rollback glyphs --expect 3 --reason "more wrong answers since Monday"
    """
    return _start("rollback", version, **arguments)


@click.command(short_help="Keep a version from being promoted.")
@click.argument("version")
@options(*WHO)
@click.option("--release", is_flag=True, help="Release a hold by hand; a hold by the gate needs `promote --waive`.")
@options(*FORM)
def hold(version: str, release: bool, **arguments: Any) -> int:
    """Keep VERSION from being promoted. The champion cannot be held; roll back first.

    \b
    Example:
      graceful hold glyphs:4 --reason "labels of May are under review"
      graceful hold glyphs:4 --release --reason "labels are right"
    """
    return _start("release" if release else "hold", version, **arguments)


@click.command(short_help="Leave a version out of later refreshes.")
@click.argument("version")
@options(*WHO)
@click.option("--force", is_flag=True, help="Retire it even if it is champion; the model has none afterwards.")
@options(*FORM)
def retire(version: str, **arguments: Any) -> int:
    """Leave VERSION out of the training and evaluation of later refreshes, for good.

    No user depends on it any more, so no later version needs to be compatible with it. Its place in the lineage
    stays. The champion is refused: promote another version first.

    \b
    Example:
      graceful retire glyphs:1 --reason "last client updated"
    """
    return _start("retire", version, **arguments)


@click.command(short_help="Show who moved, held or retired which version, and why.")
@click.argument("version")
@options(*FORM)
def history(version: str, **arguments: Any) -> int:
    """Show what was done to the versions of a model, or to one of them: when, by whom, why.

    \b
    Example:
      graceful history glyphs
      graceful history glyphs:3 -o json
    """
    return _start("history", version, **arguments)


@click.command("lineage repair", short_help="Rebuild what MLflow shows from what was recorded.")
@click.argument("model")
@click.option("--dry-run", is_flag=True, help="Only list what is wrong.")
@click.option(
    "--older-than",
    type=Finite(min=0),
    default=24.0,
    show_default=True,
    metavar="HOURS",
    help="Age at which a run of another machine that is still running counts as dead.",
)
@options(*FORM)
def repair(model: str, **arguments: Any) -> int:
    """Rebuild numbers, tags, metrics, descriptions, aliases and states of runs of MODEL.

    lineage.json of each version and the recorded events are the truth; everything else derives from
    them. What was altered itself is reported and left (exit code 4).

    \b
    Example:
      graceful lineage repair glyphs --dry-run
    """
    return _start("repair", model, **arguments)


COMMANDS = (promote, rollback, hold, retire, history, repair)


def _start(
    action: str,
    reference: str,
    *,
    home: Path | None,
    output: str,
    verbose: int,
    author: str | None = None,
    **arguments: Any,
) -> int:
    """Run the action in a process of its own, which may import mlflow."""
    from graceful import startup
    from graceful.cli import programs
    from graceful.launch import foreground
    from graceful.launch.job import JobSpec

    programs.require_reference(reference)
    document = {"action": action, "reference": reference, **arguments}
    if "reason" in arguments:
        document["author"] = author or user()
    job = JobSpec(
        name=f"{action} {reference}",
        command=startup.python("graceful.programs", "act", "--output", output),
        env=programs.environment(os.environ, home=home, verbose=verbose),
        document=json.dumps(document),
    )
    return foreground.run(job, deferred=True)


def user() -> str:
    """Return who runs this."""
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return str(os.getuid())
