"""Commands for versions of train.method lqf: explain, combine. Imports click alone. Runs on the client."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click

from graceful.cli.options import HOME, OUTPUT, QUIET, VERBOSE, File, Whole, options


class _Factor(click.ParamType[tuple[str, float]]):
    """A version and its factor, such as v2=0.5."""

    name = "VERSION=FACTOR"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, float]:
        """Read it."""
        if isinstance(value, tuple):
            return value
        version, separator, text = str(value).rpartition("=")
        try:
            factor = float(text)
        except ValueError:
            factor = math.nan
        if not version or not separator or not math.isfinite(factor):
            self.fail(
                f"must be the name of a version and a factor, such as v2=0.5, got {str(value)[:60]!r}", param, ctx
            )
        return version, factor


_FACTOR = _Factor()


@click.command(short_help="Show which training samples pull an answer of a linearised version.")
@click.argument("version")
@click.argument("sample", metavar="ID")
@click.option("--against", metavar="OTHER", help="Another version: what pulls from its answer to this one's.")
@click.option(
    "--split",
    type=click.Choice(["test", "validation", "train"]),
    help="Split that has the sample.  [default: the first that has it]",
)
@click.option("--top", type=Whole(1), default=10, show_default=True, help="Number of training samples to list.")
@click.option("--spec", type=File(path_type=Path), help="Spec whose task has the data.  [default: the version's own]")
@options(HOME, OUTPUT, QUIET, VERBOSE)
def explain(version: str, sample: str, spec: Path | None, home: Path | None, quiet: bool, **arguments: Any) -> int:
    """Show which training samples pull VERSION to its answer for the sample ID.

    VERSION is MODEL (its champion), MODEL:NUMBER, MODEL:NAME or MODEL@ALIAS, trained with train.method lqf: there every
    training sample adds its own term to a logit, in closed form. Listed are the terms of the margin between the answer
    and the true class (if the answer is right: the next best class), largest first. With --against, the margin is
    that between the two answers; where both versions are linearised at the same weights, each term is compared.
    The result names training samples.

    \b
    Example:
      graceful explain lqf@champion test-0005
      graceful explain lqf:v3 test-0005 --against lqf:v2 -o json
    """
    from graceful.cli import programs

    forms = {name: arguments.pop(name) for name in ("output", "verbose")}
    for reference in (version, arguments["against"]):
        if reference is not None:
            programs.require_reference(reference)
    resolved = None if spec is None else programs.resolve(spec, (), home).dump()
    document = {"version": version, "sample": sample, "spec": resolved, "quiet": quiet, **arguments}
    return programs.start("explain", document=document, home=home, **forms)


@click.command(short_help="Add up linearised versions: mix, roll back in part, fold into a network.")
@click.argument("model")
@click.argument("versions", nargs=-1, required=True, metavar="VERSION=FACTOR...", type=_FACTOR)
@click.option("--name", required=True, help="Name of the new version.")
@click.option(
    "--folded", is_flag=True, help="Write an ordinary network with the weights w0 + delta, which is another model."
)
@click.option("--dry-run", is_flag=True, help="Print the error that is predicted; do nothing.")
@click.option("--spec", type=File(path_type=Path), help="Spec of the newest of them.  [default: the recorded one]")
@options(HOME, OUTPUT, QUIET, VERBOSE)
def combine(
    model: str, versions: tuple[tuple[str, float], ...], spec: Path | None, home: Path | None, **arguments: Any
) -> int:
    """Make a new version of MODEL from versions that train.method lqf linearised at the same weights; nothing trains.

    Its outputs are those of the starting weights plus FACTOR times what each VERSION adds to them: 0.5 of two versions
    is a mix for a canary, 1 of an older one a roll back. The error on the validation split is predicted before, from
    the outputs of the versions. The result is evaluated, judged by the gate of the newest of them and registered, as a
    refresh does; exit code 3 if it is held.

    \b
    Example:
      graceful combine lqf v2=0.5 v3=0.5 --name v4 --dry-run
      graceful combine lqf v3=1 --name v3-folded --folded
    """
    from graceful.cli import programs

    programs.require_reference(model)
    for version, _ in versions:
        programs.require_reference(f"{model}:{version}")
    forms = {name: arguments.pop(name) for name in ("output", "verbose")}
    resolved = None if spec is None else programs.resolve(spec, (), home).dump()
    document = {"model": model, "versions": dict(versions), "spec": resolved, **arguments}
    return programs.start("combine", document=document, home=home, **forms)


COMMANDS = (explain, combine)
