"""Commands that talk to the backend where jobs run, and their help. Imports click alone. Runs on the client."""

from __future__ import annotations

from pathlib import Path

import click

from graceful.cli.options import HOME, LOCATION, ON, OUTPUT, SET, SPEC, TRUST, Finite, options
from graceful.environment import CACHE_GB_VARIABLE

TUNE = click.option(
    "--tune", "program", flag_value="tune", default="refresh", help="Search the weights of SPEC instead of refreshing."
)


@click.command(short_help="Show what would run where, at what price; change nothing.")
@options(SPEC, SET, TRUST, ON)
@click.option("--offline", is_flag=True, help="Plan without the cluster: no dry run, no diff.")
@TUNE
@OUTPUT
def plan(spec: Path, sets: tuple[str, ...], *, on: str, offline: bool, program: str, output: str) -> int:
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

    return planning.show(spec, sets, on=on, offline=offline, output=output, program=program)


@click.command(short_help="Plan a refresh, confirm, and send it to where it runs.")
@options(SPEC, SET, TRUST, ON)
@click.option("-y", "--yes", is_flag=True, help="Do not ask for confirmation.")
@TUNE
@OUTPUT
def submit(spec: Path, sets: tuple[str, ...], *, on: str, yes: bool, program: str, output: str) -> int:
    """Plan the refresh of SPEC, confirm it, send it to a cluster or into the background, and print its handle.

    The same run id is the same job: sent twice, it runs once. Nothing is sent while the plan has errors.
    With --tune its weights are searched instead, see `graceful tune`: a run of its own, MODEL-NAME-tune-TRIALS;
    sent with more tune.trials it is another run, which continues the search.

    \b
    Example:
      graceful submit jobs/glyphs/v2.yaml --on kind --yes
      graceful submit jobs/glyphs/v2.yaml --on local --yes
      graceful submit jobs/glyphs/tune.yaml --on kind --tune
    """
    from graceful.cli import planning

    return planning.submit(spec, sets, on=on, yes=yes, output=output, program=program)


@click.command(short_help="Show what a submitted run is doing, and why.")
@click.argument("run")
@options(*LOCATION)
@click.option("-w", "--wait", is_flag=True, help="Wait until the run is over, and end with its exit code.")
@click.option("--timeout", type=Finite(min=0), metavar="SECONDS", help="Longest time of --wait.  [default: none]")
@OUTPUT
def status(run: str, wait: bool, timeout: float | None, output: str, **location_options: str | None) -> int:
    """Show what RUN is doing: phase, attempt and why it waits, was restarted or failed.

    RUN is a run id (model-name), as `graceful list` shows it. Ctrl-C ends the waiting, not the run.

    \b
    Example:
      graceful status glyphs-v2 --on kind --wait
    """
    from graceful.cli import following, locations

    return following.status(run, locations.RunLocation(**location_options), wait=wait, timeout=timeout, output=output)


@click.command(short_help="Print the log of a submitted run.")
@click.argument("run")
@options(*LOCATION)
@click.option("-f", "--follow", is_flag=True, help="Follow the log until the run is over, across lost connections.")
@click.option("--since", metavar="DURATION", help="Only lines newer than this, e.g. 15m.")
@click.option(
    "--attempt",
    type=click.IntRange(min=1),
    metavar="N",
    help="Log of the Nth start of RUN, from its copy in the bucket.",
)
def logs(run: str, follow: bool, since: str | None, attempt: int | None, **location_options: str | None) -> int:
    """Print the log of RUN, each line once. Ctrl-C detaches and says how to come back.

    A retry deletes the pods of the attempt before. Where the profile has a bucket, programs keep copies there of what
    they print, one for each time they were started.

    \b
    Example:
      graceful logs -f glyphs-v2 --on kind
      graceful logs glyphs-v2 --attempt 1 --on kind
    """
    from graceful.cli import following, locations

    return following.logs(run, locations.RunLocation(**location_options), follow=follow, since=since, attempt=attempt)


@click.command(short_help="Stop a submitted run; it can resume.")
@click.argument("run")
@options(*LOCATION, OUTPUT)
def stop(run: str, output: str, **location_options: str | None) -> int:
    """Stop RUN and free its machines. Its checkpoints stay, and what was submitted is written down.

    \b
    Example:
      graceful stop glyphs-v2 --on kind
    """
    from graceful.cli import following, locations

    return following.stop(run, locations.RunLocation(**location_options), output=output)


@click.command(short_help="Resume a stopped or failed run.")
@click.argument("run")
@options(*LOCATION)
@click.option("--workers", type=click.IntRange(min=1), help="Training processes from now on; the run stays the same.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask for confirmation.")
@OUTPUT
def resume(run: str, output: str, *, yes: bool, workers: int | None, **location_options: str | None) -> int:
    """Send RUN again under the same run id; it goes on from its last checkpoint.

    With --on NAME it is sent with the machines, image and accounts that the profile names today; what is different
    from before is shown and asked about. A run that is not over is left alone.

    \b
    Example:
      graceful resume glyphs-v2 --on kind
      graceful resume glyphs-v2 --on kind --yes    # e.g. after more memory in cluster/kind.yaml
      graceful resume glyphs-v2 --on kind --workers 1    # on fewer machines, with the same batches
    """
    from graceful.cli import following, locations

    location = locations.RunLocation(**location_options)
    return following.resume(run, location, yes=yes, output=output, workers=workers)


@click.command("list", short_help="List the runs that were submitted.")
@options(*LOCATION, OUTPUT)
def list_(output: str, **location_options: str | None) -> int:
    """List the runs of a namespace, a Ray cluster or this machine, newest first.

    \b
    Example:
      graceful list --on kind -o json
    """
    from graceful.cli import following, locations

    return following.listing(locations.RunLocation(**location_options), output=output)


@click.command(short_help="Remove what finished runs left, here or on Kubernetes.")
@options(*LOCATION, HOME)
@click.option("--older-than", "older", default="1d", show_default=True, metavar="DURATION", help="Age of their end.")
@click.option(
    "--stopped-older-than",
    "stopped",
    metavar="DURATION",
    help="On a cluster: also remove runs that were stopped so long ago.  [default: keep them]",
)
@click.option(
    "--cache-gb",
    type=Finite(min=0),
    default=50.0,
    show_default=True,
    envvar=CACHE_GB_VARIABLE,
    help=f"What copies in the home may take, in GB; also ${CACHE_GB_VARIABLE}.",
)
@click.option("--dry-run", is_flag=True, help="Only list what would be removed.")
@OUTPUT
def gc(
    older: str,
    stopped: str | None,
    output: str,
    home: Path | None,
    cache_gb: float,
    *,
    dry_run: bool,
    **location_options: str | None,
) -> int:
    """Remove what finished runs left behind, on this machine or, with --on, --context or --namespace, on a cluster.

    On this machine: checkpoints of finished runs in the home, and copies, least recently used first, until the rest
    fits `--cache-gb`: objects of buckets, versions, records and code that are kept elsewhere too, and outputs of
    predecessors that can be computed again. What a run is working on stays.

    On a cluster: finished jobs, their submitters and documents, and checkpoints in the profile's bucket that no run
    needs. Stopped runs stay, they can resume, unless --stopped-older-than gives their time.

    \b
    Example:
      graceful gc --dry-run
      graceful gc --on kind --older-than 7d --dry-run
    """
    from graceful.cli import reclaiming
    from graceful.cli.locations import RunLocation

    location = RunLocation(**location_options)
    if location.is_home:
        return reclaiming.gc(home, older=older, cache_gb=cache_gb, dry_run=dry_run, output=output)
    if home is not None:
        from graceful.errors import SpecError

        raise SpecError("--home: is of this machine; leave it out, or --on, --context and --namespace")
    return reclaiming.gc_on_cluster(location, older=older, stopped=stopped, dry_run=dry_run, output=output)
