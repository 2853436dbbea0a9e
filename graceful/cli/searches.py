"""`graceful compare-search`: its command and its help. Imports click alone. Runs on the client."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from graceful.cli.options import HOME, OUTPUT, VERBOSE, File, Whole, options

FOLDER = File(path_type=Path)


@click.command("compare-search", short_help="Compare what two indices return for the same queries.")
@click.argument("a", type=FOLDER)
@click.argument("b", type=FOLDER)
@click.option(
    "--queries",
    required=True,
    multiple=True,
    metavar="[SPACE=]FILE",
    help="Vectors of the queries, .npz or .parquet, one file for each model. Repeatable.",
)
@click.option(
    "--relevance",
    type=File(path_type=Path),
    metavar="FILE",
    help="Judged pairs or clicks, .tsv or .csv: query, item and perhaps a grade.  [default: equal labels]",
)
@click.option("--adapter", type=FOLDER, metavar="FOLDER", help="Search B with the queries that this adapter maps.")
@click.option("--slice", "slices", multiple=True, metavar="COLUMN", help="Also by the values of a column. Repeatable.")
@click.option("-k", "k", type=Whole(1, 1000), default=10, show_default=True, help="Results that are compared.")
@click.option("--worst", type=Whole(0), default=20, show_default=True, help="Queries that are listed.")
@click.option("--html", type=File(path_type=Path), metavar="FILE", help="Also write a page.")
@click.option("--seed", type=Whole(0), default=0, show_default=True, help="Of the bootstrap.")
@options(HOME, OUTPUT, VERBOSE)
def compare_search(a: Path, b: Path, home: Path | None, **arguments: Any) -> int:
    """Search the indices A and B with the same queries, and compare what they return, query by query.

    Shared results, rank-biased overlap and the first results that changed need nothing but the queries. With judged
    pairs, clicks, or a column `label` on both sides, also recall and NDCG of both, paired gains (B minus A), and the
    queries that were right in A and are wrong in B (retrieval NFR). The queries that got worst come with the results
    of both. Two models need the queries embedded by each: `graceful index embed` writes such files. A column `group`
    of the queries says which are not independent.

    \b
    Example:
      graceful compare-search old new --queries q-old.npz --queries q-new.npz --slice label
      graceful compare-search old old --queries q-old.npz --queries q-new.npz --adapter v1-v3 --html searches.html
    """
    from graceful.cli import programs

    output = {name: arguments.pop(name) for name in ("output", "verbose")}
    paths = ("relevance", "adapter", "html")
    given = {name: None if arguments[name] is None else str(arguments[name]) for name in paths}
    document = {**arguments, **given, "a": str(a), "b": str(b)}
    document |= {name: list(arguments[name]) for name in ("queries", "slices")}
    return programs.start("compare-search", document=document, home=home, **output)


COMMANDS = (compare_search,)
