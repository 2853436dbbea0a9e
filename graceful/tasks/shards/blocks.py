"""A local cache of blocks of objects in a bucket, bounded in bytes. Driver and workers.

An object is cut into blocks of `BLOCK` bytes; a block is fetched by one request for its range and kept as a file. The
least recently used blocks go when the limit is passed. A reader knows the digest of what it reads.
"""

from __future__ import annotations

import math
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from graceful import homes, locks, storage
from graceful.environment import SHARD_CACHE_GB_VARIABLE
from graceful.errors import SpecError
from graceful.files import mark_used
from graceful.storage import StoredObject

BLOCK = 4 * 2**20
"""Bytes that one request fetches."""
DEFAULT = 20 * 10**9
"""Bytes of a cache for which no limit is named."""
_LOCKS = tuple(threading.Lock() for _ in range(64))
"""Locks between the threads of a process that read the same block."""


@dataclass(eq=False)
class BlockCache:
    """Blocks of objects below a folder.

    Attributes:
        folder: Where they are.
        limit: Bytes that they may take together; for a moment a sixteenth more.
        fetched: Blocks that this process has fetched.
    """

    folder: Path
    limit: int
    fetched: int = 0
    _unchecked: float = math.inf
    _counting: threading.Lock = field(default_factory=threading.Lock)

    def read(self, stored: StoredObject, offset: int, size: int) -> bytes:
        """Return bytes of an object, through the blocks in which they lie.

        Raises:
            IntegrityError: The object changed after it was listed.
            StorageError: It cannot be reached, or the disk is full.
        """
        parts = []
        for index, start, stop in _spans(offset, size):
            parts.append(self._part(stored, index, start, stop))
        return b"".join(parts)

    def fetch(self, stored: StoredObject, offset: int, size: int) -> None:
        """Bring the blocks here in which bytes of an object lie; raises as `read`."""
        for index, _, _ in _spans(offset, size):
            if not self._path(stored, index).exists():
                self._part(stored, index, 0, 1)

    def forget(self, stored: StoredObject, offset: int, size: int) -> None:
        """Remove the blocks in which bytes of an object lie, because they are damaged."""
        for index, _, _ in _spans(offset, size):
            self._path(stored, index).unlink(missing_ok=True)

    def _part(self, stored: StoredObject, index: int, start: int, stop: int) -> bytes:
        path = self._path(stored, index)
        with suppress(FileNotFoundError):
            return _pread(path, start, stop)
        with _LOCKS[hash(path) % len(_LOCKS)]:
            with suppress(FileNotFoundError):  # another thread has fetched it meanwhile
                return _pread(path, start, stop)
            begin = index * BLOCK
            data = storage.read_range(stored, begin, min(begin + BLOCK, stored.size))
            storage.write_bytes(path, data)
        self._count(len(data))
        return data[start:stop]

    def _path(self, stored: StoredObject, index: int) -> Path:
        name = storage.sha256_json([stored.uri, stored.etag, stored.size])
        return self.folder / name[:2] / name / f"{index:08d}"

    def _count(self, size: int) -> None:
        """Count what was written; look at the whole folder where enough was written since the last look."""
        with self._counting:
            self.fetched += 1
            self._unchecked += size
            if self._unchecked <= self.limit / 16:
                return
            self._unchecked = 0.0
            self._evict()

    def _evict(self) -> None:
        """Delete the least recently used blocks until the rest fits; another process that does so is left alone."""
        with suppress(BlockingIOError), locks.exclusive(self.folder / "lock"):
            blocks = sorted(_blocks(self.folder), reverse=True)
            total = 0
            for _, size, path in blocks:
                total += size
                if total > self.limit:
                    path.unlink(missing_ok=True)  # its folder stays: another process may be writing a block to it


def shared_cache() -> BlockCache:
    """Return the cache of this machine, below graceful's folder, with the limit that the environment names.

    Without one it is 20 GB, or half of what is free on the disk.

    Raises:
        SpecError: The variable holds no number above 0.
    """
    folder = homes.folder() / "cache" / "shards" / "blocks"
    text = os.environ.get(SHARD_CACHE_GB_VARIABLE, "").strip()
    if not text:
        return _cache(folder, min(DEFAULT, _free_bytes(folder) // 2))
    try:
        limit = float(text)
    except ValueError:
        limit = math.nan
    if not 0.0 < limit < math.inf:
        raise SpecError(f"{SHARD_CACHE_GB_VARIABLE}={text}: must be a number of gigabytes above 0; write 20")
    return _cache(folder, int(limit * 1e9))


def _free_bytes(folder: Path) -> int:
    """Return the free bytes of the disk on which a folder is, or will be."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(existing).free


@lru_cache(maxsize=4)
def _cache(folder: Path, limit: int) -> BlockCache:
    return BlockCache(folder=folder, limit=limit)


def _spans(offset: int, size: int) -> Iterator[tuple[int, int, int]]:
    """Yield number of each block, and where in it the bytes begin and end."""
    end = offset + size
    while offset < end:
        index, start = divmod(offset, BLOCK)
        stop = min(BLOCK, start + end - offset)
        yield index, start, stop
        offset += stop - start


def _pread(path: Path, start: int, stop: int) -> bytes:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        data = os.pread(descriptor, stop - start, start)
    finally:
        os.close(descriptor)
    if len(data) != stop - start:  # cut short by a full disk of long ago
        path.unlink(missing_ok=True)
        raise FileNotFoundError(path)
    mark_used(path)
    return data


def _blocks(folder: Path) -> Iterator[tuple[float, int, Path]]:
    """Yield time of use, bytes and path of each block."""
    for path in folder.glob("??/*/????????"):
        with suppress(FileNotFoundError):
            facts = path.stat()
            yield facts.st_mtime, facts.st_size, path
