"""Checkpoints of a hub: taken from its cache without asking, and what is said where the hub cannot be had."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from graceful.errors import SpecError
from graceful.spec import parse
from tests.support import text_checkpoint

REVISION = "0123456789abcdef0123456789abcdef01234567"
TAKE = """
import sys
from graceful.errors import DataError
from graceful.models.checkpoint_folders import folder_of
for name in sys.argv[2:]:
    try:
        print(folder_of(name, revision=sys.argv[1]))
    except DataError as e:
        print(e)
"""


def taken(cache: Path, *names: str, **variables: str) -> list[str]:
    """What a process says of checkpoints of the hub that is not there."""
    unreachable = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_CACHE": str(cache), **variables}
    env = {name: value for name, value in os.environ.items() if not name.startswith("HF_")} | unreachable
    command = [sys.executable, "-c", TAKE, REVISION, *names]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=True, timeout=300).stdout.splitlines()


def test_the_cache_of_the_hub_is_used_offline(tmp_path: Path) -> None:
    place = text_checkpoint.save(tmp_path / "models--owner--model" / "snapshots" / REVISION)
    found, gone = taken(tmp_path, "owner/model", "owner/gone", HF_HUB_OFFLINE="1")
    assert found == str(place)
    assert gone == (
        f"task.network.checkpoint: owner/gone at {REVISION[:12]} cannot be had (HF_HUB_OFFLINE is set, and it is not in"
        " the cache of the hub); unset that once, or name a folder or s3://bucket/prefix/"
    )


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        ("gs://bucket/model", "must be a folder, s3://bucket/prefix/ or a hub id, got gs://bucket/model"),
        ("s3://", "checkpoint"),
    ],
)
def test_addresses_of_other_kinds_are_refused(checkpoint: str, message: str) -> None:
    network = {"kind": "transformers", "checkpoint": checkpoint}
    task = {"kind": "table", "files": "rows.parquet", "columns": {"text": "text"}, "network": network}
    with pytest.raises(SpecError, match=message):
        parse({"model": "m", "name": "v1", "task": task})
