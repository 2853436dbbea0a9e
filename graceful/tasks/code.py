"""The code of a user's task as files: one module, a folder, or a zip in a bucket that is named by its SHA-256.

A zip is made by `graceful.packing` and its digest names the content: it is sent once, never changes, and is run only if
it has the digest in its name. Driver and workers use this.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import stat
import tempfile
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from graceful import addresses, homes, packing, storage
from graceful.errors import IntegrityError, SpecError, StorageError
from graceful.files import mark_used
from graceful.spec.tasks import BUNDLE

_OVERHEAD = 4096
"""Bytes that an archive may take for each file besides its content: two copies of the name and two headers."""


def is_address(file: str) -> bool:
    """Return whether `task.file` names a bundle in a bucket."""
    return addresses.is_remote(file)


@dataclass(frozen=True, kw_only=True)
class Source:
    """Code that may be run.

    Attributes:
        path: The path of the module that defines `task`.
        entry: Its content.
        digest: SHA-256 of the code.
        folder: Whose modules it imports; None: it is a file alone.
        files: Relative name -> content of the folder, where that was verified: modules are imported from these bytes,
            whatever the folder holds by then. None: they are imported from the folder, which is the user's own.
    """

    path: Path
    entry: bytes
    digest: str
    folder: Path | None = None
    files: Mapping[str, bytes] | None = None


def source(file: str, *, trusted: Collection[str] | None = None) -> Source:
    """Return the code that `task.file` names; a bundle is fetched, unpacked and verified.

    Args:
        file: A module, a folder, or the address of a bundle.
        trusted: Digests of which the code must have one; None: the user names this code, and any content will do.

    Raises:
        SpecError: It cannot be read, or an address that names no bundle, or a bundle that is not there.
        IntegrityError: Its content is not trusted, or the bundle has not the digest in its name, was changed after it
            was unpacked, or its files would leave its folder.
        StorageError: The bucket cannot be reached.
    """
    path = Path(file)
    if is_address(file):
        _require_trusted(file, _digest_of_address(file), trusted)
        folder, files = fetch(file)
        return Source(
            path=folder / packing.ENTRY,
            entry=files[packing.ENTRY],
            digest=_digest_of_address(file),
            folder=folder,
            files=files,
        )
    if not path.is_dir():
        entry = packing.read(path)
        candidate = Source(path=path, entry=entry, digest=hashlib.sha256(entry).hexdigest())
    elif trusted is None:
        candidate = Source(
            path=path / packing.ENTRY, entry=packing.read(path / packing.ENTRY), digest=digest(file), folder=path
        )
    else:
        packed = packing.pack(path)
        files = contents(packed, where=file)
        packed_digest = hashlib.sha256(packed).hexdigest()
        candidate = Source(
            path=path / packing.ENTRY, entry=files[packing.ENTRY], digest=packed_digest, folder=path, files=files
        )
    _require_trusted(file, candidate.digest, trusted)
    return candidate


def _require_trusted(file: str, digest: str, trusted: Collection[str] | None) -> None:
    if trusted is not None and digest not in trusted:
        raise IntegrityError(f"{file}: has SHA-256 {digest}, which is not trusted; it is not run")


def digest(file: str) -> str:
    """Return the SHA-256 of the code: of the file's bytes, of the packed folder; that of a bundle is its name.

    Raises:
        SpecError: It cannot be read, or not be packed.
    """
    if is_address(file):
        return _digest_of_address(file)
    path = Path(file)
    return hashlib.sha256(packing.pack(path) if path.is_dir() else packing.read(path)).hexdigest()


# --- fetching ---------------------------------------------------------------------------------------------------------


def fetch(uri: str) -> tuple[Path, dict[str, bytes]]:
    """Return the folder of a bundle below GRACEFUL_HOME/code, and the verified content of its files by name.

    Several processes may unpack it at once; the first rename wins. An existing folder is compared with the digest in
    the bundle's name each time, so that no person who may write to it can replace the code that runs.

    Raises:
        SpecError, IntegrityError, StorageError: As `source`.
    """
    expected = _digest_of_address(uri)
    home = homes.folder().resolve() / packing.FOLDER
    target = home / expected
    packed = _repack(target) if target.is_dir() else None
    if packed is not None and hashlib.sha256(packed).hexdigest() == expected:
        mark_used(target)
        return target, contents(packed, where=uri)
    if target.is_dir():  # changed, or a bundle that another program packed
        files = contents(_download(uri, expected), where=uri)
        if packed is None or contents(packed, where=str(target)) != files:
            raise IntegrityError(
                f"{target}: is not what was unpacked there from {uri}, and is not run; delete it, it is fetched again"
            )
        return target, files
    return target, _download_and_unpack(uri, target)


def _download_and_unpack(uri: str, target: Path) -> dict[str, bytes]:
    home = target.parent
    with storage.guarded(home, "write"):
        home.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".new-", dir=home))
    try:
        data = _download(uri, target.name)
        unpack(data, scratch / target.name, where=uri)
        with storage.guarded(target, "write"):
            try:
                (scratch / target.name).rename(target)
            except OSError:
                if not target.is_dir():
                    raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return contents(data, where=uri)


def _repack(folder: Path) -> bytes | None:
    """Pack a folder again, for its digest; None where it holds files that no bundle may have."""
    try:
        return packing.pack(folder)
    except SpecError:
        return None


def unpack(data: bytes, folder: Path, *, where: str) -> None:
    """Write an archive's files below a folder.

    Args:
        data: The archive.
        folder: Is made.
        where: Of the archive, for messages.

    Raises:
        IntegrityError: No archive, no `task.py`, names that leave the folder or occur twice, links, or too much.
        StorageError: The disk is full.
    """
    for name, content in contents(data, where=where).items():
        storage.write_bytes(folder / name, content)


def contents(data: bytes, *, where: str) -> dict[str, bytes]:
    """Return the files of an archive by their relative names.

    Raises:
        IntegrityError: As `unpack`.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            _require_safe_entries(entries, where)
            return {entry.filename: archive.read(entry) for entry in entries}
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError) as e:
        raise IntegrityError(f"{where}: no bundle of code ({' '.join(str(e).split())}); submit the folder again") from e


def _require_safe_entries(entries: list[zipfile.ZipInfo], where: str) -> None:
    """Refuse unsafe entries before a byte is written; zipfile reads no more than an uncompressed entry says."""
    names = [entry.filename for entry in entries]
    for entry in entries:
        parts = entry.filename.split("/")
        kind = stat.S_IFMT(entry.external_attr >> 16)
        plain = entry.filename.isprintable() and "\\" not in entry.filename and not {"", ".", ".."} & set(parts)
        if not plain or kind not in (0, stat.S_IFREG) or entry.compress_type != zipfile.ZIP_STORED:
            name = entry.filename
            raise IntegrityError(f"{where}: holds {name!r}, which is not a plain file inside it; not unpacked")
    if len(set(names)) < len(names) or packing.ENTRY not in names:
        raise IntegrityError(f"{where}: names occur twice, or there is no {packing.ENTRY}; not unpacked")
    size = sum(entry.file_size for entry in entries)
    if size > packing.LARGEST or len(entries) > packing.MOST:
        bound = f"at most {packing.LARGEST} and {packing.MOST} are unpacked"
        raise IntegrityError(f"{where}: {size} bytes in {len(entries)} files, {bound}")


def _download(uri: str, expected: str) -> bytes:
    """Return the archive's bytes after comparing them with the digest in its name."""
    folder = uri.rpartition("/")[0]
    stored_object = next((stored for stored in storage.list_objects(folder) if stored.uri == uri), None)
    if stored_object is None:
        raise SpecError(f"task.file: {uri} is not there; submit the folder again, or check AWS_ENDPOINT_URL")
    if stored_object.size > packing.LARGEST + packing.MOST * _OVERHEAD:
        raise StorageError(
            f"{uri}: {stored_object.size} bytes, more than a bundle can have; delete it and submit again"
        )
    data = storage.read_object(uri)
    actual = hashlib.sha256(data).hexdigest()
    if actual != expected:
        raise IntegrityError(
            f"{uri}: has SHA-256 {actual[:12]}..., not the one in its name; delete it and submit again",
            {"uri": uri, "found": actual},
        )
    return data


def _digest_of_address(uri: str) -> str:
    match = BUNDLE.fullmatch(uri)
    if match is None:
        raise SpecError(f"task.file: {uri} must look like s3://bucket/prefix/code/<SHA-256>.zip, or be a path")
    return match[1]
