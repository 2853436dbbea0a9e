"""The commands and their help. Imports click alone; bodies import what they need. Runs on the client."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from graceful import __version__

OUTPUTS = ("table", "json", "yaml")
Command = TypeVar("Command", bound=Callable[..., Any])

SPEC = click.argument("spec", type=click.Path(path_type=Path))
SET = click.option(
    "--set", "sets", multiple=True, metavar="KEY=VALUE", help="Override one key, e.g. train.epochs=2. Repeatable."
)
HOME = click.option(
    "--home",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of runs, caches and the default registry.  [default: $GRACEFUL_HOME, else .graceful]",
)
ON = click.option(
    "--on",
    metavar="NAME",
    required=True,
    help="Where: the profile cluster/NAME.yaml, or a path that ends in .yaml.",
)
OUTPUT = click.option(
    "-o",
    "--output",
    type=click.Choice(OUTPUTS),
    default="table",
    show_default=True,
    help="Form of the result on stdout.",
)
QUIET = click.option("-q", "--quiet", is_flag=True, help="No progress on stderr; errors only.")
VERBOSE = click.option("-v", "--verbose", count=True, help="More talk on stderr; -vv for everything.")

PLACE = (
    click.option("--on", metavar="NAME", help="Where: the profile cluster/NAME.yaml, or a path that ends in .yaml."),
    click.option(
        "--context", metavar="NAME", help="Of the kubeconfig.  [default: the profile's, else the current one]"
    ),
    click.option("-n", "--namespace", metavar="NAME", help="[default: the profile's, else the context's]"),
)


def _options(*decorators: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


class _InOrder(click.Group):
    """Lists commands in the order in which people meet them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(
    cls=_InOrder,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    invoke_without_command=True,
    epilog="""\b
Exit codes:
    0  passed, or done           3  held by the gate
    1  a bug in graceful         4  infrastructure: registry, disk, memory
    2  usage, spec or data       5  training failed, stopped or out of time
  130  interrupted: run the same command again to resume

\b
Every key of a spec:   graceful schema
Guide and examples:    README.md and jobs/ beside the sources""",
)
@click.version_option(__version__, prog_name="graceful", message="%(prog)s %(version)s")
@click.pass_context
def graceful(context: click.Context) -> None:
    """Refresh a model without breaking what already depends on it.

    graceful trains the next version of a model against the whole chain of its predecessors, measures
    every regression (right before, wrong now), lets a gate decide between passed and held, and records
    the lineage in MLflow. Results go to stdout, talk to stderr.

    \b
    Start with:
      graceful doctor                        is this machine ready?
      graceful refresh jobs/glyphs/v1.yaml   train, evaluate, gate, register, promote
      graceful lineage glyphs                every version and what it broke
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@graceful.command(short_help="Train, evaluate, gate, register and promote a version.")
@_options(SPEC, SET, HOME)
@click.option("--dry-run", is_flag=True, help="Print the resolved spec and the steps; do nothing.")
@_options(OUTPUT, QUIET, VERBOSE)
def refresh(spec: Path, sets: tuple[str, ...], home: Path | None, dry_run: bool, **talk: Any) -> int:
    """Train, evaluate, gate, register and promote the version that SPEC describes.

    The champion and its ancestors are the predecessors; without any, this is the first link. A version
    that the gate holds is registered with its reasons and not promoted (exit code 3). The same command
    again resumes a run or, when it is finished, repeats its result.

    \b
    Example:
      graceful refresh jobs/glyphs/v2.yaml --set train.epochs=2 -o json
    """
    from graceful.cli import programs

    resolved = programs.resolve(spec, sets, home)
    if dry_run:
        return programs.preview(resolved, talk["output"])
    return programs.start("refresh", resolved=resolved, **talk)


@graceful.command(short_help="Show what would run where, at what price; change nothing.")
@_options(SPEC, SET, ON)
@click.option("--offline", is_flag=True, help="Do not ask the cluster: no dry run, no diff.")
@OUTPUT
def plan(spec: Path, sets: tuple[str, ...], on: str, offline: bool, output: str) -> int:
    """Show what the refresh of SPEC would run on a cluster: machines, price, manifests, findings.

    The cluster is asked by dry runs whether it would accept, and what would change. `-o yaml` prints the
    manifests alone, `-o json` everything. Secrets are hidden. Exit code 2: the job must be corrected,
    4: the cluster refused or did not answer.

    \b
    Example:
      graceful plan jobs/glyphs/v2.yaml --on kind
      graceful plan jobs/glyphs/v2.yaml --on gpu-spot -o yaml
    """
    from graceful.cli import planning

    return planning.show(spec, sets, on=on, offline=offline, output=output)


@graceful.command(short_help="Plan, ask, and send a refresh to a cluster.")
@_options(SPEC, SET, ON)
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@OUTPUT
def submit(spec: Path, sets: tuple[str, ...], on: str, yes: bool, output: str) -> int:
    """Plan the refresh of SPEC, ask, send it to a cluster, and print its handle.

    The same run id is the same job: sent twice, it runs once. Nothing is sent while the plan has errors.

    \b
    Example:
      graceful submit jobs/glyphs/v2.yaml --on kind --yes
    """
    from graceful.cli import planning

    return planning.submit(spec, sets, on=on, yes=yes, output=output)


@graceful.command(short_help="Only train; register nothing.")
@_options(SPEC, SET, HOME, OUTPUT, QUIET, VERBOSE)
def train(spec: Path, sets: tuple[str, ...], home: Path | None, **talk: Any) -> int:
    """Only train the version that SPEC describes; register nothing.

    \b
    Example:
      graceful train jobs/glyphs/v2.yaml --set train.num_workers=1
    """
    from graceful.cli import programs

    return programs.start("train", resolved=programs.resolve(spec, sets, home), **talk)


@graceful.command(short_help="Measure a trained version against every ancestor.")
@_options(SPEC, SET, HOME, OUTPUT, QUIET, VERBOSE)
def evaluate(spec: Path, sets: tuple[str, ...], home: Path | None, **talk: Any) -> int:
    """Measure the trained version of SPEC against every ancestor and write its report.

    \b
    Example:
      graceful evaluate jobs/glyphs/v2.yaml -o json
    """
    from graceful.cli import programs

    return programs.start("evaluate", resolved=programs.resolve(spec, sets, home), **talk)


@graceful.command(short_help="Judge a report: passed or held.")
@click.argument("report", type=click.Path(path_type=Path))
@_options(SPEC, SET, OUTPUT)
def gate(report: Path, spec: Path, sets: tuple[str, ...], output: str) -> int:
    """Judge a REPORT by the constraints of SPEC: passed (0) or held (3).

    Needs the two files and nothing else: the same files give the same verdict anywhere, any time.

    \b
    Example:
      graceful gate .graceful/runs/glyphs-v2/report.json jobs/glyphs/v2.yaml --set gate.constraints.0.bound=0.01
    """
    from graceful.cli import judging

    return judging.judge(report, spec, sets, output)


@graceful.command(short_help="Show the versions of a model and what they broke.")
@click.argument("model")
@_options(HOME, OUTPUT, QUIET, VERBOSE)
def lineage(model: str, home: Path | None, **talk: Any) -> int:
    """Show every version of MODEL, its predecessors and what was measured between them.

    \b
    Example:
      graceful lineage glyphs -o json
    """
    from graceful.cli import programs

    return programs.start("lineage", arguments=(model,), home=home, **talk)


@graceful.command(short_help="Browse versions, lineage and reports in a web page.")
@click.option("--port", type=click.IntRange(0, 65535), help="Port on this machine.  [default: first free from 5000]")
@HOME
def ui(port: int | None, home: Path | None) -> int:
    """Browse versions, lineage and reports in MLflow's web page, on this machine only.

    Prints the address and stays until Ctrl-C. With $MLFLOW_TRACKING_URI naming a server, prints that
    server's address and ends.

    \b
    Example:
      graceful ui --port 5001
    """
    from graceful.cli import browser

    return browser.serve(home=home, port=port)


@graceful.command(short_help="List the keys that a spec may hold.")
@click.argument("key", required=False)
@OUTPUT
def schema(key: str | None, output: str) -> int:
    """List the keys that a spec may hold: what is expected, the default, what it means.

    \b
    Example:
      graceful schema task.network
      graceful schema -o json > refresh.schema.json
    """
    from graceful.cli import keys

    return keys.show(key, output)


@graceful.command(short_help="Say what a run on a cluster is doing, and why.")
@click.argument("run")
@_options(*PLACE)
@click.option("-w", "--wait", is_flag=True, help="Until it is over; then its exit code is this one's.")
@click.option("--timeout", type=click.FloatRange(min=0), metavar="SECONDS", help="Of --wait.  [default: none]")
@OUTPUT
def status(run: str, wait: bool, timeout: float | None, output: str, **place: str | None) -> int:
    """Say what RUN is doing: phase, attempt and why it waits, was restarted or failed.

    RUN is a run id (model-name), as `graceful list` shows it. Ctrl-C ends the waiting, not the run.

    \b
    Example:
      graceful status glyphs-v2 --on kind --wait
    """
    from graceful.cli import following

    return following.status(run, following.Place(**place), wait=wait, timeout=timeout, output=output)


@graceful.command(short_help="Print the log of a run on a cluster.")
@click.argument("run")
@_options(*PLACE)
@click.option("-f", "--follow", is_flag=True, help="Until the run is over, across lost connections.")
@click.option("--since", metavar="DURATION", help="Only what is newer, e.g. 15m.")
def logs(run: str, follow: bool, since: str | None, **place: str | None) -> int:
    """Print the log of RUN, each line once. Ctrl-C detaches and says how to come back.

    \b
    Example:
      graceful logs -f glyphs-v2 --on kind
    """
    from graceful.cli import following

    return following.logs(run, following.Place(**place), follow=follow, since=since)


@graceful.command(short_help="Stop a run on a cluster; it can resume.")
@click.argument("run")
@_options(*PLACE, OUTPUT)
def stop(run: str, output: str, **place: str | None) -> int:
    """Stop RUN and free its machines. Its checkpoints stay, and what was submitted is written down.

    \b
    Example:
      graceful stop glyphs-v2 --on kind
    """
    from graceful.cli import following

    return following.stop(run, following.Place(**place), output=output)


@graceful.command(short_help="Resume a stopped or failed run on a cluster.")
@click.argument("run")
@_options(*PLACE, OUTPUT)
def resume(run: str, output: str, **place: str | None) -> int:
    """Send RUN again under the same run id; it goes on from its last checkpoint.

    A run that is not over is left alone.

    \b
    Example:
      graceful resume glyphs-v2 --on kind
    """
    from graceful.cli import following

    return following.resume(run, following.Place(**place), output=output)


@graceful.command("list", short_help="List the runs on a cluster.")
@_options(*PLACE, OUTPUT)
def list_(output: str, **place: str | None) -> int:
    """List the runs of a namespace, newest first.

    \b
    Example:
      graceful list --on kind -o json
    """
    from graceful.cli import following

    return following.listing(following.Place(**place), output=output)


@graceful.command(short_help="Remove what finished runs left on a cluster.")
@_options(*PLACE)
@click.option("--older-than", "older", default="1d", show_default=True, metavar="DURATION", help="Since they ended.")
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@OUTPUT
def gc(older: str, dry_run: bool, output: str, **place: str | None) -> int:
    """Remove finished jobs, their submitters and their documents. Stopped runs stay, they can resume.

    \b
    Example:
      graceful gc --on kind --older-than 7d --dry-run
    """
    from graceful.cli import following

    return following.gc(following.Place(**place), older=older, dry_run=dry_run, output=output)


@graceful.command(short_help="Check this machine.")
@_options(HOME, OUTPUT)
def doctor(home: Path | None, output: str) -> int:
    """Check this machine: Python, packages, accelerator, disk, registry, data.

    Imports the heavy packages in processes of their own, which takes some seconds. Exit code 4 if
    something failed.

    \b
    Example:
      graceful doctor -o json
    """
    from graceful.cli import doctor as checks

    return checks.report(home=home, output=output)
