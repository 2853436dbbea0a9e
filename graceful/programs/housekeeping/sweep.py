"""Delete checkpoints in a bucket that no run needs.

`python -m graceful.programs.housekeeping.sweep s3://bucket/prefix` is a process of its own, because the client that
starts it (`graceful gc`) cannot reach buckets.

A run that has its result needs no checkpoints. For any other run, Ray's snapshot lists the checkpoints from which it
could resume. Checkpoints beside them that are not listed were left by an interrupted upload or deletion; they are
deleted once they are too old to belong to an upload in progress. A run without a readable snapshot keeps everything.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from graceful.errors import GracefulError, StorageError
from graceful.storage import objects
from graceful.storage.objects import StoredObject

RESULT = "result.json"
FOLDERS = ("ray", "checkpoints")
"""Folders of a run: where Ray keeps checkpoints, and where runs without workers do."""
SNAPSHOT = "checkpoint_manager_snapshot.json"
LEAST = timedelta(hours=1)
"""Age below which nothing of an unfinished run goes, whatever is asked: a large file appears when all of it is sent."""
_CHECKPOINT = re.compile(r"step-\d+")


@dataclass(frozen=True, kw_only=True)
class Orphan:
    """Checkpoints that are no longer needed.

    Attributes:
        uri: Of their folder.
        why: For people.
        objects: What would be deleted.
    """

    uri: str
    why: str
    objects: tuple[StoredObject, ...]


def orphans(
    listing: Iterable[StoredObject], *, root: str, listed_checkpoints: Mapping[str, frozenset[str]], before: datetime
) -> tuple[Orphan, ...]:
    """Return what is no longer needed, from a listing; a pure function.

    Args:
        listing: Everything below the runs' address, or all of one run; never a part of a run.
        root: That address, s3://bucket/prefix/runs.
        listed_checkpoints: For each snapshot that could be read, by its folder below the root
            (`glyphs-v2/ray/glyphs-v2`): the checkpoints that it lists. Folders that are absent keep everything.
        before: An unlisted checkpoint goes if its newest object is older; an object without a time is new.
    """
    by_run: dict[str, list[tuple[tuple[str, ...], StoredObject]]] = defaultdict(list)
    for stored in listing:
        run, *rest = stored.uri.removeprefix(f"{root}/").split("/")
        by_run[run].append((tuple(rest), stored))
    orphaned: list[Orphan] = []
    for run in sorted(by_run):
        finished = any(parts == (RESULT,) for parts, _ in by_run[run])
        folders: dict[tuple[str, ...], list[StoredObject]] = defaultdict(list)
        for parts, stored in by_run[run]:
            if len(parts) > (1 if finished else 3) and parts[0] in FOLDERS:
                folders[parts[:1] if finished else parts[:3]].append(stored)
        for parts in sorted(folders):
            why = (
                "its run has a result"
                if finished
                else _unlisted(run, parts, folders[parts], listed_checkpoints, before)
            )
            if why:
                orphaned.append(Orphan(uri="/".join((root, run, *parts)), why=why, objects=tuple(folders[parts])))
    return tuple(orphaned)


def _unlisted(
    run: str,
    parts: tuple[str, ...],
    stored_objects: Sequence[StoredObject],
    listed_checkpoints: Mapping[str, frozenset[str]],
    before: datetime,
) -> str:
    """Return why a checkpoint of an unfinished run is an orphan; empty: it is none."""
    listed = listed_checkpoints.get("/".join((run, *parts[:2])))
    times = [stored.modified for stored in stored_objects if stored.modified is not None]
    if listed is None or not _CHECKPOINT.fullmatch(parts[2]) or parts[2] in listed:
        return ""
    if len(times) < len(stored_objects) or max(times) >= before:
        return ""
    return f"no snapshot lists it, last written {max(times):%Y-%m-%d %H:%M}"


def listed_in(snapshot: bytes) -> frozenset[str] | None:
    """Return the names of the checkpoints that a snapshot of Ray's refers to; None: it cannot be read."""
    try:
        document = json.loads(snapshot)
        results = [*document["checkpoint_results"], *document["pending_training_results"]]
        latest = document["latest_checkpoint_result"]
        return frozenset(str(result["checkpoint_dir_name"]) for result in (*results, *([latest] if latest else ())))
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


# --- the bucket -------------------------------------------------------------------------------------------------------


def find(root: str, *, before: datetime, run: str = "") -> tuple[Orphan, ...]:
    """Return what is no longer needed; changes nothing.

    Args:
        root: s3://bucket/prefix/runs.
        before: As of `orphans`.
        run: Only of this run; empty: of all.

    Raises:
        StorageError: Unreachable or refused.
    """
    listing = objects.list_objects(f"{root}/{run}" if run else root)
    listed_checkpoints: dict[str, frozenset[str]] = {}
    for stored in listing:  # read after the listing: what is registered meanwhile is listed, or too new
        folder, _, name = stored.uri.removeprefix(f"{root}/").rpartition("/")
        if name == SNAPSHOT and (listed := _read(stored.uri)) is not None:
            listed_checkpoints[folder] = listed
    return orphans(listing, root=root, listed_checkpoints=listed_checkpoints, before=before)


def _read(uri: str) -> frozenset[str] | None:
    try:
        return listed_in(objects.read_object(uri))
    except StorageError as e:
        if e.facts.get("code") not in objects.ABSENT:
            raise
        return None


def sweep(uri: str, *, older: timedelta, now: datetime, dry_run: bool, removed_rows: list[dict[str, Any]]) -> None:
    """Delete orphans, each looked at again just before: its run may have been resumed since the listing.

    Args:
        uri: s3://bucket/prefix, as in GRACEFUL_STORAGE.
        older: At least `LEAST` counts.
        now: With a time zone.
        dry_run: Only say what would go.
        removed_rows: Gets a row for each folder as it goes, so that a failure in the middle hides nothing.

    Raises:
        StorageError: Unreachable or refused.
    """
    root, before = f"{uri.rstrip('/')}/runs", now - max(older, LEAST)
    for orphan in find(root, before=before):
        if not dry_run:
            run = orphan.uri.removeprefix(f"{root}/").partition("/")[0]
            if orphan not in find(root, before=before, run=run):
                continue
            objects.remove(orphan.objects)
        size = sum(stored.size for stored in orphan.objects)
        removed_rows.append({"uri": orphan.uri, "why": orphan.why, "objects": len(orphan.objects), "bytes": size})


def main(arguments: list[str] | None = None) -> int:
    """Sweep; rows of what was removed are JSON on stdout, also after a failure, which is one line on stderr."""
    parser = argparse.ArgumentParser(prog="python -m graceful.programs.housekeeping.sweep")
    parser.add_argument("uri", help="s3://bucket/prefix")
    parser.add_argument("--older-than", type=float, default=86400.0, metavar="SECONDS")
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args(arguments)
    removed_rows: list[dict[str, Any]] = []
    older = timedelta(seconds=options.older_than)
    try:
        sweep(options.uri, older=older, now=datetime.now(UTC), dry_run=options.dry_run, removed_rows=removed_rows)
    except GracefulError as e:
        sys.stderr.write(f"{e.message}\n")
        return e.exit_code
    finally:
        sys.stdout.write(json.dumps(removed_rows) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
