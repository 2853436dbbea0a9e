"""The commands and their help. Imports click alone; bodies import what they need. Runs on the client."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from graceful import __version__
from graceful.cli import adapting, cluster, linearised_commands, searches, spec_commands, version_commands
from graceful.cli.backfilling import backfill
from graceful.cli.indexing import index
from graceful.cli.options import (
    HOME,
    LOCATION,
    OUTPUT,
    QUIET,
    VERBOSE,
    File,
    InOrder,
    Whole,
    options,
)
from graceful.cli.schedule import schedule
from graceful.errors import EXIT_PASSED, GracefulError

FIRST_STEPS = """\
graceful refreshes a model without breaking what already depends on it.
It has not run in this folder yet. Three steps to begin with:

  1  graceful demo              refresh a small example model three times,
                                in a few minutes
  2  graceful init DATA         write the first spec for your images, texts or
                                rows; DATA is a folder or a file
  3  graceful refresh v1.yaml   train, evaluate, gate, register and promote

All commands: graceful --help"""
"""What `graceful` alone prints in a folder without results."""


@click.group(
    cls=InOrder,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    invoke_without_command=True,
    epilog="""\b
Exit codes:
    0  passed, or done           3  held by the gate
    1  a bug in graceful         4  infrastructure: registry, disk, memory
    2  usage, spec or data       5  training failed, stopped or out of time
  130  interrupted: run the same command again to resume

\b
Is this machine ready?   graceful doctor
Every key of a spec:     graceful schema
Completion by Tab:       graceful completion --help""",
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
      graceful demo              three versions of a small model, in a few minutes
      graceful init photos       write the first spec for your own images, texts or tables
      graceful refresh v1.yaml   train, evaluate, gate, register, promote
      graceful lineage photos    every version and what it broke
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help() if _home_exists() else FIRST_STEPS)


def _home_exists() -> bool:
    """Return whether graceful has run here before; True, too, where that is not known."""
    from graceful import homes

    try:
        return homes.folder().exists()
    except (GracefulError, OSError):
        return True


@click.command(short_help="Refresh a small example model three times.")
@options(HOME, QUIET, VERBOSE)
def demo(home: Path | None, quiet: bool, verbose: int) -> int:
    """Refresh the example family glyphs from v1 to v3 and show the chain that its versions form.

    The models tell characters of real typefaces apart, while data, classes and network grow. Each refresh trains
    with two Ray workers and DeepSpeed, on the CPU if need be: a few minutes on two cores. The same command goes
    on where it was interrupted. A version that the gate holds is a result, and the exit code stays 0.

    \b
    Example:
      graceful demo --home /tmp/demo
    """
    from graceful.cli import demonstration

    return demonstration.run(home=home, quiet=quiet, verbose=verbose)


@click.command(short_help="Write the first spec for a folder or a file of data.")
@click.argument("data", type=File(path_type=Path))
@click.option("--out", type=File(path_type=Path, dir_okay=False), default=Path("v1.yaml"), show_default=True)
@click.option("--model", metavar="NAME", help="Name of the model family.  [default: asked, else that of the data]")
@click.option("--label", metavar="COLUMN", help="Column of the class.  [default: asked, else guessed]")
@click.option("--text", metavar="COLUMN", help="Column to embed.  [default: the longest texts, else all numbers]")
@click.option(
    "--checkpoint", type=File(path_type=Path), metavar="FOLDER", help="Checkpoint of transformers, for texts or images."
)
@click.option("--force", is_flag=True, help="Replace a spec that is there.")
@OUTPUT
def init(data: Path, out: Path, force: bool, output: str, **answers: Any) -> int:
    """Look at DATA and write the first spec of a model family.

    DATA is a folder with one folder of images for each class; or rows: a Parquet, CSV or JSON lines file, or
    a folder of them; or WebDataset shards: a tar file, a folder of them, or a pattern. On a terminal, what cannot
    be known is asked, three questions at most; elsewhere the guesses are taken. The spec is valid: `graceful
    refresh` and `graceful plan` take it as it is.

    \b
    Example:
      graceful init photos
      graceful init reviews.csv --label stars --checkpoint minilm --out jobs/reviews/v1.yaml
    """
    from graceful.cli import first_spec

    return first_spec.write(data, out, answers=first_spec.Answers(**answers), force=force, output=output)


@click.command(short_help="Show the versions of a model and what they broke.")
@click.argument("model")
@click.option(
    "--draw",
    type=File(path_type=Path),
    metavar="FILE",
    help="Also write the lineage to a file: .svg, .png, .html or .txt.",
)
@click.option("--last", type=Whole(min=1), metavar="N", help="Only the newest N versions.  [default: 25, with -o: all]")
@options(HOME, OUTPUT, QUIET, VERBOSE)
def lineage(model: str, draw: Path | None, last: int | None, home: Path | None, **output_options: Any) -> int:
    """Show what every version of MODEL descends from and what was measured between them.

    \b
    Example:
      graceful lineage glyphs -o json
      graceful lineage glyphs --draw lineage.png
    """
    from graceful.cli import programs

    programs.require_reference(model)
    flags = [] if draw is None else ["--draw", str(draw)]
    flags += [] if last is None else ["--last", str(last)]
    return programs.start("lineage", arguments=(model, *flags), home=home, **output_options)


@click.command(short_help="Compare two versions: numbers, spec, the samples that flipped.")
@click.argument("old")
@click.argument("new")
@click.option("--html", type=File(path_type=Path), metavar="FILE", help="Also write a page with pictures.")
@click.option("--spec", type=File(path_type=Path), help="Spec whose task has the pictures.  [default: NEW's own]")
@options(HOME, OUTPUT, VERBOSE)
def diff(old: str, new: str, html: Path | None, spec: Path | None, home: Path | None, **output_options: Any) -> int:
    """Compare two registered versions: numbers, spec, and the samples that one has right and the other wrong.

    OLD and NEW are MODEL (its champion), MODEL:NUMBER, MODEL:NAME or MODEL@ALIAS. No network is run: what
    each version said about the test samples was recorded with it.

    \b
    Example:
      graceful diff glyphs@previous glyphs@champion
      graceful diff glyphs:1 glyphs:3 --html flips.html
    """
    from graceful.cli import programs

    programs.require_reference(old)
    programs.require_reference(new)
    resolved = None if spec is None else programs.resolve(spec, (), home).dump()
    document = {"old": old, "new": new, "html": None if html is None else str(html), "spec": resolved}
    return programs.start("diff", document=document, home=home, **output_options)


@click.command(short_help="Write a version as one file for a device, and judge the file.")
@click.argument("version")
@click.option(
    "--format",
    "form",
    type=click.Choice(["onnx", "pt2"]),
    default="onnx",
    show_default=True,
    help="Format of the file.",
)
@click.option("--int8", is_flag=True, help="Quantise it to 8 bits; for onnx.")
@click.option(
    "--out", type=File(path_type=Path), metavar="FILE", help="File to write.  [default: MODEL-NAME.FORMAT here]"
)
@click.option(
    "--spec", type=File(path_type=Path), help="Spec whose task and gate judge it.  [default: the version's own]"
)
@options(HOME, OUTPUT, VERBOSE)
def export(version: str, spec: Path | None, home: Path | None, *, out: Path | None, **arguments: Any) -> int:
    """Write VERSION as an ONNX or PT2 file, run the file on the test data, and judge it by the version's constraints.

    VERSION is MODEL (its champion), MODEL:NUMBER, MODEL:NAME or MODEL@ALIAS. What is measured is the file, not the
    network: rounding and 8 bits count. The file says which version and embedding contract it is; size, latency
    (one sample, one core) and verdict are written beside it and kept with the version. Exit code 3 if it is held.

    \b
    Example:
      graceful export glyphs-edge@champion --int8
    """
    from graceful.cli import programs

    programs.require_reference(version)
    resolved = None if spec is None else programs.resolve(spec, (), home).dump()
    wanted = {"form": arguments.pop("form"), "int8": arguments.pop("int8"), "out": None if out is None else str(out)}
    document = {"version": version, **wanted, "spec": resolved}
    return programs.start("export", document=document, home=home, **arguments)


@click.command(short_help="Browse versions, lineage and reports in a web page.")
@click.option("--port", type=Whole(0, 65535), help="Port on this machine.  [default: first free from 5000]")
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


@click.command(short_help="List the keys that a spec may hold.")
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


@click.command(short_help="Print a script for completion by Tab.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> int:
    """Print a script with which SHELL completes commands and options by Tab.

    \b
    Example:
      eval "$(graceful completion bash)"      in ~/.bashrc; for zsh the same in ~/.zshrc
      graceful completion fish > ~/.config/fish/completions/graceful.fish
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None, "click completes all three"
    click.echo(kind(graceful, {}, "graceful", "_GRACEFUL_COMPLETE").source())
    return EXIT_PASSED


@click.command(short_help="Check this machine, or a cluster.")
@options(LOCATION[0], HOME, OUTPUT)
def doctor(on: str | None, home: Path | None, output: str) -> int:
    """Check this machine: Python, packages, accelerator, disk, registry, data.

    With --on, check the backend that a profile names: server, versions, permissions, queue, secrets,
    storage, MLflow. A bucket gets one small object, which is deleted again; nothing else is changed.
    Exit code 4 if something failed.

    \b
    Example:
      graceful doctor -o json
      graceful doctor --on kind
    """
    from graceful.cli import doctor as checks

    return checks.report(home=home, output=output, on=on)


for _command in (
    demo,
    init,
    spec_commands.refresh,
    cluster.plan,
    cluster.submit,
    spec_commands.train,
    spec_commands.tune,
    spec_commands.search_architecture,
    spec_commands.evaluate,
    spec_commands.gate,
    lineage,
    diff,
    export,
    index,
    backfill,
    *adapting.COMMANDS,
    *searches.COMMANDS,
    *linearised_commands.COMMANDS,
    *version_commands.COMMANDS,
    ui,
    schema,
    cluster.status,
    cluster.logs,
    cluster.stop,
    cluster.resume,
    cluster.list_,
    cluster.gc,
    schedule,
    doctor,
    completion,
):
    graceful.add_command(_command)
