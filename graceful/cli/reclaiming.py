"""`graceful gc`: of this machine's home, by a program that reaches registry and buckets, and of a cluster. Client."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from graceful import homes, startup
from graceful.cli import output as out
from graceful.cli import programs
from graceful.cli.following import duration
from graceful.cli.locations import RunLocation
from graceful.environment import HOME_VARIABLE
from graceful.errors import EXIT_INFRASTRUCTURE

GB = 1e9


def gc(home: Path | None, *, older: str, cache_gb: float, dry_run: bool, output: str) -> int:
    """Remove what finished runs left in a home, and copies over a limit, or only say what would go.

    Args:
        home: As `--home`.
        older: Since runs ended, e.g. 1d.
        cache_gb: What copies may take.
        dry_run: Change nothing.
        output: Form of the result.

    Returns:
        0; 4 if registry, bucket or disk did not let it get to the end.

    Raises:
        SpecError: No such duration.
    """
    folder, age = homes.folder(home), duration(older)
    flags = ["--dry-run"] if dry_run else []
    limits = ["--older-than", str(age.total_seconds()), "--limit", str(int(cache_gb * GB))]
    command = startup.python("graceful.programs.housekeeping.reclaim", str(folder), *limits, *flags)
    env = {**os.environ, **programs.environment(os.environ), HOME_VARIABLE: str(folder)}
    process = startup.answer(command, environment=env)
    lines = process.stdout.strip().splitlines()
    result: dict[str, Any] = json.loads(lines[-1]) if lines else {"removed": [], "kept_bytes": 0, "busy": ""}
    _show(result, folder, cache_gb=cache_gb, dry_run=dry_run, output=output)
    if process.returncode == 0:
        return 0
    errors = process.stderr.strip().splitlines() or [f"exit code {process.returncode}"]
    out.talk(f"warning: not cleaned to the end: {errors[-1]}")
    return EXIT_INFRASTRUCTURE


def _show(result: dict[str, Any], home: Path, *, cache_gb: float, dry_run: bool, output: str) -> None:
    rows = result["removed"]
    if output != "table":
        out.document({**result, "dry_run": dry_run, "home": str(home), "limit_bytes": int(cache_gb * GB)}, output)
    else:
        for row in rows:
            count = f"{row['count']:,} objects, " if row["kind"] == "objects" else ""
            out.line(f"{row['kind']} {row['name']}: {row['why']}, {count}{_size(row['bytes'])}")
    verb = "would be removed" if dry_run else "removed"
    freed_bytes = sum(row["bytes"] for row in rows)
    remaining = f"copies of {_size(result['kept_bytes'])} stay (limit {cache_gb:g} GB)"
    reason_kept = f"; none of them goes while {result['busy']} is worked on" if result["busy"] else ""
    out.talk(f"{_size(freed_bytes)} {verb} in {home}; {remaining}{reason_kept}")


def _size(count: int) -> str:
    return f"{count / GB:,.2f} GB" if count >= GB / 10 else f"{count / 1e6:,.1f} MB"


def gc_on_cluster(location: RunLocation, *, older: str, stopped: str | None = None, dry_run: bool, output: str) -> int:
    """Remove what finished runs left behind on Kubernetes and in the profile's bucket, or only say what would go.

    Args:
        location: Where.
        older: Since runs ended, e.g. 1d.
        stopped: Since runs were stopped that can resume no more then; None: they stay.
        dry_run: Change nothing.
        output: Form of the result.

    Returns:
        0; 4 if the bucket could not be swept to the end.

    Raises:
        SpecError: The backend is not a Kubernetes backend; others leave nothing but a small folder or record behind.
    """
    from graceful.cli import bucket
    from graceful.launch.kuberay import gc as garbage

    age = duration(older)
    stopped_age = None if stopped is None else duration(stopped)
    removals = garbage.find(location.kube, now=datetime.now(UTC), min_age=age, stopped_age=stopped_age)
    removed = removals if dry_run else garbage.remove(location.kube, removals)
    uri = location.storage
    sweep = bucket.NOTHING if uri is None else bucket.sweep(uri, older=age, dry_run=dry_run)
    if output != "table":
        out.document([asdict(removal) for removal in (*removed, *sweep.removals)], output)
    else:
        for removal in (*removed, *sweep.removals):
            out.line(f"{removal.kind} {removal.name}: {removal.why}")
        verb = "would be removed" if dry_run else "removed"
        out.talk(f"{_count(len(removed), 'object')} {verb} in namespace {location.kube.namespace}")
        if uri is not None:
            out.talk(f"{_count(len(sweep.removals), 'folder')} of checkpoints {verb} in {uri}")
    if sweep.problem:
        out.talk(f"warning: checkpoints not swept to the end: {sweep.problem}")
        return EXIT_INFRASTRUCTURE
    return 0


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
