"""Pack the code of a task and put it into a bucket.

`python -m graceful.programs.housekeeping.ship my_task/ s3://bucket/prefix` is a process of its own, because the client
that starts it (`graceful submit`) cannot reach buckets.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from graceful import environment, packing
from graceful.errors import GracefulError
from graceful.storage import objects


def ship(path: Path, storage_uri: str) -> dict[str, Any]:
    """Upload a folder or file unless its content is there already.

    Args:
        path: The path of the code.
        storage_uri: s3://bucket/prefix.

    Returns:
        `bytes` and `uri` of the bundle, and whether it was `uploaded` now.

    Raises:
        SpecError: The code cannot be packed.
        StorageError: Unreachable or refused.
    """
    bundle = packing.pack(path)
    uri = packing.address(storage_uri, hashlib.sha256(bundle).hexdigest())
    stored_sizes = {stored.uri: stored.size for stored in objects.list_objects(uri.rpartition("/")[0])}
    missing = stored_sizes.get(uri) != len(bundle)
    if missing:
        objects.write_object(uri, bundle)
    return {"bytes": len(bundle), "uri": uri, "uploaded": missing}


def main(arguments: list[str] | None = None) -> int:
    """Ship; the facts go to stdout as one JSON object, an error of ours to stderr as one line."""
    parser = argparse.ArgumentParser(prog="python -m graceful.programs.housekeeping.ship")
    parser.add_argument("path", type=Path, help="a folder with task.py, or one file")
    parser.add_argument("storage", help="s3://bucket/prefix")
    options = parser.parse_args(arguments)
    try:
        environment.clean()
        facts = ship(options.path, options.storage)
    except GracefulError as e:
        sys.stderr.write(f"{e.message}\n")
        return e.exit_code
    sys.stdout.write(json.dumps(facts) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
