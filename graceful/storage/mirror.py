"""Folders of this machine that also live in a bucket, because the machine may vanish. Driver and workers use it.

A pod's disk dies with the pod. With GRACEFUL_STORAGE=s3://bucket/prefix, whatever lies below GRACEFUL_HOME and must
outlive the process has a copy under its relative name: `runs/glyphs-v2/report.json` is
`s3://bucket/prefix/runs/glyphs-v2/report.json`. Without the variable nothing is copied and every call returns at once.

Two kinds of folder differ. A run's folder changes: its files are copied one by one, each whole. A sealed folder (a
cache, a version) is complete or does not count: an index of its files is written last.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, TypeVar

from graceful import addresses, locks
from graceful.environment import STORAGE_VARIABLE
from graceful.errors import IntegrityError, SpecError, StorageError
from graceful.files import guarded
from graceful.storage import objects
from graceful.storage.local import sha256_file

INDEX = ".index.json"
THREADS = 8
T = TypeVar("T")
_LOCKS = tuple(threading.Lock() for _ in range(64))


@dataclass(frozen=True, kw_only=True)
class Mirror:
    """The copy of a home folder in a bucket; a value that travels to workers.

    Attributes:
        home: Folder on this machine.
        uri: s3://bucket/prefix; None: nothing is copied.
    """

    NONE: ClassVar[Mirror]

    home: Path
    uri: str | None = None
    _copied: dict[Path, tuple[int, int]] = field(default_factory=dict, repr=False, compare=False)

    @staticmethod
    def of(home: Path) -> Mirror:
        """Return the mirror that the environment names.

        Raises:
            SpecError: GRACEFUL_STORAGE is not an address of a bucket.
        """
        uri = os.environ.get(STORAGE_VARIABLE) or None
        try:
            uri = uri and addresses.normalised(uri).rstrip("/")
        except ValueError as e:
            raise SpecError(f"{STORAGE_VARIABLE}={uri}: {e}") from e
        return Mirror(home=home.resolve(), uri=uri)

    def copy_uri(self, path: Path) -> str:
        """Return the address of a file's or folder's copy.

        Raises:
            ValueError: There is no mirror, or the path lies outside home.
        """
        if self.uri is None:
            raise ValueError("no mirror")
        return f"{self.uri}/{path.resolve().relative_to(self.home).as_posix()}"

    def display_path(self, path: Path) -> str:
        """Return where to find a file: the address of its copy if there is a mirror, else its path."""
        return str(path) if self.uri is None else self.copy_uri(path)

    def save(self, folder: Path, *, exclude: Sequence[str] = (), only: Sequence[str] | None = None) -> None:
        """Copy the files of a run's folder that changed since they were last copied.

        Args:
            folder: Below home. Files that start with a dot are left out.
            exclude: Names directly in the folder that are not copied: locks, checkpoints.
            only: Names directly in the folder that are copied; None: all.

        Raises:
            StorageError: Unreachable or refused.
        """
        if self.uri is None:
            return
        paths = _files(folder, exclude=exclude) if only is None else [folder / name for name in only]
        self._in_parallel(self._save_file, [path for path in paths if path.exists()])

    def _save_file(self, path: Path) -> None:
        with _LOCKS[hash(path) % len(_LOCKS)]:  # of two copies of one file the older must not come last
            stamp = _size_and_time(path)
            if self._copied.get(path) != stamp:
                objects.upload(path, self.copy_uri(path))
                self._copied[path] = stamp

    def restore(self, folder: Path, *, exclude: Sequence[str] = ()) -> None:
        """Bring back the files of a run's folder that are not here, for a process that starts on an empty disk.

        Raises:
            IntegrityError: A copy is damaged.
            StorageError: Unreachable or refused, or the disk is full.
        """
        if self.uri is None:
            return
        root = self.copy_uri(folder)
        names = [stored.uri.removeprefix(f"{root}/") for stored in objects.list_objects(root)]
        paths = [folder / _relative_path(name) for name in names if name.partition("/")[0] not in exclude]
        self._in_parallel(self.restore_file, [path for path in paths if not path.exists()])

    def restore_file(self, path: Path) -> bool:
        """Bring back one file, replacing what is here.

        Returns:
            Whether there is a copy.
        """
        if self.uri is None or not objects.fetch(self.copy_uri(path), path):
            return False
        self._copied[path] = _size_and_time(path)
        return True

    def read_if_changed(self, path: Path, known_tag: str | None) -> tuple[bytes, str] | None:
        """Return a copy's bytes and tag, unless it has the tag that is known; None also if there is no copy."""
        return None if self.uri is None else objects.read_if_changed(self.copy_uri(path), known_tag)

    def delete(self, path: Path) -> None:
        """Delete a file and its copy."""
        path.unlink(missing_ok=True)
        if self.uri is not None:
            bucket, key = objects.split_uri(self.copy_uri(path))
            objects.remove([objects.StoredObject(bucket=bucket, key=key, size=0, etag="")])

    def delete_folder(self, folder: Path) -> None:
        """Delete a folder and its copy."""
        shutil.rmtree(folder, ignore_errors=True)
        if self.uri is not None:
            objects.remove(objects.list_objects(self.copy_uri(folder)))

    # --- sealed folders -----------------------------------------------------------------------------------------------

    def seal(self, folder: Path) -> None:
        """Copy a folder that will not change any more; done before, it is not done again.

        Raises:
            StorageError: Unreachable or refused.
        """
        if self.uri is None or self.is_sealed(folder):
            return
        index = {path.relative_to(folder).as_posix(): sha256_file(path) for path in _files(folder)}
        self.save(folder)
        objects.write_object(f"{self.copy_uri(folder)}/{INDEX}", json.dumps(index, sort_keys=True).encode())

    def is_sealed(self, folder: Path) -> bool:
        """Return whether there is a complete copy of a folder.

        Raises:
            IntegrityError: Its index is damaged.
            StorageError: Unreachable or refused.
        """
        return self.uri is not None and self._index(folder) is not None

    def unseal(self, folder: Path) -> bool:
        """Make sure that a sealed folder is here; of several processes one copies it.

        Returns:
            Whether it is here now. An interrupted copy goes on with the files that are missing.

        Raises:
            IntegrityError: A copy is damaged.
            StorageError: Unreachable or refused, or the disk is full.
        """
        if self.uri is None or folder.is_dir():
            return folder.is_dir()
        with _file_lock(folder.with_name(f"{folder.name}.lock")):
            index = None if folder.is_dir() else self._index(folder)
            if index is not None:
                self._fill(folder, index)
        return folder.is_dir()

    def _fill(self, folder: Path, index: dict[str, str]) -> None:
        partial = folder.with_name(f"{folder.name}.fetching")

        def fetch(name: str) -> None:
            path = partial / _relative_path(name)
            if path.exists() and sha256_file(path) == index[name]:
                return
            if not objects.fetch(f"{self.copy_uri(folder)}/{name}", path):
                raise IntegrityError(
                    f"{self.copy_uri(folder)}/{name}: missing; delete {self.copy_uri(folder)} to make it again"
                )
            if sha256_file(path) != index[name]:
                raise IntegrityError(f"{self.copy_uri(folder)}/{name}: not the file that was sealed; delete the folder")

        self._in_parallel(fetch, list(index))
        with guarded(folder, "write"):
            partial.rename(folder)

    def _index(self, folder: Path) -> dict[str, str] | None:
        address = f"{self.copy_uri(folder)}/{INDEX}"
        try:
            index = json.loads(objects.read_object(address))
        except (ValueError, RecursionError) as e:
            raise IntegrityError(f"{address}: not JSON; delete it to make the folder again") from e
        except StorageError as e:
            if e.facts.get("code") not in objects.ABSENT:
                raise
            return None
        if not isinstance(index, dict):
            raise IntegrityError(f"{address}: not an index of files; delete it to make the folder again")
        return index

    @staticmethod
    def _in_parallel(action: Callable[[T], object], items: Sequence[T]) -> None:
        """Run an action on several items at a time, as each file costs a round trip; stop at the first error."""
        with ThreadPoolExecutor(max_workers=THREADS, thread_name_prefix="mirror") as pool:
            for _ in pool.map(action, items):
                pass


Mirror.NONE = Mirror(home=Path("/"))


def _files(folder: Path, *, exclude: Sequence[str] = ()) -> list[Path]:
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith(".")]
    return [path for path in paths if path.relative_to(folder).parts[0] not in exclude]


def _size_and_time(path: Path) -> tuple[int, int]:
    """Return size and time of change, which differ after a file is replaced."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _relative_path(name: str) -> Path:
    """Return the path of a listed name, which must stay inside its folder.

    Raises:
        StorageError: It does not.
    """
    path = Path(name)
    if path.is_absolute() or ".." in path.parts:
        raise StorageError(f"{name}: the key leaves its folder; rename the object")
    return path


@contextmanager
def _file_lock(path: Path) -> Iterator[None]:
    """Keep other processes of this machine waiting."""
    with ExitStack() as stack:
        with guarded(path, "write"):
            stack.enter_context(locks.exclusive(path, seconds=None))
        yield
