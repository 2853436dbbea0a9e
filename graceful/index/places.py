"""Where an index lies: a folder of this machine, or a prefix of a bucket. Driver.

A commit needs one operation of its place, `create`: make a file unless there is one of that name, in a single step that
decides between writers. A folder does it by link(2), a bucket by a conditional write. Everything else is named by its
own digest, or is a mark without content.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from graceful import addresses, homes
from graceful.errors import SpecError, StorageError
from graceful.files import flush_folder, guarded
from graceful.storage import objects, read_bytes, read_cached, write_bytes
from graceful.storage.cached_objects import keep, object_cache, read_by_digest
from graceful.storage.conditional import create_object, look_up
from graceful.storage.objects import StoredObject

PROBE = "conditional-writes"
_PROBE_TEXT = b"graceful writes this object twice to see that the server refuses to overwrite it.\n"


class Place(Protocol):
    """Holds the files of one index; its text is the address that people write."""

    @property
    def scratch(self) -> Path:
        """Folder of this machine for locks, and for what can be computed again."""
        ...

    def names(self, folder: str, *, after: str = "") -> list[str]:
        """Return the names of the files of a folder; empty: there is no such folder.

        Args:
            folder: Below the place.
            after: Name behind which they come in the order of texts; empty: all.
        """
        ...

    def read(self, name: str, *, sha256: str | None = None) -> bytes:
        """Return a file's bytes.

        Args:
            name: Path below the place.
            sha256: Digest that its bytes have; a copy on this machine may then be read in its stead.

        Raises:
            StorageError: It is missing or cannot be read.
            IntegrityError: A bucket's bytes are not those that were written.
        """
        ...

    def create(self, name: str, data: bytes) -> bool:
        """Write a file unless there is one; returns whether this call has written it. Of two writers one succeeds.

        Raises:
            StorageError: The disk is full, the place cannot be reached, or its server cannot decide between writers.
        """
        ...

    def write(self, name: str, data: bytes) -> None:
        """Write a file that is named by its digest; readers see it whole or not at all.

        Raises:
            StorageError: The disk is full, or the place cannot be reached.
        """
        ...

    def exists(self, name: str) -> bool:
        """Return whether there is a file."""
        ...

    def remove(self, name: str) -> None:
        """Delete a file; one that does not exist is ignored."""
        ...


def at(where: str | Path | Place) -> Place:
    """Return the place of an address.

    Raises:
        SpecError: It is neither a path nor s3://bucket/prefix.
    """
    if not isinstance(where, str | Path):
        return where
    text = str(where)
    if isinstance(where, str) and addresses.has_other_scheme(text):
        raise SpecError(f"index {text}: must be a folder or s3://bucket/prefix")
    if isinstance(where, Path) or not addresses.is_remote(text):
        return Folder(Path(where))
    try:
        return Bucket(addresses.normalised(text).rstrip("/"))
    except ValueError as e:
        raise SpecError(f"index {text}: {e}") from e


@dataclass(frozen=True)
class Folder:
    """A folder of this machine, or of a file system that machines share.

    Attributes:
        path: The folder.
    """

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def scratch(self) -> Path:
        """Return the folder itself."""
        return self.path

    def names(self, folder: str, *, after: str = "") -> list[str]:
        """Return the names of the files of a folder."""
        with guarded(self.path / folder, "read"):
            try:
                return [name for name in os.listdir(self.path / folder) if name > after]
            except (FileNotFoundError, NotADirectoryError):
                return []

    def read(self, name: str, *, sha256: str | None = None) -> bytes:
        """Return a file's bytes, always from the folder."""
        return read_bytes(self.path / name)

    def create(self, name: str, data: bytes) -> bool:
        """Write a file beside its place and link it there, which fails if there is one."""
        path = self.path / name
        with guarded(path, "write"):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                os.chmod(temporary, 0o644)
                os.link(temporary, path)
            except FileExistsError:
                return False
            finally:
                with suppress(FileNotFoundError):
                    os.unlink(temporary)
            flush_folder(path.parent)
        return True

    def write(self, name: str, data: bytes) -> None:
        """Write a file unless it is there with the same length."""
        path = self.path / name
        if not path.exists() or path.stat().st_size != len(data):
            write_bytes(path, data)

    def exists(self, name: str) -> bool:
        """Return whether there is a file."""
        return (self.path / name).exists()

    def remove(self, name: str) -> None:
        """Delete a file."""
        with guarded(self.path / name, "write"):
            (self.path / name).unlink(missing_ok=True)


@dataclass(frozen=True)
class Bucket:
    """A prefix of a bucket, whose objects are copied to this machine's cache when they are read.

    Attributes:
        uri: s3://bucket/prefix, without a slash at the end.
    """

    uri: str
    _listed: dict[str, StoredObject] = field(default_factory=dict, repr=False, compare=False)
    _checked: set[str] = field(default_factory=set, repr=False, compare=False)

    def __str__(self) -> str:
        return self.uri

    @property
    def scratch(self) -> Path:
        """Return a folder of this machine's home that belongs to the address."""
        name = hashlib.sha256(self.uri.encode()).hexdigest()[:32]
        folder = homes.folder() / "cache" / "indices" / name
        with guarded(folder, "write"):
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    def names(self, folder: str, *, after: str = "") -> list[str]:
        """Return the names of the objects of a folder; their tags are kept, so that copies of them can be read."""
        listed = {stored.uri: stored for stored in objects.list_objects(f"{self.uri}/{folder}", after=after)}
        if not after:
            self._listed.clear()
        self._listed.update(listed)
        return [uri.removeprefix(f"{self.uri}/{folder}/") for uri in listed]

    def read(self, name: str, *, sha256: str | None = None) -> bytes:
        """Return an object's bytes; a copy of what was listed, or has the digest, is as good."""
        uri = f"{self.uri}/{name}"
        if sha256 is not None:
            return read_by_digest(uri, sha256, object_cache())
        stored = self._listed.get(uri)
        return objects.read_object(uri) if stored is None else read_cached(stored, object_cache())

    def create(self, name: str, data: bytes) -> bool:
        """Write an object if the server finds none, after a look whether it is a server that decides this."""
        self._require_conditions()
        return create_object(f"{self.uri}/{name}", data)

    def _require_conditions(self) -> None:
        """Refuse a server that overwrites objects in spite of the condition: commits would get lost.

        Raises:
            StorageError: One line.
        """
        if self._checked:
            return
        uri = f"{self.uri}/{PROBE}"
        if create_object(uri, _PROBE_TEXT) and create_object(uri, _PROBE_TEXT):
            raise StorageError(
                f"{self.uri}: the server ignores `If-None-Match: *`, so that two writers of an index could lose each"
                " other's commits; use a server with conditional writes, or an index in a folder"
            )
        self._checked.add(self.uri)

    def write(self, name: str, data: bytes) -> None:
        """Write an object, and keep a copy of it here for whoever reads it next."""
        objects.write_object(f"{self.uri}/{name}", data)
        keep(data, object_cache())

    def exists(self, name: str) -> bool:
        """Return whether there is an object."""
        return look_up(f"{self.uri}/{name}") is not None

    def remove(self, name: str) -> None:
        """Delete an object."""
        stored = look_up(f"{self.uri}/{name}")
        if stored is not None:
            objects.remove([stored])
