"""The places of an index: a folder of this machine, or a prefix of a bucket. Driver.

A commit needs one atomic operation of its place, `create`, which writes a file unless one of that name exists, so that
of two writers one succeeds. A folder uses link(2) for it, a bucket a conditional write. All other files are named by
their digest or have no content.
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
    """The storage of the files of one index; `str` returns its address."""

    @property
    def scratch(self) -> Path:
        """The folder of this machine for locks and for files that can be computed again."""
        ...

    def names(self, folder: str, *, after: str = "") -> list[str]:
        """Return the names of the files of a folder; an empty list if the folder does not exist.

        Args:
            folder: The path of the folder below the place.
            after: A name; only names that sort after it are returned, and an empty text returns all.
        """
        ...

    def read(self, name: str, *, sha256: str | None = None) -> bytes:
        """Return a file's bytes.

        Args:
            name: The path of the file below the place.
            sha256: The digest of its bytes; if it is given, a copy on this machine may be read instead.

        Raises:
            StorageError: The file is missing or cannot be read.
            IntegrityError: The bytes in a bucket are not those that were written.
        """
        ...

    def create(self, name: str, data: bytes) -> bool:
        """Write a file unless it exists, and return whether this call has written it; of two writers, one succeeds.

        Raises:
            StorageError: The disk is full, the place cannot be reached, or its server cannot decide between writers.
        """
        ...

    def write(self, name: str, data: bytes) -> None:
        """Write a file that is named by its digest; readers never see a part of it.

        Raises:
            StorageError: The disk is full, or the place cannot be reached.
        """
        ...

    def exists(self, name: str) -> bool:
        """Return whether a file exists."""
        ...

    def remove(self, name: str) -> None:
        """Delete a file; one that does not exist is ignored."""
        ...


def at(where: str | Path | Place) -> Place:
    """Return the place of an address.

    Raises:
        SpecError: The address is neither a path nor s3://bucket/prefix.
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
        path: The path of the folder.
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
        """Return the bytes of a file in the folder."""
        return read_bytes(self.path / name)

    def create(self, name: str, data: bytes) -> bool:
        """Write a temporary file and link it to the name, which fails if the name exists."""
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
        """Write a file unless one of the same length exists."""
        path = self.path / name
        if not path.exists() or path.stat().st_size != len(data):
            write_bytes(path, data)

    def exists(self, name: str) -> bool:
        """Return whether a file exists."""
        return (self.path / name).exists()

    def remove(self, name: str) -> None:
        """Delete a file."""
        with guarded(self.path / name, "write"):
            (self.path / name).unlink(missing_ok=True)


@dataclass(frozen=True)
class Bucket:
    """A prefix of a bucket, whose objects are copied to this machine's cache when they are read.

    Attributes:
        uri: The address s3://bucket/prefix, without a slash at the end.
    """

    uri: str
    _listed: dict[str, StoredObject] = field(default_factory=dict, repr=False, compare=False)
    _checked: set[str] = field(default_factory=set, repr=False, compare=False)

    def __str__(self) -> str:
        return self.uri

    @property
    def scratch(self) -> Path:
        """Return the folder in the home of this machine that belongs to the address."""
        name = hashlib.sha256(self.uri.encode()).hexdigest()[:32]
        folder = homes.folder() / "cache" / "indices" / name
        with guarded(folder, "write"):
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    def names(self, folder: str, *, after: str = "") -> list[str]:
        """Return the names of the objects of a folder, and keep their ETags, by which local copies are found."""
        listed = {stored.uri: stored for stored in objects.list_objects(f"{self.uri}/{folder}", after=after)}
        if not after:
            self._listed.clear()
        self._listed.update(listed)
        return [uri.removeprefix(f"{self.uri}/{folder}/") for uri in listed]

    def read(self, name: str, *, sha256: str | None = None) -> bytes:
        """Return the bytes of an object, from a local copy if one has the ETag that was listed or the digest."""
        uri = f"{self.uri}/{name}"
        if sha256 is not None:
            return read_by_digest(uri, sha256, object_cache())
        stored = self._listed.get(uri)
        return objects.read_object(uri) if stored is None else read_cached(stored, object_cache())

    def create(self, name: str, data: bytes) -> bool:
        """Write an object by a conditional write, after a check that the server obeys the condition."""
        self._require_conditions()
        return create_object(f"{self.uri}/{name}", data)

    def _require_conditions(self) -> None:
        """Refuse a server that overwrites objects in spite of the condition, because commits would get lost.

        Raises:
            StorageError: The server ignores the condition.
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
        """Write an object, and keep a copy on this machine."""
        objects.write_object(f"{self.uri}/{name}", data)
        keep(data, object_cache())

    def exists(self, name: str) -> bool:
        """Return whether an object exists."""
        return look_up(f"{self.uri}/{name}") is not None

    def remove(self, name: str) -> None:
        """Delete an object."""
        stored = look_up(f"{self.uri}/{name}")
        if stored is not None:
            objects.remove([stored])
