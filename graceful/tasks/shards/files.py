"""Which shards a task names, and how their bytes are read: from files, or from a bucket. Driver and workers."""

from __future__ import annotations

import glob
import io
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Protocol

from graceful import storage
from graceful.errors import DataError, GracefulError, IntegrityError
from graceful.tasks.shards.blocks import BlockCache, shared_cache

_GROUP = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"([0-9]+)\.\.([0-9]+)")
MOST = 1_000_000
"""Names that braces may stand for."""


class Shard(Protocol):
    """One tar file."""

    @property
    def where(self) -> str:
        """Return path or address, for messages."""
        ...

    @property
    def size(self) -> int:
        """Return its size in bytes."""
        ...

    def identity(self) -> list[str | int]:
        """Return what changes when the content does, without reading it."""
        ...

    def read(self, offset: int, size: int) -> bytes:
        """Return bytes; fewer where the shard ends before them."""
        ...

    def fetch(self, offset: int, size: int) -> None:
        """Bring bytes here that will be read soon, where they are elsewhere."""
        ...

    def forget(self, offset: int, size: int) -> bool:
        """Drop local copies of bytes that are not what they must be; returns whether reading again may help."""
        ...


@dataclass(frozen=True, kw_only=True)
class LocalShard:
    """A file. `changed` is its time of change in nanoseconds when it was listed."""

    where: str
    size: int
    changed: int

    def identity(self) -> list[str | int]:
        """Return path, size and time of change."""
        return [os.path.abspath(self.where), self.size, self.changed]

    def read(self, offset: int, size: int) -> bytes:
        """Implement `Shard.read`.

        Raises:
            DataError: The file is gone, or not of the size that it had.
        """
        try:
            descriptor = os.open(self.where, os.O_RDONLY)
            try:
                if os.fstat(descriptor).st_size != self.size:
                    raise _changed(self.where)
                return os.pread(descriptor, size, offset)
            finally:
                os.close(descriptor)
        except OSError as e:
            raise DataError(f"{self.where}: cannot be read ({e.strerror}); restore the shard") from e

    def fetch(self, offset: int, size: int) -> None:
        """Do nothing: the file is here."""

    def forget(self, offset: int, size: int) -> bool:
        """Return False: there is no other copy."""
        return False


@dataclass(frozen=True, kw_only=True)
class RemoteShard:
    """An object in a bucket, read through the cache of its blocks."""

    stored: storage.StoredObject
    cache: BlockCache

    @property
    def where(self) -> str:
        """Return the address, s3://bucket/key."""
        return self.stored.uri

    @property
    def size(self) -> int:
        """Return its size in bytes."""
        return self.stored.size

    def identity(self) -> list[str | int]:
        """Return address, size and the server's tag."""
        return [self.stored.uri, self.stored.size, self.stored.etag]

    def read(self, offset: int, size: int) -> bytes:
        """Implement `Shard.read`.

        Raises:
            DataError: It was overwritten.
            StorageError: It cannot be reached.
        """
        try:
            return self.cache.read(self.stored, offset, min(size, self.size - offset))
        except IntegrityError as e:
            raise _changed(self.where) from e

    def fetch(self, offset: int, size: int) -> None:
        """Implement `Shard.fetch`; a failure is raised by the later read."""
        with suppress(GracefulError):
            self.cache.fetch(self.stored, offset, min(size, self.size - offset))

    def forget(self, offset: int, size: int) -> bool:
        """Implement `Shard.forget`: the bucket may have the right bytes."""
        self.cache.forget(self.stored, offset, size)
        return True


def _changed(where: str) -> DataError:
    return DataError(
        f"{where}: it changed after this run opened it; restore the shard, or write what is new to a shard of another"
        " name"
    )


class ShardStream(io.RawIOBase):
    """A shard as a file that can be read and sought, for tarfile."""

    def __init__(self, shard: Shard) -> None:
        super().__init__()
        self._shard, self._position = shard, 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a byte."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._shard.size}[whence]
        self._position = start + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Read some bytes."""
        data = self._shard.read(self._position, len(buffer)) if self._position < self._shard.size else b""
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def list_shards(names: Sequence[str]) -> list[Shard]:
    """Return the shards that names stand for, in the order of the names, sorted where one stands for several.

    Args:
        names: Tar files, folders of them, patterns with braces or wildcards, or s3:// addresses of these.

    Raises:
        DataError: A name stands for nothing, or a shard is named twice.
        StorageError: A bucket cannot be reached.
    """
    shards: dict[str, Shard] = {}
    for name in names:
        for shard in _remote(name) if storage.is_remote(name) else _local(name):
            if shard.where in shards:
                raise DataError(f"task.files: {shard.where} is named twice; name each shard once")
            shards[shard.where] = shard
    return list(shards.values())


def expanded(name: str) -> list[str]:
    """Return the names that braces stand for: `a-{00..02}.tar` three, `{a,b}.tar` two.

    Raises:
        DataError: More than a million.
    """
    names = [name]
    while any(_GROUP.search(text) for text in names):
        options = (option for text in names for option in _options(text))
        names = list(itertools.islice(options, MOST + 1))
        if len(names) > MOST:
            raise DataError(f"task.files: {name} stands for more than {MOST} shards; write a pattern with *")
    return names


def _options(name: str) -> Iterator[str]:
    group = _GROUP.search(name)
    if group is None:
        yield name
        return
    bounds = _RANGE.fullmatch(group[1])
    if bounds is None:
        choices = group[1].split(",")
    else:
        first, last = int(bounds[1]), int(bounds[2])
        if abs(last - first) > MOST:
            raise DataError(f"task.files: {name} stands for more than {MOST} shards; write a pattern with *")
        step = 1 if last >= first else -1
        choices = [f"{number:0{len(bounds[1])}d}" for number in range(first, last + step, step)]
    for choice in choices:
        yield name[: group.start()] + choice + name[group.end() :]


def _has_wildcard(name: str) -> bool:
    return any(sign in name for sign in "*?[")


def _local(name: str) -> list[LocalShard]:
    paths: list[str] = []
    for option in expanded(name):
        if os.path.isdir(option):
            found = sorted(glob.glob(os.path.join(glob.escape(option), "*.tar")))
        elif _has_wildcard(option):
            found = sorted(glob.glob(option, recursive=True))
        else:
            found = [option] if os.path.exists(option) else []
        if not found:
            raise DataError(f"task.files: {option} names no shard; check the path")
        paths += found
    return [_local_shard(path) for path in paths]


def _local_shard(path: str) -> LocalShard:
    try:
        facts = Path(path).stat()
    except OSError as e:
        raise DataError(f"task.files: {path} cannot be read ({e.strerror}); check the path") from e
    return LocalShard(where=path, size=facts.st_size, changed=facts.st_mtime_ns)


def _remote(name: str) -> list[RemoteShard]:
    cache = shared_cache()
    listings: dict[str, dict[str, storage.StoredObject]] = {}
    shards: list[RemoteShard] = []
    for option in expanded(name):
        pattern = f"{option}*.tar" if option.endswith("/") else option
        folder = re.split(r"[*?\[]", pattern, maxsplit=1)[0].rpartition("/")[0]
        if folder not in listings:
            listings[folder] = {stored.uri: stored for stored in storage.list_objects(folder)}
        objects = listings[folder]
        if pattern in objects:
            found = [pattern]
        else:
            found = [uri for uri in objects if _has_wildcard(pattern) and fnmatchcase(uri, pattern)]
        if not found:
            raise DataError(f"task.files: {option} names no object; check the address")
        shards += [RemoteShard(stored=objects[uri], cache=cache) for uri in found]
    return shards
