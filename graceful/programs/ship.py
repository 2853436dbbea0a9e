"""Pack the code of a task and put it into a bucket: `python -m graceful.programs.ship my_task/ s3://bucket/prefix`. A
process of its own, because the client that starts it (`graceful submit`) has no door to buckets.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from graceful import environment
from graceful.errors import GracefulError
from graceful.storage import objects
from graceful.tasks import code


def ship(path: Path, storage_uri: str | None, *, dry_run: bool) -> dict[str, Any]:
    """Upload a folder or file unless its content is there already.

    Args:
        path: Of the code.
        storage_uri: s3://bucket/prefix; None: only pack.
        dry_run: Only say where it would go; the bucket is not asked.

    Returns:
        `sha256`, `bytes` and `uri` (None without storage) of the bundle, and whether it was `uploaded` now.

    Raises:
        SpecError: The code cannot be packed.
        StorageError: Unreachable or refused.
    """
    bundle = code.pack(path)
    digest = hashlib.sha256(bundle).hexdigest()
    uri = None if storage_uri is None else code.address(storage_uri, digest)
    facts = {"sha256": digest, "bytes": len(bundle), "uri": uri, "uploaded": False}
    if uri is None or dry_run:
        return facts
    there = {stored.uri: stored.size for stored in objects.list_objects(uri.rpartition("/")[0])}
    if there.get(uri) == len(bundle):
        return facts
    objects.write_object(uri, bundle)
    return {**facts, "uploaded": True}


def main(arguments: list[str] | None = None) -> int:
    """Ship; the facts go to stdout as one JSON object, an error of ours to stderr as one line."""
    parser = argparse.ArgumentParser(prog="python -m graceful.programs.ship")
    parser.add_argument("path", type=Path, help="a folder with task.py, or one file")
    parser.add_argument("storage", nargs="?", help="s3://bucket/prefix; without it the code is only packed")
    parser.add_argument("--dry-run", action="store_true", help="only say where it would go; the bucket is not asked")
    options = parser.parse_args(arguments)
    try:
        environment.clean()
        facts = ship(options.path, options.storage, dry_run=options.dry_run)
    except GracefulError as e:
        sys.stderr.write(f"{e.message}\n")
        return e.exit_code
    sys.stdout.write(json.dumps(facts) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
