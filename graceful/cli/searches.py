"""`graceful compare-search` and `label-next`: their commands and help. Imports click alone. Runs on the client."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from graceful.cli.options import HOME, OUTPUT, VERBOSE, Anywhere, File, Finite, Whole, options

FOLDER = File(path_type=Path)
INDEX = Anywhere()


@click.command("compare-search", short_help="Compare what two indices return for the same queries.")
@click.argument("a", type=INDEX)
@click.argument("b", type=INDEX)
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
@click.option("--slice", "slices", multiple=True, metavar="COLUMN", help="Compare by a column, too. Repeatable.")
@click.option(
    "-k", "k", type=Whole(1, 1000), default=10, show_default=True, help="Number of results to compare for each query."
)
@click.option("--worst", type=Whole(0), default=20, show_default=True, help="Number of queries to list.")
@click.option("--html", type=File(path_type=Path), metavar="FILE", help="Also write a page.")
@click.option("--seed", type=Whole(0), default=0, show_default=True, help="Seed of the bootstrap.")
@options(HOME, OUTPUT, VERBOSE)
def compare_search(a: str, b: str, home: Path | None, **arguments: Any) -> int:
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
    document = {**arguments, **given, "a": a, "b": b}
    document |= {name: list(arguments[name]) for name in ("queries", "slices")}
    return programs.start("compare-search", document=document, home=home, **output)


@click.command("label-next", short_help="List samples to label next, and estimate how many decide a bound.")
@click.argument("old", type=INDEX)
@click.argument("new", type=INDEX)
@click.option(
    "--bound", type=Finite(min=0.0, max=1.0), required=True, metavar="RATE", help="Bound on negative flips, e.g. 0.02."
)
@click.option(
    "--labels",
    type=File(path_type=Path),
    metavar="FILE",
    help="Known labels: id and label; for searches, judged pairs.",
)
@click.option(
    "--queries", multiple=True, metavar="[SPACE=]FILE", help="With two indices: vectors of the queries. Repeatable."
)
@click.option("--adapter", type=FOLDER, metavar="FOLDER", help="Search NEW with the queries that this adapter maps.")
@click.option("--count", type=Whole(0), default=20, show_default=True, help="Number of samples to list.")
@click.option("--out", type=File(path_type=Path), metavar="FILE", help="Also write all of them, .csv.")
@click.option("--seed", type=Whole(0), default=0, show_default=True, help="Seed of the prediction.")
@options(HOME, OUTPUT, VERBOSE)
def label_next(old: str, new: str, home: Path | None, **arguments: Any) -> int:
    """List the unlabelled samples that decide soonest whether NEW keeps a bound on negative flips against OLD.

    OLD and NEW are the answers of two versions for the same samples: .csv or .tsv files with id, answer and perhaps
    confidence, or the predictions.npz of a version; or two indices, searched with --queries, where the first result is
    the answer. Where both answer alike no label matters. The gate can decide once enough disagreements are labelled
    that the rest changes nothing; the order needs the fewest labels for that, if the confidences are right. Label
    some, give them with --labels, and ask again.

    \b
    Example:
      graceful label-next old.csv new.csv --bound 0.02
      graceful label-next old.csv new.csv --bound 0.02 --labels labels.csv --out next.csv
      graceful label-next old-index new-index --queries q-old.npz --queries q-new.npz --bound 0.05
    """
    from graceful.cli import programs

    output = {name: arguments.pop(name) for name in ("output", "verbose")}
    paths = ("labels", "adapter", "out")
    given = {name: None if arguments[name] is None else str(arguments[name]) for name in paths}
    document = {**arguments, **given, "old": old, "new": new, "queries": list(arguments["queries"])}
    return programs.start("label-next", document=document, home=home, **output)


COMMANDS = (compare_search, label_next)
