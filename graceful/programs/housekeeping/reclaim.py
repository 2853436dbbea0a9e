"""Remove from a home what finished runs left behind and what can be fetched or computed again.

`python -m graceful.programs.housekeeping.reclaim HOME` is a process of its own, because the client that starts it
(`graceful gc`) cannot reach the registry or buckets.

Checkpoints of finished runs and files of interrupted writes are deleted once they are old enough. Copies are deleted,
least recently used first, until the newest fit a limit: objects of buckets, versions, records and code that are stored
elsewhere, indices, and caches of outputs that can be computed again. What is in use, and what cannot be found
elsewhere, stays.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from graceful import locks
from graceful.errors import GracefulError, InfrastructureError
from graceful.files import guarded
from graceful.programs.housekeeping.other_copies import OtherCopies
from graceful.programs.housekeeping.sweep import FOLDERS, RESULT
from graceful.storage import Mirror
from graceful.targets import eviction
from graceful.targets.files import META

LEAST = 3600.0
"""Seconds within which what was used or written stays, whatever is asked: a program may just be reading it."""
LOCKS = ("runs/*/lock", "tunes/*/lock", "locks/*/lock")
OWN_FOLDERS = (
    "cache",
    "code",
    "evaluations",
    "jobs",
    "locks",
    "outbox",
    "records",
    "references",
    "runs",
    "schedules",
    "targets",
    "tunes",
    "versions",
    "webhooks",
)
"""Folders of a home that graceful writes. Everything else below the home belongs to others: MLflow's files, and what
the user keeps there."""
_OTHERS = re.compile(r"code/[0-9a-f]{64}|jobs/[^/]+/input")
"""Folders inside of those that hold files of the user."""
_MODEL = re.compile(r"checkpoints/[0-9a-f]{32}|bases/[0-9a-f]{64}")
"""Weights of others: copies of a bucket, and what versions with adapters were trained beside."""
_RANDOM = "[a-z0-9_]{8}"
"""Random part that `tempfile` puts into names."""
_LEFT_FILE = re.compile(rf"\..+\.(?:{_RANDOM}\.tmp|\d+\.part)")
_LEFT_FOLDER = re.compile(
    rf"(?:code|jobs|cache/checkpoints|cache/bases)/\.new-{_RANDOM}|versions/\.fetch-{_RANDOM}|cache/(?:tables|images)/\.[0-9a-f]{{64}}\.{_RANDOM}\.tmp"
    r"|(?:targets/[0-9a-f]{64}|versions/m-[0-9a-f]{32}|references/reference-[0-9a-f]{16})\.fetching"
    r"|(?:runs|references|tunes)/.+/model\.fetching"
    rf"|cache/shards/(?:parts|sets)/(?:.+/)?\.new-{_RANDOM}"
    r"|targets/[0-9a-f]{64}\.deleted-\d+|(?:.+/)?\.[^/]+\.deleted-\d+"
)
_OBJECT = re.compile(r"([0-9a-f]{2})/\1[0-9a-f]{62}\.sha256")
_BLOCK = re.compile(r"([0-9a-f]{2})/\1[0-9a-f]{62}/[0-9]{8}")
_CODE = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class Item:
    """Something that may go.

    Attributes:
        kind: checkpoints, leftover, or of the copies: objects, index, model, base, version, record, code, answers,
            outputs.
        paths: What is deleted.
        size: Bytes.
        used: When it was last used, or written; seconds since 1970.
        why: For people.
    """

    kind: str
    paths: tuple[Path, ...]
    size: int
    used: float
    why: str = "least recently used"


def finished(home: Path) -> Iterator[Item]:
    """Yield the checkpoints of runs that have their result. A folder without the lock of a run is not a run."""
    for result in sorted(home.glob(f"runs/*/{RESULT}")):
        for name in FOLDERS if (result.parent / "lock").is_file() else ():
            folder = result.parent / name
            if folder.is_dir():
                yield _item("checkpoints", folder, used=result.stat().st_mtime, why="its run has a result")


def leftovers(home: Path) -> Iterator[Item]:
    """Yield files and folders of writes and downloads that broke off, by the names that graceful gives them.

    Only folders that graceful writes are searched: other files below the home may have any name.
    """
    for own in OWN_FOLDERS:
        if not (home / own).is_symlink():
            yield from _leftovers(home, home / own)


def _leftovers(home: Path, own: Path) -> Iterator[Item]:
    for where, folders, names in os.walk(own):
        location = Path(where).relative_to(home).as_posix()
        broken = {name for name in folders if _LEFT_FOLDER.fullmatch(f"{location}/{name}")}
        broken |= {name for name in names if _LEFT_FILE.fullmatch(name)}
        for name in sorted(broken):
            if not Path(where, name).is_symlink():
                yield _item("leftover", Path(where, name), why="of a write that broke off")
        folders[:] = [name for name in folders if name not in broken and not _OTHERS.fullmatch(f"{location}/{name}")]


def copies(home: Path) -> Iterator[Item]:
    """Yield what may be there a second time, elsewhere."""
    for digest in home.glob("cache/objects/*/*.sha256"):
        if _OBJECT.fullmatch(f"{digest.parent.name}/{digest.name}"):
            yield _item("objects", digest.with_suffix(""), digest)
    for block in home.glob("cache/shards/blocks/*/*/*"):
        if _BLOCK.fullmatch(block.relative_to(home / "cache/shards/blocks").as_posix()):
            yield _item("objects", block)
    for meta in (
        *home.glob("cache/tables/*/meta.json"),
        *home.glob("cache/images/*/meta.json"),
        *home.glob("cache/shards/parts/*/*/part.json"),
        *home.glob("cache/shards/sets/*/index.json"),
    ):
        yield _item("index", meta.parent, used=meta.stat().st_mtime)
    yield from (_item("index", path) for path in home.glob("cache/indices/*/derived"))  # of faiss, for a bucket
    for path in (*home.glob("cache/checkpoints/*"), *home.glob("cache/bases/*")):
        kind = "model" if path.parent.name == "checkpoints" else "base"
        if path.is_dir() and _MODEL.fullmatch(f"{path.parent.name}/{path.name}"):
            yield _item(kind, path)
    for kind, pattern in (("version", "versions/[!.]*"), ("record", "records/[!.]*.json"), ("code", "code/[!.]*")):
        for path in home.glob(pattern):
            if kind != "code" or _CODE.fullmatch(path.name):
                yield _item(kind, path)
    for path in home.glob("evaluations/*.safetensors"):
        yield _item("answers", path)
    for folder in eviction.finished(home / "targets"):
        yield _item("outputs", folder, used=(folder / META).stat().st_mtime)


def _item(kind: str, *paths: Path, used: float | None = None, why: str = "least recently used") -> Item:
    existing = tuple(path for path in paths if path.exists())
    stats = [file.stat() for path in existing for file in (path, *(path.rglob("*") if path.is_dir() else ()))]
    size = sum(facts.st_size for facts in stats if stat.S_ISREG(facts.st_mode))
    last = max((facts.st_mtime for facts in stats), default=0.0)
    return Item(kind=kind, paths=existing, size=size, used=last if used is None else used, why=why)


def busy(home: Path) -> str:
    """Name of a run of this home that a process works on now; empty: there is none."""
    for pattern in LOCKS:
        for path in home.glob(pattern):
            if locks.is_held(path):
                return path.parent.name
    return ""


def over(
    items: Sequence[Item], *, limit: int, before: float, exists_elsewhere: Callable[[Item], bool]
) -> Iterator[Item]:
    """Yield the least recently used of some copies, until the others fit.

    Args:
        items: All copies.
        limit: Bytes that they may take together.
        before: What was used since stays.
        exists_elsewhere: Whether an item lies elsewhere too, or can be made again; asked only of those that would go.
    """
    total = sum(item.size for item in items)
    for item in sorted(items, key=lambda item: item.used):
        if total <= limit or item.used >= before:
            return
        if exists_elsewhere(item):
            total -= item.size
            yield item


def remove(item: Item) -> bool:
    """Delete it; a folder is renamed first, so that no process finds half of it.

    Returns:
        False: It is in use.

    Raises:
        StorageError: Something cannot be deleted.
    """
    if item.kind == "outputs":
        return eviction.delete(item.paths[0])
    if item.kind == "checkpoints":
        try:
            with locks.exclusive(item.paths[0].parent / "lock"):
                return all(_delete(path) for path in item.paths)
        except BlockingIOError:  # deleting raises no OSError: a process works on the run
            return False
    return all(_delete(path) for path in item.paths)


def _delete(path: Path) -> bool:
    with guarded(path, "delete"):
        if not path.is_dir() or path.is_symlink():
            path.unlink(missing_ok=True)
            return True
        renamed = path.with_name(f".{path.name}.deleted-{os.getpid()}")
        path.rename(renamed)
        shutil.rmtree(renamed)
    return True


@dataclass(kw_only=True)
class Reclaimed:
    """What came of it, filled as it happens, so that a failure in the middle hides nothing.

    Attributes:
        items: What went, or would go.
        kept: Bytes of copies that stay.
        busy: A run that is being worked on, because of which the copies stay; empty: none.
    """

    items: list[Item]
    kept: int = 0
    busy: str = ""

    def document(self, home: Path) -> dict[str, Any]:
        """As JSON: objects of buckets are one row, whatever their number."""
        objects = [item for item in self.items if item.kind == "objects"]
        rows = [_row(home, item.kind, item.paths[0], [item]) for item in self.items if item.kind != "objects"]
        if objects:
            rows.append(_row(home, "objects", home / "cache" / "objects", objects))
        return {"removed": rows, "kept_bytes": self.kept, "busy": self.busy}


def _row(home: Path, kind: str, path: Path, items: Sequence[Item]) -> dict[str, Any]:
    size = sum(item.size for item in items)
    name = path.relative_to(home).as_posix()
    return {"kind": kind, "name": name, "why": items[0].why, "count": len(items), "bytes": size}


def reclaim(home: Path, reclaimed: Reclaimed, *, older: float, limit: int, dry_run: bool, now: float) -> None:
    """Remove what may go.

    Args:
        home: The folder of local state.
        reclaimed: Gets what goes.
        older: Seconds since a run ended, or a file was written; at least `LEAST` counts.
        limit: Bytes that copies may take.
        dry_run: Only say what would go.
        now: Seconds since 1970.

    Raises:
        RegistryError, StorageError: Registry or bucket cannot be asked, or something cannot be deleted.
    """

    def go(item: Item) -> bool:
        removed = dry_run or remove(item)
        reclaimed.items += [item] if removed else []
        return removed

    for item in (*finished(home), *leftovers(home)):
        if item.used < now - max(older if item.kind == "checkpoints" else 0.0, LEAST):
            go(item)
    all_copies = list(copies(home))
    reclaimed.kept, reclaimed.busy = sum(item.size for item in all_copies), busy(home)
    if reclaimed.busy:
        return
    elsewhere = _Elsewhere(other_copies=OtherCopies(home, Mirror.of(home)))
    for item in list(
        over(all_copies, limit=limit, before=now - LEAST, exists_elsewhere=elsewhere)
    ):  # records tell of the others
        if go(item):
            reclaimed.kept -= item.size
    if elsewhere.trouble is not None:
        raise elsewhere.trouble


@dataclass(kw_only=True)
class _Elsewhere:
    """Whether an item may be had again; a registry or bucket that cannot be asked is not asked twice, and nothing of
    what it may hold goes."""

    other_copies: OtherCopies
    trouble: InfrastructureError | None = None
    _silent: set[str] = field(default_factory=set)

    def __call__(self, item: Item) -> bool:
        lookup = {
            "version": self.other_copies.version,
            "record": self.other_copies.record,
            "code": self.other_copies.code,
            "outputs": self.other_copies.outputs,
            "base": self.other_copies.base,
        }.get(item.kind)
        if lookup is None or item.kind in self._silent:
            return lookup is None
        try:
            return lookup(item.paths[0])
        except InfrastructureError as e:
            self.trouble = self.trouble or e
            self._silent.add(item.kind)
            return False


def main(arguments: list[str] | None = None) -> int:
    """Reclaim; what was removed is JSON on stdout, also after a failure, which is one line on stderr."""
    parser = argparse.ArgumentParser(prog="python -m graceful.programs.housekeeping.reclaim")
    parser.add_argument("home", type=Path)
    parser.add_argument("--older-than", type=float, default=86400.0, metavar="SECONDS")
    parser.add_argument("--limit", type=int, required=True, metavar="BYTES")
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args(arguments)
    home = options.home.expanduser().resolve()
    reclaimed = Reclaimed(items=[])
    try:
        reclaim(
            home,
            reclaimed,
            older=options.older_than,
            limit=options.limit,
            dry_run=options.dry_run,
            now=time.time(),
        )
    except GracefulError as e:
        sys.stderr.write(f"{e.message}\n")
        return e.exit_code
    finally:
        sys.stdout.write(json.dumps(reclaimed.document(home)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
