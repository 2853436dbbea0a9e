"""`graceful gc` of this machine's home, done by a program that can reach registry and buckets. Client."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from graceful import homes, startup
from graceful.cli import output as out
from graceful.cli import programs
from graceful.cli.following import duration
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
    command = startup.python("graceful.programs.reclaim", str(folder), *limits, *flags)
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
