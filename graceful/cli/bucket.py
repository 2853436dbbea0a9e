"""Operations on buckets by programs in processes of their own, because the client has no S3 library. Client."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graceful import startup
from graceful.cli import programs
from graceful.errors import EXIT_USAGE, InfrastructureError, SpecError

if TYPE_CHECKING:
    from graceful.launch.kuberay.gc import Removal

KIND = "Checkpoints"


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """Result of a sweep of a bucket.

    Attributes:
        removals: What went, or would go.
        problem: Why it did not get to the end, with a remedy; empty: it did.
    """

    removals: tuple[Removal, ...] = ()
    problem: str = ""


NOTHING = SweepResult()


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """Packed code in a bucket.

    Attributes:
        size: Bytes.
        uri: Its address.
        uploaded: Whether that was necessary, and done.
    """

    size: int
    uri: str
    uploaded: bool


def sweep(uri: str, *, older: timedelta, dry_run: bool) -> SweepResult:
    """Delete checkpoints that no run needs below s3://bucket/prefix, or only say which."""
    from graceful.launch.kuberay.gc import Removal

    flags = ["--dry-run"] if dry_run else []
    process = _run("sweep", uri, "--older-than", str(older.total_seconds()), *flags)
    lines = process.stdout.strip().splitlines()
    removals = tuple(
        Removal(kind=KIND, name=row["uri"], uid="", why=f"{row['why']}, {_amount(row)}")
        for row in (json.loads(lines[-1]) if lines else ())
    )
    return SweepResult(removals=removals, problem="" if process.returncode == 0 else _last(process))


def ship(path: Path, storage_uri: str) -> Bundle:
    """Put a folder of code, or a file, into s3://bucket/prefix under its digest.

    Raises:
        SpecError: It cannot be packed.
        InfrastructureError: The bucket cannot be reached or refused.
    """
    process = _run("ship", str(path), storage_uri)
    if process.returncode != 0:
        raise (SpecError if process.returncode == EXIT_USAGE else InfrastructureError)(_last(process))
    facts = json.loads(process.stdout)
    return Bundle(size=facts["bytes"], uri=facts["uri"], uploaded=bool(facts["uploaded"]))


def attempt_log(uri: str, run: str, number: int) -> str:
    """Return the copy of the log of one start of a run, below s3://bucket/prefix.

    Raises:
        SpecError: There is none of that number.
        InfrastructureError: The bucket cannot be reached or refused.
    """
    process = _run("log_archive", uri, run, str(number))
    if process.returncode != 0:
        raise (SpecError if process.returncode == EXIT_USAGE else InfrastructureError)(_last(process))
    return process.stdout


def _run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program without a time limit: programs give up by themselves on a server that does not answer."""
    command = startup.python(f"graceful.programs.housekeeping.{program}", *arguments)
    env = {**os.environ, **programs.environment(os.environ)}
    return startup.answer(command, environment=env)


def _last(process: subprocess.CompletedProcess[str]) -> str:
    lines = process.stderr.strip().splitlines()
    return lines[-1] if lines else f"the program that reaches the bucket ended with exit code {process.returncode}"


def _amount(row: dict[str, Any]) -> str:
    count, mebibytes = row["objects"], row["bytes"] / 2**20
    return f"{count} {'object' if count == 1 else 'objects'}, {mebibytes:,.1f} MiB"
