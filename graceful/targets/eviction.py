"""Keep the caches of predecessor outputs within a size: the least recently used ones go. The driver runs it.

A process with an open cache holds a shared lock on `<key>.use`; locked caches stay. `Cache.open` marks the
time of use. A deleted cache is rebuilt when it is asked for again.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Iterable
from pathlib import Path

from graceful import locks
from graceful.storage import guarded, read_bytes
from graceful.targets import files


def keys_of(root: str | Path, *, predecessors: Collection[str]) -> list[str]:
    """Return the keys of the caches of some versions, by their digests: of those that cannot be run again."""
    folders = finished(Path(root)) if predecessors else []
    return [folder.name for folder in folders if predecessor_of(folder) in predecessors]


def predecessor_of(folder: Path) -> str | None:
    """Return the digest of the version whose outputs a finished cache holds; None where its description is damaged."""
    try:
        return str(json.loads(read_bytes(folder / files.META))["identity"]["predecessor"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def evict(root: str | Path, *, limit: int, keep: Iterable[str] = ()) -> list[str]:
    """Delete finished caches, least recently used first, until those that stay fit.

    Args:
        root: Folder of caches.
        limit: Bytes that all of them together may take.
        keep: Keys that stay whatever their age.

    Returns:
        Keys of what was deleted. Caches in use stay, so more than `limit` may be left.

    Raises:
        StorageError: Something cannot be deleted.
    """
    root, protected = Path(root), set(keep)
    sizes = {folder: _bytes(folder) for folder in finished(root)}
    remaining, deleted = sum(sizes.values()), []
    for folder in sorted(sizes, key=lambda path: (path / files.META).stat().st_mtime_ns):
        if remaining <= limit:
            break
        if folder.name not in protected and delete(folder):
            remaining -= sizes[folder]
            deleted.append(folder.name)
    return deleted


def finished(root: Path) -> list[Path]:
    """Return the folders of the finished caches in a folder."""
    return [path.parent for path in root.glob(f"*/{files.META}") if path.parent.suffix == ""]


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())


def delete(folder: Path) -> bool:
    """Delete a cache, renamed first, so that no process finds half of it; return False where it is open.

    Raises:
        StorageError: It cannot be deleted.
    """
    with guarded(folder, "delete"):
        try:
            with locks.exclusive(folder.with_name(f"{folder.name}{files.IN_USE}")):
                renamed = folder.with_name(f"{folder.name}.deleted-{os.getpid()}")
                folder.rename(renamed)
                shutil.rmtree(renamed)
        except BlockingIOError:
            return False
    return True
