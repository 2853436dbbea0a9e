"""Commands that read a spec: refresh, train, tune, search-architecture, evaluate, gate. Runs on the client.

The module imports click alone; bodies import what they need.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from graceful.cli.options import HOME, OUTPUT, PROFILE, QUIET, SET, SPEC, TRUST, VERBOSE, File, Whole, options


@click.command(short_help="Train, evaluate, gate, register and promote a version.")
@options(SPEC, SET, TRUST, HOME)
@click.option("--if-new-data", is_flag=True, help="Skip it if data and recipe are those of the champion.")
@click.option("--dry-run", is_flag=True, help="Print the resolved spec and the steps; do nothing.")
@options(PROFILE, OUTPUT, QUIET, VERBOSE)
def refresh(
    spec: Path, sets: tuple[str, ...], home: Path | None, if_new_data: bool, dry_run: bool, **output_options: Any
) -> int:
    """Train, evaluate, gate, register and promote the version that SPEC describes.

    The champion and its ancestors are the predecessors; without any, this is the first link. A version
    that the gate holds is registered with its reasons and not promoted (exit code 3). The same command
    again resumes a run or, when it is finished, repeats its result. With --if-new-data, a refresh that would
    train the same recipe on the same data as the champion is skipped (exit code 0) and registers nothing.

    \b
    Example:
      graceful refresh jobs/glyphs/v2.yaml --set train.epochs=2 -o json
    """
    from graceful.cli import programs

    resolved = programs.resolve(spec, (*sets, "if_new_data=true") if if_new_data else sets, home)
    if dry_run:
        return programs.preview(resolved, output_options["output"])
    return programs.start("refresh", resolved=resolved, **output_options)


@click.command(short_help="Only train; register nothing.")
@options(SPEC, SET, TRUST, HOME, PROFILE, OUTPUT, QUIET, VERBOSE)
def train(spec: Path, sets: tuple[str, ...], home: Path | None, **output_options: Any) -> int:
    """Only train the version that SPEC describes; register nothing.

    \b
    Example:
      graceful train jobs/glyphs/v2.yaml --set train.num_workers=1
    """
    from graceful.cli import programs

    return programs.start("train", resolved=programs.resolve(spec, sets, home), **output_options)


@click.command(short_help="Search the weights: fewest negative flips at a fixed error.")
@options(SPEC, SET, TRUST, HOME)
@click.option("--trials", type=Whole(1), help="Number of trials; the same as --set tune.trials=N.")
@click.option("--dry-run", is_flag=True, help="Print what would be searched, and how many trainings; do nothing.")
@options(OUTPUT, QUIET, VERBOSE)
def tune(
    spec: Path, sets: tuple[str, ...], home: Path | None, trials: int | None, dry_run: bool, **output_options: Any
) -> int:
    """Search the compatibility weights of SPEC: the fewest negative flips at an error rate that is kept.

    Every trial trains the version once, with other weights, on this machine's cores (on a cluster with
    Ray Train workers). The worst negative flip rate over the chain is minimised where the error is no
    worse than that of the same recipe without constraints: an upper confidence bound decides, measured
    on the same ids. The best trials are trained again with fresh seeds and judged on ids that the search
    never saw; the test split is looked at once. What varies follows from the spec: `graceful schema tune`.

    Stop it whenever you like: the same command continues, with more --trials too. Result: the weights in
    spec.yaml, a spec for `graceful refresh`; tune.json, pictures, and an MLflow run with a child per trial.
    Exit code 3 if no point keeps the error rate, with the closest one and what to relax.

    \b
    Example:
      graceful tune jobs/glyphs/tune.yaml --dry-run
      graceful tune jobs/glyphs/tune.yaml --trials 40 --set tune.tolerance=0.005
    """
    from graceful.cli import programs

    overrides = sets if trials is None else (*sets, f"tune.trials={trials}")
    flags = ("--dry-run",) if dry_run else ()
    return programs.start("tune", resolved=programs.resolve(spec, overrides, home), arguments=flags, **output_options)


@click.command("search-architecture", short_help="Search the network of a query model within a budget.")
@options(SPEC, SET, TRUST, HOME)
@click.option(
    "--evaluations", type=Whole(1), help="Networks to measure; the same as --set architectures.evaluations=N."
)
@click.option(
    "--method", type=click.Choice(["evolution", "random"]), help="The same as --set architectures.method=NAME."
)
@click.option("--dry-run", is_flag=True, help="Print the space, its costs and what would be measured; train nothing.")
@options(OUTPUT, QUIET, VERBOSE)
def search_architecture(
    spec: Path,
    sets: tuple[str, ...],
    home: Path | None,
    *,
    evaluations: int | None,
    method: str | None,
    dry_run: bool,
    **output_options: Any,
) -> int:
    """Search the network of the query model that SPEC describes: what finds most within a budget.

    One supernet, all of whose paths share weights, is trained against the frozen gallery model. Then paths
    within the budget (multiply-accumulates, parameters, bytes in 8 bits, measured milliseconds) are measured
    on classes that it was not trained on, on the gallery model's index and on one of their own. What is
    searched is the section architectures: `graceful schema architectures`.

    Stop it whenever you like: the same command continues, with more --evaluations too. Result: the winner
    as spec.yaml and the rest of the Pareto front beside it, which `graceful refresh` trains from scratch.

    With architectures.pruning the network of the spec is pruned to several capacities in one training
    instead, each of which is a spec and its weights, which `graceful refresh` makes a version of.

    \b
    Example:
      graceful search-architecture jobs/hvs/search.yaml --dry-run
      graceful search-architecture jobs/hvs/prune.yaml
      graceful search-architecture jobs/hvs/search.yaml --set architectures.budget.macs=60000
    """
    from graceful.cli import programs
    from graceful.spec.architectures import require_searchable

    changes = [] if evaluations is None else [f"architectures.evaluations={evaluations}"]
    changes += [] if method is None else [f"architectures.method={method}"]
    resolved = programs.resolve(spec, (*sets, *changes), home)
    require_searchable(resolved)
    flags = ("--dry-run",) if dry_run else ()
    return programs.start("search-architecture", resolved=resolved, arguments=flags, **output_options)


@click.command(short_help="Measure a trained version against every ancestor.")
@click.option("--matrix", is_flag=True, help="Measure every version of the chain against every other, as matrices.")
@click.option("--versions", metavar="NAMES", help="With --matrix: only these, e.g. v1,v3.  [default: all]")
@options(SPEC, SET, TRUST, HOME, OUTPUT, QUIET, VERBOSE)
def evaluate(
    spec: Path, sets: tuple[str, ...], home: Path | None, *, matrix: bool, versions: str | None, **output_options: Any
) -> int:
    """Measure the trained version of SPEC against every ancestor and write its report.

    \b
    Example:
      graceful evaluate jobs/glyphs/v2.yaml -o json
      graceful evaluate jobs/glyphs/v3.yaml --matrix
    """
    from graceful.cli import programs

    if versions and not matrix:
        raise click.UsageError("--versions chooses the versions of a matrix; add --matrix")
    flags = ("--matrix", "--versions", versions or "") if matrix else ()
    return programs.start("evaluate", resolved=programs.resolve(spec, sets, home), arguments=flags, **output_options)


@click.command(short_help="Judge a report: passed or held.")
@click.argument("report", type=File(path_type=Path))
@options(SPEC, SET, OUTPUT)
def gate(report: Path, spec: Path, sets: tuple[str, ...], output: str) -> int:
    """Judge a REPORT by the constraints of SPEC: passed (0) or held (3).

    Needs the two files and nothing else: the same files give the same verdict anywhere, any time.

    \b
    Example:
      graceful gate .graceful/runs/glyphs-v2/report.json jobs/glyphs/v2.yaml --set gate.constraints.0.bound=0.01
    """
    from graceful.cli import judging

    return judging.judge(report, spec, sets, output)
