"""The commits of an index: numbered manifests, each of which can be written once. Driver.

Whoever makes the file of the next number has committed; whoever comes second finds it there. That one step of the file
system (link) is the compare-and-set, and needs neither a lock nor a server.
"""

from __future__ import annotations

import os
import re
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from graceful.errors import DataError, InfrastructureError
from graceful.files import flush_folder, guarded
from graceful.index.manifest import Manifest

FOLDER = "manifests"
_NAME = re.compile(r"([0-9]{8})\.json")


class MovedError(InfrastructureError):
    """Another writer committed first; what it wrote must be read before trying again."""


@dataclass(frozen=True)
class Log:
    """The manifests of an index.

    Attributes:
        index: Its folder.
    """

    index: Path

    @property
    def folder(self) -> Path:
        """Where manifests are."""
        return self.index / FOLDER

    def numbers(self) -> list[int]:
        """Return the numbers of all snapshots, ascending; empty: there is no index."""
        with guarded(self.folder, "read"):
            try:
                names = os.listdir(self.folder)
            except (FileNotFoundError, NotADirectoryError):
                return []
        return sorted(int(match[1]) for match in map(_NAME.fullmatch, names) if match)

    def head(self) -> Manifest:
        """Return the newest snapshot.

        Raises:
            DataError: There is no index.
            IntegrityError: Its manifest was altered.
        """
        numbers = self.numbers()
        if not numbers:
            raise DataError(f"{self.index}: holds no index; make one with `graceful index build {self.index}`")
        return self.read(numbers[-1])

    def read(self, number: int) -> Manifest:
        """Return a snapshot.

        Raises:
            DataError: There is none of that number.
            IntegrityError: Its manifest was altered.
        """
        path = self._path(number)
        with guarded(path, "read"):
            try:
                text = path.read_text(encoding="utf-8", errors="replace")
            except FileNotFoundError:
                known = self.numbers()
                span = f"{known[0]} to {known[-1]}" if known else "none"
                raise DataError(f"{self.index}: has no snapshot {number}; it has {span}") from None
        return Manifest.loads(text, where=str(path))

    def commit(self, manifest: Manifest) -> Manifest:
        """Make a manifest the newest one, if its number is still free.

        Raises:
            MovedError: Another writer was faster.
            StorageError: The disk is full, or refuses.
        """
        path = self._path(manifest.number)
        with guarded(path, "write"):
            self.folder.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self.folder, prefix=f".{path.name}.", suffix=".tmp")
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as file:
                    file.write(manifest.dumps())
                    file.flush()
                    os.fsync(file.fileno())
                os.chmod(name, 0o644)
                os.link(name, path)
            except FileExistsError:
                raise MovedError(
                    f"{self.index}: another writer committed snapshot {manifest.number} meanwhile; run the same command"
                    " again"
                ) from None
            finally:
                with suppress(FileNotFoundError):
                    os.unlink(name)
            flush_folder(self.folder)
        return manifest

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:08d}.json"
