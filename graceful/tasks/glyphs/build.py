"""Builds the glyphs archive from installed Debian packages: `python -m graceful.tasks.glyphs.build`. Maintainers only.

Needs Pillow, fontTools and the packages of packages.txt (`xargs apt-get install`). Writes glyphs.npz, glyphs.json and
CARD.md beside itself; the same fonts give the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import re
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from graceful.errors import DataError
from graceful.storage import sha256_file, write_bytes, write_json, write_text
from graceful.tasks.glyphs.archive import RECORD
from graceful.tasks.glyphs.card import card
from graceful.tasks.glyphs.characters import ALPHANUMERIC, CHARACTERS
from graceful.tasks.glyphs.families import keys_of, representatives, without_copies
from graceful.tasks.glyphs.render import Face, render

HERE = Path(__file__).parent
LARGEST = 6_000_000
"""Bytes the archive may have: it travels in the wheel."""

GRANTS = {
    "OFL-1.0": r"SIL Open Font License",
    "OFL-1.1": r"(?i)SIL Open Font License|Open Font License \(OFL\)",
    "MIT": r"Permission is hereby granted, free of charge",
    "BSD-2-Clause": r"Redistribution and use in source and binary forms",
    "Apache-2.0": r"Apache License|License: Apache-2.0",
    "Bitstream-Vera": r"Bitstream",
    "public-domain": r"(?i)public.domain",
}
"""Texts that a copyright file must hold before a licence of packages.txt is accepted. This is no legal review."""


@dataclass(kw_only=True)
class Harvest:
    """The faces of all packages before copies and surplus faces are dropped, and what was dropped."""

    faces: list[Face] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    copyrights: dict[str, str] = field(default_factory=dict)


def main() -> int:
    """Build and write all three files; returns the exit code."""
    harvest = Harvest()
    for package, licence in listed_packages():
        gather(harvest, package=package, licence=licence)
    distinct, copies = without_copies(harvest.faces)
    harvest.dropped["copy of another face"] += len(copies)
    keys, joined = keys_of(distinct)
    chosen = representatives(distinct, keys)
    harvest.dropped["more faces of a design than the archive keeps"] += len(distinct) - len(chosen)
    faces, keys = [distinct[i] for i in chosen], [keys[i] for i in chosen]
    data = pack(faces, keys)
    if len(data) > LARGEST:
        raise DataError(f"glyphs.npz would have {len(data)} bytes, at most {LARGEST}; keep fewer faces of each design")
    record = describe(faces, keys, harvest=harvest, joined=joined, digest=hashlib.sha256(data).hexdigest())
    write_bytes(HERE / "glyphs.npz", data)
    write_json(HERE / RECORD, record)
    write_text(HERE / "CARD.md", card(record))
    sys.stderr.write(f"{len(faces)} faces of {len(set(keys))} designs, {record['images']} images, {len(data)} bytes\n")
    return 0


def listed_packages() -> list[tuple[str, str]]:
    """Return packages and licences of packages.txt."""
    lines = (HERE / "packages.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split() for line in lines if line and not line.startswith("#")]
    return [(package, licence) for package, licence in pairs]


def gather(harvest: Harvest, *, package: str, licence: str) -> None:
    """Render every font file of one package.

    Raises:
        DataError: The package is not installed, or its copyright file does not grant the licence.
    """
    paths = subprocess.run(["dpkg", "-L", package], capture_output=True, text=True, check=False).stdout.splitlines()
    notice = Path("/usr/share/doc") / package / "copyright"
    if not paths or not notice.exists():
        raise DataError(f"{package}: not installed; apt-get install {package}")
    notice_text = re.sub(r"\s+", " ", notice.read_text(encoding="utf-8", errors="replace"))
    if not re.search(GRANTS[licence], notice_text):
        raise DataError(f"{notice}: does not grant {licence}; correct packages.txt")
    harvest.copyrights[package] = sha256_file(notice)
    for path in sorted(map(Path, paths)):
        if path.suffix.lower() in (".ttf", ".otf") and path.is_file() and not path.is_symlink():
            result = render(path, package=package, licence=licence)
            if isinstance(result, Face):
                harvest.faces.append(result)
            else:
                harvest.dropped[result] += 1


def pack(faces: Sequence[Face], keys: Sequence[str]) -> bytes:
    """Return the archive's bytes: an npz without pickles and without timestamps."""
    split = len(ALPHANUMERIC)
    present = np.stack([face.present[split:] for face in faces])
    arrays: dict[str, np.ndarray[Any, Any]] = {
        "characters": np.asarray(CHARACTERS),
        "faces": np.asarray(unique_names(faces)),
        "keys": np.asarray(keys),
        "present": present,
        "alphanumeric": np.stack([face.images[:split] for face in faces]),
        "others": np.concatenate([face.images[split:][mask] for face, mask in zip(faces, present, strict=True)]),
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, array, allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, member.getvalue(), compresslevel=9)
    return buffer.getvalue()


def unique_names(faces: Sequence[Face]) -> list[str]:
    """Return unique names: the file's stem, with its package where two files share one; no slash, no space."""
    stems = Counter(face.name for face in faces)
    unique = [face.name if stems[face.name] == 1 else f"{face.package}-{face.name}" for face in faces]
    plain = [re.sub(r"[^A-Za-z0-9._-]+", "-", name) for name in unique]
    assert len(set(plain)) == len(plain), "two faces of one name would share ids"
    return plain


def describe(
    faces: Sequence[Face], keys: Sequence[str], *, harvest: Harvest, joined: list[str], digest: str
) -> dict[str, Any]:
    """Return the record beside the archive: digest, counts, and where each face comes from."""
    entries = [
        {
            "name": name,
            "file": face.file,
            "family": face.family,
            "style": face.style,
            "design": key,
            "package": face.package,
            "licence": face.licence,
            "copyright_sha256": harvest.copyrights[face.package],
        }
        for name, face, key in zip(unique_names(faces), faces, keys, strict=True)
    ]
    return {
        "schema": 1,
        "sha256": digest,
        "designs": len(set(keys)),
        "images": int(sum(face.present.sum() for face in faces)),
        "dropped": dict(sorted(harvest.dropped.items())),
        "joined": joined,
        "faces": entries,
    }


if __name__ == "__main__":
    sys.exit(main())
