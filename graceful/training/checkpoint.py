"""Checkpoint folders: engine state, run state, a manifest of SHA-256 per rank. Runs in workers.

    state.json                what the loop needs besides the engine (rank 0)
    manifest-00000.json       rank, world size, the SHA-256 of every file that rank wrote and of the run state as that
                              rank has it, written last: the ranks must agree
    ...                       engine files

Digests find truncation and rot; they do not protect against a person who may write there, because that person can write
a matching manifest. Engine files are pickles of tensors and plain values, and are read as such: `unpickling` runs
nothing that they name.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graceful.errors import IntegrityError
from graceful.storage import guarded, sha256_file, sha256_json, write_json

STATE = "state.json"
KEEP = 2
"""Local checkpoints kept; the older one is for the reader of a post-mortem and for a disk that lies."""
_FULL = 2**16
"""Free bytes below which a disk is full."""
_LOG = logging.getLogger(__name__)


def name_of(step: int) -> str:
    """Return the folder of a step's checkpoint: fixed, so that a repeated step overwrites what a dying attempt left."""
    return f"step-{step:09d}"


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn what goes wrong while a checkpoint is written into one line about its folder.

    Raises:
        StorageError: Disk full, permission. torch hides a full disk in a RuntimeError about positions in its archive.
    """
    with guarded(folder, "write a checkpoint"):
        try:
            yield
        except RuntimeError as e:
            if shutil.disk_usage(folder).free > _FULL:
                raise
            raise OSError(errno.ENOSPC, "no space left") from e


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one rank adds to a checkpoint: its files are written, flushing and digests are left to do.

    Attributes:
        folder: Holds exactly the files this rank wrote.
        step: The step of the checkpoint.
        metrics: What is known of it.
        state: JSON values; the same on all ranks.
        rank: This rank.
        world_size: Ranks.
    """

    folder: Path
    step: int
    metrics: Mapping[str, float]
    state: Mapping[str, Any]
    rank: int
    world_size: int

    def seal(self) -> None:
        """Finish the part as `seal` does; once it is finished, nothing happens.

        Raises:
            StorageError: Disk full, permission.
        """
        if not (self.folder / _manifest(self.rank)).exists():
            with writing(self.folder):
                seal(self.folder, state=self.state, rank=self.rank, world_size=self.world_size)


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
    document = {"schema": 1, "rank": rank, "world_size": world_size, "state": sha256_json(state), "files": files}
    write_json(folder / _manifest(rank), document)


def verify(folder: Path) -> dict[str, Any]:
    """Check every file of a checkpoint, then return its state.

    Raises:
        IntegrityError: A file is missing, truncated or changed, or the ranks had different states.
    """
    ranks, _ = _listed(folder, rank=0)
    for rank in range(ranks):
        if _load(folder, _manifest(rank)).get("state") != _load(folder, _manifest(0)).get("state"):
            raise _damaged(folder / _manifest(rank), "is of another state than that of rank 0")
        for name, expected in _listed(folder, rank=rank)[1].items():
            path = folder / name
            if not path.is_file():
                raise _damaged(path, "is missing")
            if sha256_file(path) != expected:
                raise _damaged(path, f"has not the SHA-256 {expected[:12]}... of its manifest")
    return _load(folder, STATE)


def publish(part: Path, *, root: Path, step: int) -> Path:
    """Move a sealed folder beside the others in one rename; for runs without Ray.

    Deleted are the oldest, and those of later steps: the run would not be here again if they were whole.
    """
    target = root / name_of(step)
    if target.exists():
        shutil.rmtree(target)
    part.rename(target)
    checkpoints = sorted(root.glob("step-*"))
    good = checkpoints[: checkpoints.index(target) + 1]
    for old in [*good[:-KEEP], *checkpoints[len(good) :]]:
        shutil.rmtree(old)
    return target


def latest(root: Path) -> Path | None:
    """Return the newest published folder that is whole; a damaged one is passed over with a warning. None if there is
    none.

    Raises:
        IntegrityError: There are some, and none is whole; about the newest.
    """
    damages: list[IntegrityError] = []
    for folder in sorted(root.glob("step-*"), reverse=True):
        try:
            verify(folder)
        except IntegrityError as e:
            damages.append(e)
            continue
        for damage in damages:
            _LOG.warning("%s; going on from %s, the steps since are trained again", damage.facts["found"], folder.name)
        return folder
    if damages:
        raise damages[0]
    return None


def _manifest(rank: int) -> str:
    return f"manifest-{rank:05d}.json"


def _listed(folder: Path, *, rank: int) -> tuple[int, dict[str, str]]:
    """Return how many ranks the manifest of one rank names, and the digests of this rank's files."""
    document = _load(folder, _manifest(rank))
    ranks, files = document.get("world_size"), document.get("files")
    if not isinstance(ranks, int) or ranks < 1 or not isinstance(files, dict):
        raise _damaged(folder / _manifest(rank), "is not a manifest")
    return ranks, {name: str(digest) for name, digest in files.items()}


def _load(folder: Path, name: str) -> dict[str, Any]:
    try:
        document = json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError as e:
        raise _damaged(folder / name, "is missing") from e
    except (OSError, ValueError, RecursionError) as e:
        raise _damaged(folder / name, "cannot be read") from e
    if not isinstance(document, dict):
        raise _damaged(folder / name, "is not a JSON object")
    return document


def _damaged(path: Path, problem: str) -> IntegrityError:
    message = f"checkpoint file {path} {problem}"
    return IntegrityError(
        f"{message}; delete the run's folder to start the run again", {"path": str(path), "found": message}
    )


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
