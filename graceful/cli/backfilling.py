"""`graceful backfill`: its commands and their help. Imports click alone. Runs on the client."""

from __future__ import annotations

from typing import Any

import click

from graceful.cli.indexing import FORM, INDEX, SOURCE, WHY
from graceful.cli.options import OUTPUT, Anywhere, Finite, InOrder, Whole, options
from graceful.cli.schedule import CRON, NAME, PLACED


class _Shard(click.ParamType[tuple[int, int]]):
    """NUMBER/COUNT, counted from 1."""

    name = "N/COUNT"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Read it."""
        if isinstance(value, tuple):
            return value
        first, _, second = str(value).partition("/")
        if all(part.isascii() and part.isdigit() and len(part) < 6 for part in (first, second)):
            number, count = int(first), int(second)
            if 1 <= number <= count:
                return number - 1, count
        self.fail(f"must be the number of this worker and of all, e.g. 1/4, got {value!r}", param, ctx)


ORDER = (
    click.option(
        "--order",
        type=click.Choice(["random", "distance", "uncertainty", "traffic"]),
        default="random",
        show_default=True,
        help="Which vectors come first.",
    ),
    click.option("--traffic", type=Anywhere(), metavar="FILE", help='JSON {"id": how often it was found}.'),
    click.option("--seed", type=Whole(0), default=0, show_default=True, help="Of the order."),
    click.option(
        "--rate", type=Finite(min=0.001), metavar="N", help="At most N vectors a second.  [default: no limit]"
    ),
)

SHARE = (
    click.option("--batch", type=Whole(1, 1000000), default=1024, show_default=True, help="Vectors of one commit."),
    click.option("--stop-at", type=Finite(min=0, max=1), default=1.0, show_default=True, help="Share of the vectors."),
    click.option("--shard", type=_Shard(), default=(0, 1), metavar="N/COUNT", help="This worker's part, e.g. 1/4."),
)


@click.group(cls=InOrder, invoke_without_command=True, short_help="Replace the vectors of an old model in an index.")
@click.pass_context
def backfill(context: click.Context) -> None:
    """Replace the vectors of an old model in an index by those of a new one, while queries go on.

    New vectors must be of the new model from the first batch on. The alias of the index moves to it at the end,
    after a last check. Whatever interrupts a backfill, the same command goes on; it can be taken back at any point.

    \b
    Example:
      graceful backfill plan gallery --version glyphs:v3
      graceful backfill run gallery --version glyphs:v3 --order uncertainty --rate 500
      graceful backfill status gallery
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@backfill.command(short_help="Show what a backfill would take, and what searches are worth meanwhile.")
@options(INDEX, *SOURCE, *ORDER[1:])
@click.option("--sample", type=Whole(10, 5000), default=1000, show_default=True, help="Vectors that are made for it.")
@click.option("--on", metavar="NAME", help="Profile of a cluster, whose price per hour is used; needs --spec.")
@options(*FORM)
def plan(index: str, traffic: str | None, on: str | None, **arguments: Any) -> int:
    """Show what a backfill of INDEX would take: vectors, hours, price, bytes; and predict the curve of its searches.

    A sample of the ids is embedded by the new model, which gives the rate, and pairs of vectors. With these, recall is
    computed for each order at 0 to 100 %: an item of the sample as the query, those with its label as answers. The
    sample is smaller than the index, so the differences are what it tells. Nothing is changed.

    \b
    Example:
      graceful backfill plan gallery --version glyphs:v3
      graceful backfill plan gallery --version glyphs:v3 --spec v3.yaml --on team -o json
    """
    from graceful.cli import index_documents

    parts = {name: arguments.pop(name) for name in ("seed", "rate", "sample")}
    parts["traffic"] = traffic
    parts |= index_documents.price(arguments["spec"], on)
    return index_documents.start("plan", index, arguments, program="backfill", **parts)


@backfill.command(short_help="Replace vectors until all are of the new model.")
@options(INDEX, *SOURCE, *ORDER, *SHARE)
@click.option("--on", metavar="NAME", help="As a job of the profile cluster/NAME.yaml.  [default: here, and wait]")
@click.option("--name", metavar="NAME", help="Of --on: the job is backfill-NAME.  [default: a digest of the command]")
@click.option("-y", "--yes", is_flag=True, help="Of --on: do not ask.")
@options(*WHY, *FORM)
def run(index: str, traffic: str | None, on: str | None, name: str | None, *, yes: bool, **arguments: Any) -> int:
    """Replace the vectors of INDEX by those of a version, or of a file of vectors.

    One process does it, or several with --shard, here or as jobs of a cluster. Meanwhile an index has vectors of both
    models: search with the queries of both (`graceful index query --also`), or of one where `graceful index accept`
    says so.

    With --on it is sent to where the profile's jobs run, which see an index in a bucket. The same command finds the
    same job; `graceful status`, `logs`, `stop` and `resume` follow it.

    \b
    Example:
      graceful backfill run gallery --version glyphs:v3 --rate 500
      graceful backfill run glosses --vectors e5.parquet --space multilingual-e5-small --stop-at 0.5
      graceful backfill run s3://search/gallery --version glyphs:v3 --on kind --yes
    """
    from graceful.cli import index_documents

    parts = {key: arguments.pop(key) for key in index_documents.SETTINGS} | {"traffic": traffic}
    if on is None:
        if name is not None or yes:
            raise click.UsageError("--name and --yes belong to --on; leave them out")
        return index_documents.start("run", index, arguments, program="backfill", **parts)
    from graceful.cli import backfill_jobs

    document = index_documents.described("run", index, arguments, **parts)
    form = {key: arguments[key] for key in ("output", "home")}
    return backfill_jobs.submit(document, on=on, name=name, yes=yes, **form)


@backfill.command(short_help="Run a backfill again and again.")
@options(NAME, INDEX, *CRON, *SOURCE, *ORDER, *SHARE, *WHY, *PLACED, OUTPUT)
def schedule(name: str, index: str, traffic: str | None, **arguments: Any) -> int:
    """Make the schedule NAME, whose firings do what `graceful backfill run INDEX` does, or change it.

    A firing goes on where the last one ended, and does nothing where all vectors are of the new model: with
    `--version MODEL@champion`, an index follows its model. On a cluster INDEX and files are in a bucket.
    `graceful schedule list`, `pause`, `resume`, `run-now` and `delete` treat it like schedules of refreshes.

    \b
    Example:
      graceful backfill schedule nightly gallery --cron '0 1 * * *' --version glyphs@champion
      graceful backfill schedule nightly s3://search/gallery --cron @daily --version glyphs@champion --on kind
    """
    from graceful.cli import backfill_schedules, index_documents

    parts = {key: arguments.pop(key) for key in index_documents.SETTINGS} | {"traffic": traffic}
    document = index_documents.described("run", index, arguments, **parts)
    return backfill_schedules.apply(document, name=name, **arguments)


@backfill.command(short_help="Stop a backfill after its present batch.")
@options(INDEX, *FORM)
def pause(index: str, **arguments: Any) -> int:
    """Stop the backfill of INDEX after its present batch. `graceful backfill run` goes on.

    \b
    Example:
      graceful backfill pause gallery
    """
    from graceful.cli import index_documents

    return index_documents.start("pause", index, arguments, program="backfill")


@backfill.command(short_help="Show how far a backfill is.")
@options(INDEX, *FORM)
def status(index: str, **arguments: Any) -> int:
    """Show how far the backfill of INDEX is, how fast, and what the index serves.

    \b
    Example:
      graceful backfill status gallery -o json
    """
    from graceful.cli import index_documents

    return index_documents.start("status", index, arguments, program="backfill")


@backfill.command(short_help="Take a backfill back.")
@options(INDEX, *WHY, *FORM)
def rollback(index: str, **arguments: Any) -> int:
    """Give the ids that the backfill of INDEX moved their old vectors again, and the alias to the old model.

    What was added or replaced since it began has no old vector and stays; `graceful index status` counts it.

    \b
    Example:
      graceful backfill rollback gallery --reason "recall fell at 40 %"
    """
    from graceful.cli import index_documents

    return index_documents.start("rollback", index, arguments, program="backfill")
