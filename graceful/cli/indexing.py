"""`graceful index`: its commands and their help. Imports click alone. Runs on the client."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from graceful.cli.options import HOME, OUTPUT, VERBOSE, Anywhere, File, InOrder, Whole, options

INDEX = click.argument("index", type=Anywhere())
SOURCE = (
    click.option("--version", metavar="VERSION", help="Embed with MODEL, MODEL:NUMBER, MODEL:NAME or MODEL@ALIAS."),
    click.option(
        "--spec", type=File(path_type=Path), help="Spec whose task has the items.  [default: the version's own]"
    ),
    click.option(
        "--split",
        type=click.Choice(["train", "validation", "constraint", "test", "query", "gallery"]),
        help="Split of that task.  [default: gallery; for queries: query]",
    ),
    click.option("--vectors", type=Anywhere(), metavar="FILE", help="Vectors of any model, .npz or .parquet."),
    click.option("--space", metavar="NAME", help="Model that made the vectors of FILE, where FILE does not name it."),
    click.option(
        "--metric",
        default="cosine",
        show_default=True,
        metavar="NAME",
        help="Measure by which those vectors are compared.",
    ),
)
WHY = (
    click.option("--reason", default="", metavar="TEXT", help="Reason; it stays in the index's history."),
    click.option("--author", metavar="NAME", help="Author.  [default: your user name]"),
)
FORM = (HOME, OUTPUT, VERBOSE)


@click.group(cls=InOrder, invoke_without_command=True, short_help="Store and search embeddings that know their model.")
@click.pass_context
def index(context: click.Context) -> None:
    """Store and search embeddings that know which model made them.

    INDEX is a folder or s3://bucket/prefix. It holds vectors with ids and payload columns, and for each vector its
    space: the version that made it and its embedding contract. Vectors and queries of another space are refused. Each
    change is one commit; every earlier snapshot can be brought back.

    \b
    Example:
      graceful index build gallery --version glyphs@champion
      graceful index query gallery --version glyphs@champion -k 5
      graceful index status gallery
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@index.command(short_help="Create an index.")
@options(INDEX, *SOURCE)
@click.option(
    "--backend",
    default="exact",
    show_default=True,
    metavar="KIND",
    help="Backend that stores and searches: exact, faiss, pgvector, qdrant.",
)
@click.option("--option", "settings", multiple=True, metavar="KEY=VALUE", help="Setting of the backend. Repeatable.")
@options(*WHY, *FORM)
def build(index: str, backend: str, settings: tuple[str, ...], **arguments: Any) -> int:
    """Make the index INDEX of the vectors of a version over a split, or of a file of vectors.

    Labels and groups of the split are payload; of a file, every further column is.

    \b
    Example:
      graceful index build gallery --version glyphs:v1
      graceful index build glosses --vectors minilm.parquet --space all-MiniLM-L6-v2
    """
    from graceful.cli import index_documents

    parsed = index_documents.settings(settings)
    return index_documents.start("build", index, arguments, backend=backend, options=parsed)


@index.command(short_help="Add vectors, or replace them.")
@options(INDEX, *SOURCE)
@click.option("--replace", is_flag=True, help="Replace the vectors of ids that the index has.")
@click.option("--mixed", is_flag=True, help="Store vectors of another model beside those that the index takes.")
@options(*WHY, *FORM)
def add(index: str, replace: bool, mixed: bool, **arguments: Any) -> int:
    """Add vectors to INDEX: all of them or, where one is not fit to be stored, none.

    \b
    Example:
      graceful index add gallery --vectors new.npz --replace
    """
    from graceful.cli import index_documents

    return index_documents.start("add", index, arguments, replace=replace, mixed=mixed)


@index.command(short_help="Delete ids.")
@options(INDEX)
@click.argument("ids", nargs=-1, required=True)
@options(*WHY, *FORM)
def delete(index: str, ids: tuple[str, ...], **arguments: Any) -> int:
    """Delete IDS from INDEX. Earlier snapshots keep them.

    \b
    Example:
      graceful index delete gallery 0041-A --reason "withdrawn"
    """
    from graceful.cli import index_documents

    return index_documents.start("delete", index, arguments, ids=list(ids))


@index.command(short_help="Write the vectors of a version as a file.")
@click.argument("file", type=File(path_type=Path))
@options(*SOURCE, *FORM)
def embed(file: Path, **arguments: Any) -> int:
    """Write the vectors of a version over a split to FILE, .npz or .parquet, which says which version made them.

    \b
    Example:
      graceful index embed queries.npz --version glyphs@champion --split query
    """
    from graceful.cli import index_documents

    return index_documents.start("embed", str(file), arguments)


@index.command(short_help="Search.")
@options(INDEX, *SOURCE)
@click.option(
    "--also",
    multiple=True,
    type=Anywhere(),
    metavar="FILE",
    help="The same queries by another model, for an index with vectors of several. Repeatable.",
)
@click.option("-k", "k", type=Whole(1, 10000), default=10, show_default=True, help="Results of each query.")
@options(*FORM)
def query(index: str, also: tuple[str, ...], k: int, **arguments: Any) -> int:
    """Search INDEX with the queries of a version over a split, or of a file.

    Vectors of a space are searched with queries of the same space, or of one that `graceful index accept` has declared
    comparable with it. Scores are cosines; in the middle of a backfill they are calibrated, so that results from both
    models stand in one list.

    \b
    Example:
      graceful index query gallery --version glyphs@champion --split query -k 5
      graceful index query gallery --vectors old.npz --also new.npz -o json
    """
    from graceful.cli import index_documents

    return index_documents.start("query", index, arguments, k=k, sources=[{"vectors": file} for file in also])


@index.command(short_help="Declare queries of one model comparable with vectors of another.")
@options(INDEX)
@click.option("--gallery", required=True, metavar="SPACE", help="Name of the space of the vectors.")
@options(*SOURCE, *WHY, *FORM)
def accept(index: str, gallery: str, **arguments: Any) -> int:
    """Declare that queries of a version may search the vectors of another one, e.g. after compatible training.

    Nothing follows from equal dimensions: two models of 384 numbers have nothing in common. What follows from
    training with the losses on a gallery is measured by the cross-test of the version's report.

    \b
    Example:
      graceful index accept gallery --version glyphs:v3 --gallery glyphs-v1 --reason "cross-test passed"
    """
    from graceful.cli import index_documents

    return index_documents.start("accept", index, arguments, gallery=gallery)


@index.command(short_help="Check that nothing was altered or lost.")
@options(INDEX)
@click.option("--all", "everything", is_flag=True, help="Check every snapshot, not the newest alone.")
@options(*FORM)
def verify(index: str, everything: bool, **arguments: Any) -> int:
    """Check every vector of INDEX: digests, counts, length 1, each id once. Exit code 4 if something is wrong.

    \b
    Example:
      graceful index verify gallery --all
    """
    from graceful.cli import index_documents

    return index_documents.start("verify", index, arguments, to=int(everything))


@index.command(short_help="Show spaces, counts and history.")
@options(INDEX, *FORM)
def status(index: str, **arguments: Any) -> int:
    """Show what INDEX holds, of which models, and what was done to it.

    \b
    Example:
      graceful index status gallery -o json
    """
    from graceful.cli import index_documents

    return index_documents.start("status", index, arguments)


@index.command(short_help="Bring an earlier snapshot back.")
@options(INDEX)
@click.option("--to", required=True, type=Whole(1), metavar="N", help="Number of the snapshot, see `status`.")
@options(*WHY, *FORM)
def rollback(index: str, to: int, **arguments: Any) -> int:
    """Make the content of an earlier snapshot of INDEX that of a new one: vectors, alias and backfill.

    \b
    Example:
      graceful index rollback gallery --to 3 --reason "recall fell"
    """
    from graceful.cli import index_documents

    return index_documents.start("rollback", index, arguments, to=to)
