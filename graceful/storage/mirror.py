"""Folders of this machine that also live in a bucket, because the machine may vanish. Driver and workers use it.

A pod's disk dies with the pod. With GRACEFUL_STORAGE=s3://bucket/prefix, whatever lies below GRACEFUL_HOME and must
outlive the process has a twin under its relative name: `runs/glyphs-v2/report.json` is
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
    """The twin of a home folder; a value that travels to workers.

    Attributes:
        home: Folder on this machine.
        uri: s3://bucket/prefix; None: there is no twin.
    """

    NONE: ClassVar[Mirror]

    home: Path
    uri: str | None = None
    _copied: dict[Path, tuple[int, int]] = field(default_factory=dict, repr=False, compare=False)

    @staticmethod
    def of(home: Path) -> Mirror:
        """The mirror that the environment asks for.

        Raises:
            SpecError: GRACEFUL_STORAGE is no address of a bucket.
        """
        uri = os.environ.get(STORAGE_VARIABLE) or None
        try:
            uri = uri and addresses.normalised(uri).rstrip("/")
        except ValueError as e:
            raise SpecError(f"{STORAGE_VARIABLE}={uri}: {e}") from e
        return Mirror(home=home.resolve(), uri=uri)

    def twin(self, path: Path) -> str:
        """Address of a file's or folder's copy.

        Raises:
            ValueError: There is no mirror, or the path lies outside home.
        """
        if self.uri is None:
            raise ValueError("no mirror")
        return f"{self.uri}/{path.resolve().relative_to(self.home).as_posix()}"

    def shown(self, path: Path) -> str:
        """Where people find a file: its copy, if there is one."""
        return str(path) if self.uri is None else self.twin(path)

    def save(self, folder: Path, *, but: Sequence[str] = (), only: Sequence[str] | None = None) -> None:
        """Copy the files of a run's folder that changed since they were last copied.

        Args:
            folder: Below home. Files that start with a dot are left out.
            but: Names directly in the folder that are not copied: locks, checkpoints.
            only: Names directly in the folder that are copied; None: all.

        Raises:
            StorageError: Unreachable or refused.
        """
        if self.uri is None:
            return
        found = _files(folder, but=but) if only is None else [folder / name for name in only]
        self._together(self._save_file, [path for path in found if path.exists()])

    def _save_file(self, path: Path) -> None:
        with _LOCKS[hash(path) % len(_LOCKS)]:  # of two copies of one file the older must not come last
            stamp = _stamp(path)
            if self._copied.get(path) != stamp:
                objects.upload(path, self.twin(path))
                self._copied[path] = stamp

    def restore(self, folder: Path, *, but: Sequence[str] = ()) -> None:
        """Bring back the files of a run's folder that are not here, for a process that starts on an empty disk.

        Raises:
            IntegrityError: A copy is damaged.
            StorageError: Unreachable or refused, or the disk is full.
        """
        if self.uri is None:
            return
        root = self.twin(folder)
        names = [stored.uri.removeprefix(f"{root}/") for stored in objects.list_objects(root)]
        wanted = [folder / _inside(name) for name in names if name.partition("/")[0] not in but]
        self._together(self.restore_file, [path for path in wanted if not path.exists()])

    def restore_file(self, path: Path) -> bool:
        """Bring back one file, replacing what is here.

        Returns:
            Whether there is a copy.
        """
        if self.uri is None or not objects.fetch(self.twin(path), path):
            return False
        self._copied[path] = _stamp(path)
        return True

    def read_if_changed(self, path: Path, known: str | None) -> tuple[bytes, str] | None:
        """A copy's bytes and tag, unless it has the tag that is known; None also if there is no copy."""
        return None if self.uri is None else objects.read_if_changed(self.twin(path), known)

    def forget(self, path: Path) -> None:
        """Delete a file, here and there."""
        path.unlink(missing_ok=True)
        if self.uri is not None:
            bucket, key = objects.split_uri(self.twin(path))
            objects.remove([objects.StoredObject(bucket=bucket, key=key, size=0, etag="")])

    def forget_folder(self, folder: Path) -> None:
        """Delete what a folder's twin holds, and the folder."""
        shutil.rmtree(folder, ignore_errors=True)
        if self.uri is not None:
            objects.remove(objects.list_objects(self.twin(folder)))

    # --- sealed folders -----------------------------------------------------------------------------------------------

    def seal(self, folder: Path) -> None:
        """Copy a folder that will not change any more; done before, it is not done again.

        Raises:
            StorageError: Unreachable or refused.
        """
        if self.uri is None or self.sealed(folder):
            return
        index = {path.relative_to(folder).as_posix(): sha256_file(path) for path in _files(folder)}
        self.save(folder)
        objects.write_object(f"{self.twin(folder)}/{INDEX}", json.dumps(index, sort_keys=True).encode())

    def sealed(self, folder: Path) -> bool:
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
        with _locked(folder.with_name(f"{folder.name}.lock")):
            index = None if folder.is_dir() else self._index(folder)
            if index is not None:
                self._fill(folder, index)
        return folder.is_dir()

    def _fill(self, folder: Path, index: dict[str, str]) -> None:
        part = folder.with_name(f"{folder.name}.fetching")

        def fetch(name: str) -> None:
            path = part / _inside(name)
            if path.exists() and sha256_file(path) == index[name]:
                return
            if not objects.fetch(f"{self.twin(folder)}/{name}", path):
                raise IntegrityError(
                    f"{self.twin(folder)}/{name}: missing; delete {self.twin(folder)} to make it again"
                )
            if sha256_file(path) != index[name]:
                raise IntegrityError(f"{self.twin(folder)}/{name}: not the file that was sealed; delete the folder")

        self._together(fetch, list(index))
        with guarded(folder, "write"):
            part.rename(folder)

    def _index(self, folder: Path) -> dict[str, str] | None:
        address = f"{self.twin(folder)}/{INDEX}"
        try:
            found = json.loads(objects.read_object(address))
        except (ValueError, RecursionError) as e:
            raise IntegrityError(f"{address}: not JSON; delete it to make the folder again") from e
        except StorageError as e:
            if e.facts.get("code") not in objects.ABSENT:
                raise
            return None
        if not isinstance(found, dict):
            raise IntegrityError(f"{address}: not an index of files; delete it to make the folder again")
        return found

    @staticmethod
    def _together(action: Callable[[T], object], items: Sequence[T]) -> None:
        """Several at a time, because small files cost a round trip each; the first error ends it."""
        with ThreadPoolExecutor(max_workers=THREADS, thread_name_prefix="mirror") as pool:
            for _ in pool.map(action, items):
                pass


Mirror.NONE = Mirror(home=Path("/"))


def _files(folder: Path, *, but: Sequence[str] = ()) -> list[Path]:
    found = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith(".")]
    return [path for path in found if path.relative_to(folder).parts[0] not in but]


def _stamp(path: Path) -> tuple[int, int]:
    """What changes when a file is replaced."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _inside(name: str) -> Path:
    """A relative name from a listing that stays inside its folder.

    Raises:
        StorageError: It does not.
    """
    path = Path(name)
    if path.is_absolute() or ".." in path.parts:
        raise StorageError(f"{name}: the key leaves its folder; rename the object")
    return path


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep other processes of this machine waiting."""
    with ExitStack() as held:
        with guarded(path, "write"):
            held.enter_context(locks.exclusive(path, seconds=None))
        yield
