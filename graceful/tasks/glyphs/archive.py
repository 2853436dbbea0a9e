"""Opens the archive of rendered typefaces, checked against its digest. Driver and workers; numpy only.

Letters and digits, and all other characters, are two arrays: most tasks never unpack the second.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from graceful.errors import DataError, IntegrityError
from graceful.tasks.glyphs.characters import ALPHANUMERIC, CHARACTERS

ARCHIVE = Path(__file__).with_name("glyphs.npz")
RECORD = "glyphs.json"
"""Beside the archive: its SHA-256 and every face with its package and licence."""


@dataclass(frozen=True, kw_only=True)
class Archive:
    """The rendered typefaces.

    Attributes:
        faces: [F] names.
        keys: [F] design keys.
        digest: SHA-256 of the file.
        content: The opened file; arrays are unpacked on demand.
    """

    faces: NDArray[np.str_]
    keys: NDArray[np.str_]
    digest: str
    content: NpzFile

    def alphanumeric(self) -> NDArray[np.uint8]:
        """Return [F, 62, 28, 28]: letters and digits, which every face has."""
        return _unpacked(self, "alphanumeric")

    def others(self) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
        """Return images [M, 28, 28] of the other characters, each with its face [M] and its character in CHARACTERS
        [M]."""
        face, character = np.nonzero(np.asarray(self.content["present"]))
        return _unpacked(self, "others"), face, character + len(ALPHANUMERIC)


def open_archive(path: Path = ARCHIVE) -> Archive:
    """Open the archive; once per process and path.

    Raises:
        DataError: The archive or its record is missing.
        IntegrityError: Its bytes are not those that were recorded.
    """
    return _open(path.resolve())


@lru_cache(maxsize=2)
def _open(path: Path) -> Archive:
    try:
        data = path.read_bytes()
        expected = json.loads(path.with_name(RECORD).read_text(encoding="utf-8"))["sha256"]
    except FileNotFoundError as e:
        raise DataError(f"{e.filename}: the glyphs archive is missing; install graceful-ai again") from e
    except (OSError, ValueError, KeyError) as e:
        raise DataError(f"{path}: the glyphs archive cannot be read ({e}); install graceful-ai again") from e
    digest = hashlib.sha256(data).hexdigest()
    if digest != expected:
        raise IntegrityError(
            f"{path}: SHA-256 {digest[:12]} where {expected[:12]} is recorded; install graceful-ai again",
            {"path": str(path), "expected": expected, "found": digest},
        )
    try:
        content = np.load(io.BytesIO(data), allow_pickle=False)
        archive = Archive(faces=content["faces"], keys=content["keys"], digest=digest, content=content)
        characters = str(content["characters"])
    except (ValueError, KeyError, zipfile.BadZipFile) as e:
        raise DataError(f"{path}: not a glyphs archive ({e}); build it again") from e
    if characters != CHARACTERS:
        raise DataError(f"{path}: made for another set of characters; build it again")
    return archive


_ARRAYS: dict[tuple[str, str], NDArray[np.uint8]] = {}


def _unpacked(archive: Archive, name: str) -> NDArray[np.uint8]:
    """Return one array of the archive, unpacked once per process; `read` indexes views of it."""
    key = (archive.digest, name)
    if key not in _ARRAYS:
        array = np.asarray(archive.content[name])
        array.flags.writeable = False
        _ARRAYS[key] = array
    return _ARRAYS[key]
