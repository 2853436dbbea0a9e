"""`graceful adapt`: its command and its help. Imports click alone. Runs on the client."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from graceful.cli.options import HOME, OUTPUT, QUIET, VERBOSE, File, Finite, Whole, options

KINDS = ("procrustes", "low_rank", "mlp")
VECTORS = (".npz", ".parquet")
"""Ends of the names of files of vectors."""


@click.command(short_help="Fit a map between the embedding spaces of two versions.")
@click.argument("old")
@click.argument("new")
@click.option(
    "--side",
    type=click.Choice(["queries", "gallery"]),
    default="queries",
    show_default=True,
    help="Map new queries into the old gallery's space, or the old gallery into that of new queries.",
)
@click.option(
    "--kind", "kinds", type=click.Choice(KINDS), multiple=True, help="Kind of map to try. Repeatable.  [default: all]"
)
@click.option("--interpolate", is_flag=True, help="Also try points between old and mapped queries; both models run.")
@click.option("--pairs", type=Whole(2), default=20_000, show_default=True, help="Samples to fit on, at most.")
@click.option("--seed", type=Whole(0), default=0, show_default=True, help="Seed of networks and intervals.")
@click.option("--name", metavar="NAME", help="Name of the adapter.  [default: OLD-NEW]")
@click.option(
    "--min-share",
    type=Finite(min=0.0),
    default=0.95,
    show_default=True,
    help="Lower bound on recall at 10, over that after embedding all again.",
)
@click.option(
    "--min-gain",
    type=Finite(min=-1.0, max=1.0),
    default=-0.02,
    show_default=True,
    help="Lower bound on the gain of recall at 10 over old queries in the old gallery; below 0: what it may lose.",
)
@click.option(
    "--max-nfr",
    type=Finite(min=0.0, max=1.0),
    default=0.1,
    show_default=True,
    help="Upper bound on the share of queries that break.",
)
@click.option("--spec", type=File(path_type=Path), help="Spec whose task has the samples.  [default: NEW's own]")
@click.option(
    "--out", type=File(path_type=Path), metavar="FOLDER", help="With files: folder that the adapter is written to."
)
@click.option("--relevance", type=File(path_type=Path), metavar="FILE", help="With files: judged pairs, .tsv or .csv.")
@options(HOME, OUTPUT, QUIET, VERBOSE)
def adapt(old: str, new: str, home: Path | None, **arguments: Any) -> int:
    """Fit a map between the embedding spaces of OLD and NEW, measure it, and let the gate judge it.

    OLD is the version whose gallery is there, NEW the one whose queries come: MODEL (its champion), MODEL:NUMBER,
    MODEL:NAME or MODEL@ALIAS. Both embed NEW's training samples, no labels are read, and the kind of map whose
    neighbours agree best on validation samples is taken. The adapter is registered as a version of MODEL-adapter with
    both as parents; it is judged on the test queries against the old search and the one after embedding the
    whole gallery again. Exit code 3 if it is held. The worse end of each interval decides: by default the adapter must
    be shown to lose less than 2 points of recall at 10, which takes some 700 queries where it changes few results and
    2,000 where it changes many; --min-gain 0 asks that it is better than the old search.

    OLD and NEW may also be files of vectors of the same ids, .npz or .parquet, with a column `label` or judged pairs,
    and perhaps a column `split` (train, validation, query, gallery). The adapter is then written to --out and not
    registered.

    \b
    Example:
      graceful adapt glyphs:v1 glyphs:v3
      graceful adapt glyphs:v1 glyphs:v3 --side gallery --kind procrustes
      graceful adapt minilm.parquet e5.parquet --out minilm-e5
    """
    from graceful.cli import programs
    from graceful.errors import SpecError

    spec, out, relevance = (arguments.pop(name) for name in ("spec", "out", "relevance"))
    bounds = {
        "adapter_share_recall_at_10": arguments.pop("min_share"),
        "adapter_gain_recall_at_10": arguments.pop("min_gain"),
        "retrieval_nfr": arguments.pop("max_nfr"),
    }
    files = [Path(text).suffix in VECTORS for text in (old, new)]
    if any(files) != all(files) or (out is not None) != all(files) or (relevance is not None and not all(files)):
        raise SpecError(
            f"adapt {old} {new}: give two versions, or two files of vectors ({', '.join(VECTORS)}) and --out FOLDER;"
            " --relevance is for files"
        )
    if not all(files):
        programs.require_reference(old)
        programs.require_reference(new)
    output = {name: arguments.pop(name) for name in ("output", "quiet", "verbose")}
    resolved = None if spec is None else programs.resolve(spec, (), home).dump()
    wanted = {"old": old, "new": new, **arguments, "kinds": list(arguments["kinds"]) or list(KINDS), "bounds": bounds}
    document = {
        "wanted": {**wanted, "spec": resolved},
        "out": None if out is None else str(out),
        "relevance": None if relevance is None else str(relevance),
        "quiet": output["quiet"],
    }
    return programs.start("adapt", document=document, home=home, **output)


COMMANDS = (adapt,)
