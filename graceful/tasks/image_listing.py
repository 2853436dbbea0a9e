"""Which images a folder or a bucket holds, by class and split. Driver and workers; decodes nothing.

Two layouts: `root/<class>/.../<image>` and `root/<split>/<class>/.../<image>`; `image_layout` tells them apart. Hidden
files, debris and links back into a folder already visited are left out in silence, other files are counted; the order
is that of the relative paths.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache, partial
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import TypeVar

from graceful import storage
from graceful.environment import usable_cpus
from graceful.errors import DataError
from graceful.tasks.image_layout import Parts, is_debris, label_of, require_classes, split_folders

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
SAMPLED = 65_536
"""Bytes up to which a local file's tag covers all of it; of larger files, its size and both ends."""
MOST_THREADS = 16
"""That read and decode images; more of them wait for each other, because Python runs one at a time between images."""
NAMED_ENDINGS = 8
"""Endings of passed-over files that a sentence names, the most frequent first."""
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class Image:
    """One image that a listing found.

    Attributes:
        path: Relative path with forward slashes: the sample's id.
        split: Its split; empty in the layout without split folders.
        label: Its class: the name of its class folder, letters composed.
        where: Absolute path or s3 address, printable, for messages.
        load: Its bytes.
        tag: What changes when the content does.
    """

    path: str
    split: str
    label: str
    where: str
    load: Callable[[], bytes]
    tag: Callable[[], str]


@dataclass(frozen=True, kw_only=True)
class Listing:
    """Images of a root, and the class folders it has whether or not they hold any.

    Attributes:
        images: Sorted by path.
        folders: (split, class) of every class folder.
        passed_over: Number of ignored files by kind.
    """

    images: tuple[Image, ...]
    folders: tuple[tuple[str, str], ...]
    passed_over: Counter[str]

    def splits(self) -> set[str]:
        """Return the splits that have folders; empty in the layout without."""
        return {split for split, _ in self.folders if split}

    def labels(self, split: str) -> list[str]:
        """Classes of a split, sorted by name."""
        return sorted(label for part, label in self.folders if part == split)


def list_images(root: str, *, named: Sequence[str] = (), follow_links: bool = False) -> Listing:
    """List a local folder or s3://bucket/prefix.

    Args:
        root: Where.
        named: Classes that the spec names: folders of these names are not splits.
        follow_links: Whether links may lead out of a local root.

    Raises:
        DataError: The root does not exist or has no class folder, a folder's use is unclear, two names look the same,
            a name is not UTF-8, or a link leaves the root.
        StorageError: It cannot be read or reached.
    """
    contents = _remote(root) if storage.is_remote(root) else _local(Path(root), follow_links=follow_links)
    named = [label_of(name) for name in named]
    direct = {parts[:-1] for parts in contents.files}
    splits = split_folders(root, contents.folders, direct, named)
    depth = 1 if splits else 0
    if splits:
        contents.folders.difference_update([parts for parts in contents.folders if parts[0] not in splits])
    classes = {parts[: depth + 1] for parts in contents.folders if len(parts) > depth}
    if not classes:
        raise DataError(f"task.root: {root} has no class folder; expected root/{'train/' * depth}<class>/<image>")
    require_classes(root, contents.folders, direct, splits, named)
    images = []
    for parts, file in sorted(contents.files.items()):
        if len(parts) <= depth + 1:
            contents.passed_over[f"{_suffix_text(parts[-1])} outside the class folders"] += 1
            continue
        split, label = (splits[parts[0]] if depth else ""), label_of(parts[depth])
        images.append(
            Image(path="/".join(parts), split=split, label=label, where=file.where, load=file.load, tag=file.tag)
        )
    labelled = {(splits[parts[0]] if depth else "", label_of(parts[depth])) for parts in classes}
    return Listing(images=tuple(images), folders=tuple(sorted(labelled)), passed_over=contents.passed_over)


def ignored_files_note(root: str, passed_over: Counter[str]) -> str:
    """Return how many files were ignored, by kind, as one sentence."""
    kinds = [f"{count} {kind}" for kind, count in sorted(passed_over.items(), key=lambda item: (-item[1], item[0]))]
    more = [f"{len(kinds) - NAMED_ENDINGS} other kinds"] if len(kinds) > NAMED_ENDINGS else []
    total = passed_over.total()
    files = "file" if total == 1 else "files"
    return f"{printable(root)}: {total} {files} passed over: {', '.join(kinds[:NAMED_ENDINGS] + more)}"


def printable(path: str | Path) -> str:
    """Return a path as one printable line; characters that are not text are escaped."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def _suffix_text(name: str) -> str:
    return printable(PurePosixPath(name).suffix.lower()) or "without an ending"


# --- files and objects ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _File:
    where: str
    load: Callable[[], bytes]
    tag: Callable[[], str]


@dataclass(frozen=True, kw_only=True)
class _Contents:
    """The contents of a root: folders, images, and how many files of other kinds."""

    folders: set[Parts] = field(default_factory=set)
    files: dict[Parts, _File] = field(default_factory=dict)
    passed_over: Counter[str] = field(default_factory=Counter)


def _local(root: Path, *, follow_links: bool) -> _Contents:
    try:
        resolved_root = root.resolve(strict=True) if root.is_dir() else None
    except (OSError, RuntimeError, ValueError) as e:  # a loop of links; a NUL in the name
        reason = getattr(e, "strerror", None) or e
        raise DataError(f"task.root: {printable(root)} cannot be opened ({reason}); check the path") from e
    if resolved_root is None:
        raise DataError(f"task.root: {printable(root)} is not a folder; check the path")
    contents = _Contents()
    for path, kind in _walk(root, (), None if follow_links else resolved_root):
        parts = path.relative_to(root).parts
        if kind is _BROKEN:
            contents.passed_over["links that lead nowhere"] += 1
        elif kind is _FILE and path.suffix.lower() not in SUFFIXES:
            contents.passed_over[_suffix_text(path.name)] += 1
        else:
            _require_text(path)
            if kind is _FOLDER:
                contents.folders.add(parts)
            else:
                load = partial(storage.read_bytes, path)
                contents.files[parts] = _File(where=printable(path), load=load, tag=partial(local_tag, path))
    return contents


_FOLDER, _FILE, _BROKEN = "folder", "file", "broken"


def _walk(folder: Path, above: tuple[Path, ...], allowed_root: Path | None) -> Iterator[tuple[Path, str]]:
    """Yield everything below a folder; links are followed, except to a folder above them.

    Args:
        folder: Where.
        above: Folders on the way down to it, links resolved.
        allowed_root: Folder that links must not leave; None: they may lead anywhere.
    """
    resolved = folder.resolve()
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as e:
        raise DataError(f"{printable(folder)}: cannot be listed ({e.strerror}); check its permissions") from e
    for entry in entries:
        if is_debris(entry.name):
            continue
        path = Path(entry.path)
        kind = _kind(entry)
        if kind is _FOLDER:
            target = path.resolve()
            if target in (*above, resolved):
                continue
            _require_within(entry, allowed_root)
            yield path, kind
            yield from _walk(path, (*above, resolved), allowed_root)
        elif kind is _FILE:
            if path.suffix.lower() in SUFFIXES:
                _require_within(entry, allowed_root)
            yield path, kind
        elif kind is _BROKEN:
            yield path, kind


def _kind(entry: os.DirEntry[str]) -> str | None:
    """Return the kind of an entry with links followed; None: a pipe, a socket or a device."""
    try:
        if entry.is_dir():
            return _FOLDER
        if entry.is_file():
            return _FILE
        return _BROKEN if entry.is_symlink() else None
    except OSError:  # a link that leads to itself, or without permission to read
        return _BROKEN


def _require_within(entry: os.DirEntry[str], allowed_root: Path | None) -> None:
    if allowed_root is None or not entry.is_symlink():
        return
    target = Path(entry.path).resolve()
    if not target.is_relative_to(allowed_root):
        raise DataError(
            f"{printable(entry.path)}: a link out of task.root, to {printable(target)}; copy what it leads to, or write"
            " task.follow_links: true"
        )


def _require_text(path: Path) -> None:
    try:
        str(path).encode()
    except UnicodeEncodeError as e:
        raise DataError(f"{printable(path)}: a name that is not UTF-8; rename it") from e


def local_tag(path: Path) -> str:
    """Return size and digest of a file's bytes; of a large file, of its first and last 32 KiB."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            if size <= SAMPLED:
                data = file.read()
            else:
                data = file.read(SAMPLED // 2)
                file.seek(size - SAMPLED // 2)
                data += file.read()
    except OSError as e:
        raise DataError(f"{printable(path)}: cannot be read ({e.strerror}); check the file") from e
    return f"{size}:{sha256(data).hexdigest()}"


def _remote(root: str) -> _Contents:
    """List a bucket, whose folders are the prefixes of its objects."""
    _, prefix = storage.split_uri(root)
    start = len(f"{prefix.rstrip('/')}/") if prefix.strip("/") else 0
    contents = _Contents()
    for stored in storage.list_objects(root):
        parts = tuple(part for part in stored.key[start:].split("/") if part)
        if any(is_debris(part) for part in parts):
            continue
        contents.folders.update(parts[:depth] for depth in range(1, len(parts)))
        if PurePosixPath(stored.key).suffix.lower() not in SUFFIXES:
            contents.passed_over[_suffix_text(parts[-1])] += 1
            continue
        if parts in contents.files:
            raise DataError(f"{printable(stored.uri)}: another object differs only in slashes; remove one")
        load = partial(storage.read_cached, stored, storage.object_cache())
        contents.files[parts] = _File(where=printable(stored.uri), load=load, tag=partial(_remote_tag, stored))
    return contents


def _remote_tag(stored: storage.StoredObject) -> str:
    return f"{stored.size}:{stored.etag}"


NICE = 10
"""Priority of threads that decode, as of `nice`."""


def pool() -> ThreadPoolExecutor:
    """Return the threads that read and decode images, as many as there are CPUs; a forked process gets its own."""
    return _pool(os.getpid())


@lru_cache(maxsize=1)
def _pool(process: int) -> ThreadPoolExecutor:
    workers = min(MOST_THREADS, usable_cpus())
    return ThreadPoolExecutor(workers, thread_name_prefix=f"images-{process}", initializer=_give_way)


def _give_way() -> None:
    """Let this thread run where the one that trains leaves time, so that it never waits for a processor."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # the machine allows no other priority
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)


def in_threads(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Return `function` of each item, in their order, computed in the threads that read and decode images."""
    return list(pool().map(function, items))
