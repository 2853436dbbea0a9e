"""Pack the code of a user's task as one archive: the same bytes for the same files on every machine.

A folder holds `task.py` and what it imports; `__pycache__` and names that start with a dot do not count. The digest of
the archive names the content. The client packs to know that digest; what sends, fetches and runs code packs as well.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from graceful.errors import SpecError

ENTRY = "task.py"
"""The module of a folder that defines `task`."""
LARGEST = 64 * 2**20
"""Bytes of a folder's files together: code travels, data is read from where it lies."""
MOST = 10_000
"""Files of a folder."""
FOLDER = "code"
"""Folder of packages, below the storage's address and below GRACEFUL_HOME."""


def address(storage_uri: str, digest: str) -> str:
    """Return the address of the bundle with a digest."""
    return f"{storage_uri.rstrip('/')}/{FOLDER}/{digest}.zip"


def pack(path: Path) -> bytes:
    """Return a zip of a folder, or of one file as `task.py`. Not compressed: another zlib would give other bytes.

    Raises:
        SpecError: No `task.py`, more than `LARGEST` bytes or `MOST` files, a link that leaves the folder or leads to a
            folder, something that is not a file, or a name that is not UTF-8.
    """
    files = dict(_relative_files(path)) if path.is_dir() else {ENTRY: path}
    if ENTRY not in files:
        raise SpecError(f"task.file: {path} is a folder without {ENTRY}; name the module that defines task() so")
    size = sum(_size(file) for file in files.values())
    if size > LARGEST:
        bound = f"at most {LARGEST // 2**20} MiB travel; leave data out and read it from where it lies"
        raise SpecError(f"task.file: {path} holds {size / 2**20:.1f} MiB, {bound}")
    import zipfile  # commands that pack nothing start without it

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name)  # dated 1980, whatever the file's time
            entry.create_system = 3
            entry.external_attr = (stat.S_IFREG | 0o644) << 16
            archive.writestr(entry, read(files[name]))
    return buffer.getvalue()


def _relative_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield relative name and path of the files to pack; a link to a file counts as that file."""
    root, count = folder.resolve(), 0
    for where, folders, names in os.walk(folder, onerror=_unreadable):
        folders[:] = sorted(name for name in folders if name != "__pycache__" and not name.startswith("."))
        for name in [*folders, *sorted(names)]:
            path = Path(where, name)
            relative = path.relative_to(folder).as_posix()
            if name.startswith(".") or (name in folders and not path.is_symlink()):
                continue
            if path.is_symlink() and not path.resolve().is_relative_to(root):
                raise SpecError(f"task.file: {path} leads out of its folder, to {path.resolve()}; copy it into it")
            if name in folders or not path.is_file():
                raise SpecError(f"task.file: {path} is not a file; code travels as plain files, copy or remove it")
            if not relative.isprintable() or "\\" in relative:
                raise SpecError(f"task.file: {relative!r} in {folder} is not a plain UTF-8 name; rename it")
            count += 1
            if count > MOST:
                raise SpecError(f"task.file: {folder} holds more than {MOST} files; name a folder with the code alone")
            yield relative, path


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as e:
        _unreadable(e)


def _unreadable(error: OSError) -> NoReturn:
    raise SpecError(f"task.file: {error.filename} cannot be read ({error.strerror}); check the path") from error


def read(path: Path) -> bytes:
    """Return a file of the code.

    Raises:
        SpecError: It cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as e:
        _unreadable(e)
