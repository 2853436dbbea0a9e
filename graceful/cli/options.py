"""Options and arguments that several commands share. Imports click alone. Runs on the client."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from graceful import addresses, homes, paths
from graceful.environment import HOME_VARIABLE


class InOrder(click.Group):
    """Lists commands in the order in which people meet them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order in which they were added."""
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Resolve a command of two words, e.g. `lineage repair`, beside one that begins with the first of them."""
        two_words = " ".join(args[:2])
        return (
            (two_words, self.commands[two_words], args[2:])
            if two_words in self.commands
            else super().resolve_command(ctx, args)
        )


class File(click.Path):
    """A path, refused where it can name no file, which click itself finds out by a traceback."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read it."""
        problem = paths.problem(value) if str(value) else "must not be empty"
        if problem is not None:
            self.fail(problem, param, ctx)
        return super().convert(value, param, ctx)


class Anywhere(File):
    """A path of this machine or the address of a bucket, s3://bucket/prefix, as text."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read it."""
        text = str(value)
        if addresses.has_other_scheme(text):
            self.fail(f"must be a path or s3://bucket/prefix, got {text}", param, ctx)
        if not addresses.is_remote(text):
            return str(super().convert(value, param, ctx))
        try:
            return addresses.normalised(text).rstrip("/")
        except ValueError as e:
            self.fail(str(e), param, ctx)


class Whole(click.IntRange):
    """A whole number that every library can hold, in digits of ASCII."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read it."""
        if not str(value).isascii() or len(str(value)) > LONGEST_NUMBER:
            self.fail(f"{str(value)[:LONGEST_NUMBER]!r} is not a number of at most {LONGEST_NUMBER} digits", param, ctx)
        return super().convert(value, param, ctx)


class Finite(click.FloatRange):
    """A number that is neither infinite nor none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read it."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{str(value)[:LONGEST_NUMBER]!r} is not a finite number", param, ctx)
        return number


LONGEST_NUMBER = 9
OUTPUTS = ("table", "json", "yaml")
Command = TypeVar("Command", bound=Callable[..., Any])

SPEC = click.argument("spec", type=File(path_type=Path))
SET = click.option(
    "--set", "sets", multiple=True, metavar="KEY=VALUE", help="Override one key, e.g. train.epochs=2. Repeatable."
)


def TRUST(command: Command) -> Command:  # noqa: N802  an option like the others here
    """Add `--trust-code`, whose digests reach the command as further `--set`."""

    @click.option(
        "--trust-code",
        "trusted",
        multiple=True,
        metavar="SHA256",
        help="Run recorded code of ancestors that has this digest; other code is not run. Repeatable.",
    )
    @functools.wraps(command)
    def trusting(*arguments: Any, sets: tuple[str, ...], trusted: tuple[str, ...], **options: Any) -> Any:
        added = [f"trust.code_digests.+={json.dumps(digest)}" for digest in trusted]
        return command(*arguments, sets=(*sets, *added), **options)

    return cast("Command", trusting)


HOME = click.option(
    "--home",
    type=File(path_type=Path, file_okay=False),
    help=f"Folder of runs, caches and the default registry.  [default: ${HOME_VARIABLE}, else {homes.DEFAULT}]",
)
ON = click.option(
    "--on",
    metavar="NAME",
    required=True,
    help="Profile of the place: cluster/NAME.yaml, or a path that ends in .yaml.",
)
OUTPUT = click.option(
    "-o",
    "--output",
    type=click.Choice(OUTPUTS),
    default="table",
    show_default=True,
    help="Form of the result on stdout.",
)
QUIET = click.option("-q", "--quiet", is_flag=True, help="Print errors alone on stderr, no progress.")
PROFILE = click.option(
    "--profile", is_flag=True, help="Write where the time of a few steps goes to profile.json.gz in the run's folder."
)
VERBOSE = click.option("-v", "--verbose", count=True, help="Print more on stderr; -vv prints everything.")

LOCATION = (
    click.option("--on", metavar="NAME", help="Profile of the place: cluster/NAME.yaml, or a path that ends in .yaml."),
    click.option(
        "--context", metavar="NAME", help="Context of the kubeconfig.  [default: the profile's, else the current one]"
    ),
    click.option("-n", "--namespace", metavar="NAME", help="[default: the profile's, else the context's]"),
)


def options(*decorators: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Return several decorators as one; `--help` shows them in this order."""

    def decorate(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate
