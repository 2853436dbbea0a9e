"""`graceful schedule`: its commands and their help. Imports click alone. Runs on the client."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from graceful.cli.options import HOME, OUTPUT, QUIET, SET, SPEC, TRUST, InOrder, options

NAME = click.argument("name")
WHERE = (
    click.option(
        "--on",
        metavar="NAME",
        help="A cluster: the profile cluster/NAME.yaml, or a path that ends in .yaml.  [default: this machine]",
    ),
    click.option("--context", metavar="NAME", help="Context of the kubeconfig.  [default: the profile's]"),
    click.option("-n", "--namespace", metavar="NAME", help="[default: the profile's]"),
    HOME,
)

CRON = (
    click.option(
        "--cron", required=True, metavar="FIELDS", help="Minute, hour, day, month, weekday (0: Sunday), or @daily."
    ),
    click.option("--time-zone", default="Etc/UTC", show_default=True, metavar="ZONE", help="Zone, e.g. Europe/Berlin."),
)
PLACED = (
    click.option(
        "--service-account",
        metavar="NAME",
        help="On a cluster: account that submits.  [default: the profile's, -submitter in place of -ray]",
    ),
    click.option("--dry-run", is_flag=True, help="Only list what would change."),
    *WHERE,
)


@click.group(cls=InOrder, invoke_without_command=True, short_help="Refresh on a schedule, here or on a cluster.")
@click.pass_context
def schedule(context: click.Context) -> None:
    """Refresh a model on a schedule, on a cluster (--on) or on this machine.

    Each firing makes a version named after it (NAME and the minutes since 1970), trains it against the
    champion of that moment, and lets the gate decide. Without new data since the champion, it is skipped.

    \b
    A firing due while the one before it still runs never starts beside it:
      here        it is skipped
      --on        it starts when that one ends, if less than an hour late, else it is missed
    A firing that nothing started in time (machine or scheduler down):
      both        the newest runs once for all of them, if less than an hour late; the others are missed
    A firing that fell into a pause:
      here        it never runs
      --on        as if nothing had started it in time, once the schedule is resumed

    \b
    Example:
      graceful schedule apply nightly jobs/glyphs/v2.yaml --cron '0 3 * * *'
      graceful schedule run
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@schedule.command(short_help="Create or change a schedule.")
@options(NAME, SPEC, *CRON)
@SET
@TRUST
@click.option("--always", is_flag=True, help="Refresh also without new data.")
@options(*PLACED, OUTPUT)
def apply(name: str, spec: Path, output: str, **options: Any) -> int:
    """Create the schedule NAME, which refreshes SPEC, or change it and show what changed.

    SPEC is resolved now and kept: editing the file later changes nothing before the next apply. Its `name` is
    replaced at every firing. The same content again changes nothing; a paused schedule stays paused.

    \b
    Example:
      graceful schedule apply nightly jobs/glyphs/v2.yaml --cron '0 3 * * *' --time-zone Europe/Berlin
      graceful schedule apply nightly jobs/glyphs/v2.yaml --cron '0 3 * * *' --on kind
    """
    from graceful.cli import applying

    return applying.apply(name, spec, output=output, **options)


@schedule.command("list", short_help="Show schedules, their next and last firing.")
@options(*WHERE, OUTPUT)
def list_(output: str, **location_options: Any) -> int:
    """Show every schedule: when it fires next, when it last did and how that ended, and whether it is paused.

    On a cluster the chart's schedules are shown too.

    \b
    Example:
      graceful schedule list --on kind -o json
    """
    from graceful.cli import scheduling

    return scheduling.listing(scheduling.ScheduleLocation(**location_options), output=output)


@schedule.command(short_help="Pause a schedule.")
@options(NAME, *WHERE)
def pause(name: str, **location_options: Any) -> int:
    """Pause NAME until it is resumed. A firing that runs goes on.

    \b
    Example:
      graceful schedule pause nightly --on kind
    """
    from graceful.cli import scheduling

    return scheduling.pause(name, scheduling.ScheduleLocation(**location_options), paused=True)


@schedule.command(short_help="Resume a paused schedule.")
@options(NAME, *WHERE)
def resume(name: str, **location_options: Any) -> int:
    """Resume NAME. On a cluster, the newest missed firing of the last hour is started at once.

    \b
    Example:
      graceful schedule resume nightly --on kind
    """
    from graceful.cli import scheduling

    return scheduling.pause(name, scheduling.ScheduleLocation(**location_options), paused=False)


@schedule.command("run-now", short_help="Fire once, now.")
@options(NAME, *WHERE, OUTPUT)
def run_now(name: str, output: str, **location_options: Any) -> int:
    """Fire NAME once, now, paused or not; refused while a firing of it runs.

    On a cluster it is sent and followed with `graceful status`; here it runs in the foreground, and its exit
    code is that of `graceful refresh`.

    \b
    Example:
      graceful schedule run-now nightly --on kind
    """
    from graceful.cli import scheduling

    return scheduling.run_now(name, scheduling.ScheduleLocation(**location_options), output=output)


@schedule.command(short_help="Delete a schedule.")
@options(NAME, *WHERE)
def delete(name: str, **location_options: Any) -> int:
    """Delete NAME. A firing that runs goes on, its versions stay.

    \b
    Example:
      graceful schedule delete nightly --on kind
    """
    from graceful.cli import scheduling

    return scheduling.delete(name, scheduling.ScheduleLocation(**location_options))


@schedule.command(short_help="Run the scheduler of this machine.")
@options(HOME, QUIET)
def run(home: Path | None, quiet: bool) -> int:
    """Fire the schedules of this machine when they are due, one firing at a time, until Ctrl-C.

    It may be stopped and started at any time: what is due follows from files. Ctrl-C ends the firing that
    runs as it ends `graceful refresh`; started again within an hour, it resumes it.

    \b
    Example:
      graceful schedule run
    """
    from graceful.cli import schedule_runs

    return schedule_runs.run(home=home, quiet=quiet)
