"""Checkpoint folders: engine state, run state, a manifest of SHA-256 per rank. Runs in workers.

    state.json                what the loop needs besides the engine (rank 0)
    manifest-00000.json       rank, world size and the SHA-256 of every file that rank wrote, written last
    ...                       engine files

DeepSpeed's files are pickles, which are code: they are read only from the run's own folder, and only after every file
has the digest its manifest says. Digests find truncation and rot; they are no seal against whoever may write there.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from graceful.errors import IntegrityError
from graceful.storage import sha256_file, write_json

STATE = "state.json"
KEEP = 2
"""Local checkpoints kept; the older one is for the reader of a post-mortem and for a disk that lies."""


def name_of(step: int) -> str:
    """Folder of a step's checkpoint: fixed, so that a repeated step overwrites what a dying attempt left."""
    return f"step-{step:09d}"


def seal(folder: Path, *, state: Mapping[str, Any], rank: int, world_size: int) -> None:
    """Finish the part of a checkpoint that one rank wrote: state (rank 0), flush to disk, manifest.

    Args:
        folder: Holds exactly the files this rank wrote.
        state: JSON values; the same on all ranks.
        rank: This rank.
        world_size: Ranks.
    """
    if rank == 0:
        write_json(folder / STATE, state)
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            _flush(path)
            files[path.relative_to(folder).as_posix()] = sha256_file(path)
    document = {"schema": 1, "rank": rank, "world_size": world_size, "files": files}
    write_json(folder / _manifest(rank), document)


def verify(folder: Path) -> dict[str, Any]:
    """Check every file of a checkpoint, then return its state.

    Raises:
        IntegrityError: A file is missing, truncated or changed.
    """
    first = _load(folder, _manifest(0))
    for rank in range(int(first["world_size"])):
        for name, expected in _load(folder, _manifest(rank))["files"].items():
            path = folder / name
            if not path.is_file():
                raise _damaged(path, "is missing")
            if sha256_file(path) != expected:
                raise _damaged(path, f"has not the SHA-256 {expected[:12]}... of its manifest")
    return _load(folder, STATE)


def publish(part: Path, *, root: Path, step: int) -> Path:
    """Move a sealed folder beside the others in one rename and delete the oldest; for runs without Ray."""
    target = root / name_of(step)
    if target.exists():
        shutil.rmtree(target)
    part.rename(target)
    for old in sorted(root.glob("step-*"))[:-KEEP]:
        shutil.rmtree(old)
    return target


def latest(root: Path) -> Path | None:
    """Newest published folder; None if there is none."""
    return max(root.glob("step-*"), default=None)


def _manifest(rank: int) -> str:
    return f"manifest-{rank:05d}.json"


def _load(folder: Path, name: str) -> dict[str, Any]:
    try:
        document = json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError as e:
        raise _damaged(folder / name, "is missing") from e
    except (OSError, ValueError) as e:
        raise _damaged(folder / name, "cannot be read") from e
    if not isinstance(document, dict):
        raise _damaged(folder / name, "is not a JSON object")
    return document


def _damaged(path: Path, problem: str) -> IntegrityError:
    return IntegrityError(
        f"checkpoint file {path} {problem}; delete the run's folder to start the run again", {"path": str(path)}
    )


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
