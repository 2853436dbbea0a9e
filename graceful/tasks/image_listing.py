"""Which images a folder or a bucket holds, by class and split. Driver and workers; decodes nothing.

Two layouts: `root/<class>/.../<image>` and `root/<split>/<class>/.../<image>`. The second is recognised by a folder
called `train` beside other splits' folders only. Hidden files, other file types and links back into a folder already
visited are passed over; the order is that of the relative paths.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import get_args

from graceful import storage
from graceful.errors import DataError
from graceful.tasks.base import Split

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
SPLITS: tuple[str, ...] = get_args(Split)
SAMPLED = 65_536
"""Bytes up to which a local file's tag covers all of it; of larger files, its size and both ends."""


@dataclass(frozen=True, kw_only=True)
class Image:
    """One image that a listing found.

    Attributes:
        path: Relative path with forward slashes: the sample's id.
        split: Name of its split folder; empty in the layout without.
        label: Name of its class folder.
        where: Absolute path or s3 address, for messages.
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
    """

    images: tuple[Image, ...]
    folders: tuple[tuple[str, str], ...]

    def splits(self) -> set[str]:
        """Names of the split folders; empty in the layout without."""
        return {split for split, _ in self.folders if split}

    def labels(self, split: str) -> list[str]:
        """Class folders of a split folder, sorted by name."""
        return sorted(label for part, label in self.folders if part == split)


def list_images(root: str) -> Listing:
    """List a local folder or s3://bucket/prefix.

    Raises:
        DataError: The root does not exist or has no class folder.
        StorageError: It cannot be read or reached.
    """
    folders, files = _remote(root) if storage.is_remote(root) else _local(Path(root))
    depth = 1 if _has_split_folders(folders) else 0
    classes = sorted({parts[: depth + 1] for parts in folders if len(parts) > depth})
    if not classes:
        raise DataError(f"task.root: {root} has no class folder; expected root/<class>/<image>")
    images = [
        Image(
            path="/".join(parts),
            split=parts[0] if depth else "",
            label=parts[depth],
            where=found.where,
            load=found.load,
            tag=found.tag,
        )
        for parts, found in sorted(files.items())
        if len(parts) > depth + 1
    ]
    labelled = tuple((parts[0] if depth else "", parts[depth]) for parts in classes)
    return Listing(images=tuple(images), folders=labelled)


@dataclass(frozen=True, kw_only=True)
class _File:
    where: str
    load: Callable[[], bytes]
    tag: Callable[[], str]


_Parts = tuple[str, ...]


def _has_split_folders(folders: set[_Parts]) -> bool:
    top = {parts[0] for parts in folders}
    return "train" in top and top <= set(SPLITS)


def _local(root: Path) -> tuple[set[_Parts], dict[_Parts, _File]]:
    if not root.is_dir():
        raise DataError(f"task.root: {root} is no folder; check the path")
    folders: set[_Parts] = set()
    files: dict[_Parts, _File] = {}
    for path, is_folder in _walk(root, ()):
        parts = path.relative_to(root).parts
        if is_folder:
            folders.add(parts)
        elif path.suffix.lower() in SUFFIXES:
            files[parts] = _File(where=str(path), load=partial(storage.read_bytes, path), tag=partial(_local_tag, path))
    return folders, files


def _walk(folder: Path, above: tuple[Path, ...]) -> Iterator[tuple[Path, bool]]:
    """Everything below a folder, links followed but never back into a folder on the way down."""
    real = folder.resolve()
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as e:
        raise DataError(f"{folder}: cannot be listed ({e.strerror}); check its permissions") from e
    for entry in entries:
        if entry.name.startswith("."):
            continue
        path = Path(entry.path)
        if entry.is_dir():
            if path.resolve() not in (*above, real):
                yield path, True
                yield from _walk(path, (*above, real))
        elif entry.is_file():
            yield path, False


def _local_tag(path: Path) -> str:
    """Size and digest of a file's bytes; of a large file, of its first and last 32 KiB."""
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
        raise DataError(f"{path}: cannot be read ({e.strerror}); check the file") from e
    return f"{size}:{sha256(data).hexdigest()}"


def _remote(root: str) -> tuple[set[_Parts], dict[_Parts, _File]]:
    """Folders of a bucket exist by the objects in them."""
    _, prefix = storage.split_uri(root)
    start = len(f"{prefix.rstrip('/')}/") if prefix.strip("/") else 0
    folders: set[_Parts] = set()
    files: dict[_Parts, _File] = {}
    for stored in storage.list_objects(root):
        parts = PurePosixPath(stored.key[start:]).parts
        if any(part.startswith(".") for part in parts):
            continue
        folders.update(parts[:depth] for depth in range(1, len(parts)))
        if PurePosixPath(stored.key).suffix.lower() in SUFFIXES:
            files[parts] = _File(
                where=stored.uri,
                load=partial(storage.read_cached, stored, storage.object_cache()),
                tag=partial(_remote_tag, stored),
            )
    return folders, files


def _remote_tag(stored: storage.StoredObject) -> str:
    return f"{stored.size}:{stored.etag}"


def pool() -> ThreadPoolExecutor:
    """Threads that read and decode images; a process that was forked gets its own."""
    return _pool(os.getpid())


@lru_cache(maxsize=1)
def _pool(process: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1), thread_name_prefix=f"images-{process}")
