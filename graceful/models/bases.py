"""Weights of checkpoints that versions with adapters were trained beside, and where they are. Driver, workers, serving.

A version with adapters keeps no copy of its checkpoint's weights, but their SHA-256 (`assets/base.json`). They are
looked for in this machine's store, in the bucket, and where the spec of the version found them; others are refused.
Copies in the store are content-addressed, so that all versions of one checkpoint share one.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graceful import homes, storage
from graceful.errors import DataError, IntegrityError, StorageError
from graceful.files import guarded, mark_used
from graceful.models import checkpoint_folders

FILE = "base.json"
"""The file of a version that names the weights it was trained on."""
_NAME = re.compile(r"[A-Za-z0-9_][\w.-]{0,99}\.safetensors(\.index\.json)?")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class Base:
    """Weights of a checkpoint.

    Attributes:
        checkpoint, revision: Where the spec of the version found them.
        files: Name -> SHA-256.
    """

    checkpoint: str
    revision: str | None
    files: Mapping[str, str]

    @property
    def digest(self) -> str:
        """Return the SHA-256 of the weights; of the list of their files where there are several."""
        return next(iter(self.files.values())) if len(self.files) == 1 else storage.sha256_json(dict(self.files))

    @property
    def store(self) -> Path:
        """Return where this machine keeps a copy."""
        return homes.folder() / "cache" / "bases" / self.digest


def described(section: checkpoint_folders.Checkpoint) -> dict[str, Any]:
    """Return the content of `base.json` for the checkpoint that a spec names.

    Raises:
        DataError: There is no such checkpoint, or it has no safetensors.
    """
    place = checkpoint_folders.folder(section)
    return {"files": {name: _sha256(place / name) for name in checkpoint_folders.weight_files(place)}}


def weights_of(section: checkpoint_folders.Checkpoint, kept: Mapping[str, Any]) -> Path:
    """Return the folder of a checkpoint's weights: of a version with adapters, of those it was trained on.

    Args:
        section: The network.
        kept: Files of the version by name.

    Raises:
        DataError, IntegrityError, StorageError: They are not to be had, or others.
    """
    return checkpoint_folders.folder(section) if FILE not in kept else find(of(section, kept[FILE]))


def digest_of(task: object) -> str | None:
    """Return the digest of the weights beside which a task's section has adapters trained; None where it has none."""
    network: Any = getattr(task, "network", None)
    if getattr(network, "peft", None) is None:
        return None
    return of(network, described(network)).digest


def of(section: checkpoint_folders.Checkpoint, document: object) -> Base:
    """Return the base of a version.

    Args:
        section: The network of the version.
        document: What its `base.json` holds.

    Raises:
        DataError: It is no such document.
    """
    files = document.get("files") if isinstance(document, Mapping) else None
    if not isinstance(files, Mapping) or not files or not all(map(_is_entry, files.keys(), files.values())):
        raise DataError(f"{FILE} of the version: names no weights ({document!r:.60}); fetch the version again")
    return Base(checkpoint=section.checkpoint, revision=section.revision, files=dict(files))


def _is_entry(name: object, digest: object) -> bool:
    return (
        isinstance(name, str) and isinstance(digest, str) and bool(_NAME.fullmatch(name) and _SHA256.fullmatch(digest))
    )


def find(base: Base) -> Path:
    """Return a folder with the weights of a base, compared with their digest.

    Raises:
        IntegrityError: The checkpoint has other weights now.
        DataError: The checkpoint is gone, and there is no copy.
    """
    if not base.store.is_dir():
        storage.Mirror.of(homes.folder()).unseal(base.store)
    if base.store.is_dir() and _difference(base.store, base) is None:
        mark_used(base.store)
        return base.store
    remedy = f"restore that checkpoint, or put its weights into {base.store}"
    try:
        place = checkpoint_folders.folder(base)
    except DataError as e:
        raise DataError(
            f"{e.message.partition(';')[0]}; the version needs its weights (SHA-256 {base.digest[:12]}...): {remedy}"
        ) from e
    difference = _difference(place, base)
    if difference is not None:
        name, actual = difference
        expected = base.files[name]
        raise IntegrityError(
            f"{place / name}: is not the base that the version was trained on, SHA-256 must be {expected[:12]}..., got"
            f" {actual[:12]}...; {remedy}",
            {"path": str(place / name), "expected": expected, "found": actual},
        )
    return place


def keep(base: Base) -> None:
    """Copy the weights of a base to the bucket, once, so that other machines find them; without a bucket do nothing.

    Raises:
        StorageError: The disk is full, or the bucket cannot be reached.
    """
    mirror = storage.Mirror.of(homes.folder())
    if mirror.uri is None or mirror.is_sealed(base.store):
        return
    place = find(base)
    if place != base.store:
        put(base, place)
    mirror.seal(base.store)


def put(base: Base, place: Path) -> None:
    """Copy the weights of a base from a folder into this machine's store.

    Raises:
        IntegrityError: They are others.
        StorageError: The disk is full.
    """
    with guarded(base.store, "write"):
        base.store.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=base.store.parent, prefix=".new-") as scratch:
        fresh = Path(scratch) / "base"
        fresh.mkdir()
        for name in base.files:
            with guarded(place / name, "copy"):
                shutil.copyfile(place / name, fresh / name)
        difference = _difference(fresh, base)
        if difference is not None:
            name, actual = difference
            raise IntegrityError(f"{place / name}: SHA-256 must be {base.files[name][:12]}..., got {actual[:12]}...")
        with guarded(base.store, "write"):
            if base.store.is_dir():  # damaged, or of another process that was faster
                base.store.rename(Path(scratch) / "former")
            fresh.rename(base.store)


def _difference(place: Path, base: Base) -> tuple[str, str] | None:
    """Return the first file that has another digest, and that digest."""
    for name, expected in base.files.items():
        path = place / name
        actual = _sha256(path) if path.is_file() else "nothing"
        if actual != expected:
            return name, actual
    return None


def _sha256(path: Path) -> str:
    """Return the SHA-256 of a file; of one that is as it was when this machine last asked, without reading it again."""
    facts = path.stat()
    key = storage.sha256_json([str(path.resolve()), facts.st_size, facts.st_mtime_ns, facts.st_ino])
    known = homes.folder() / "cache" / "digests" / key
    with suppress(OSError, ValueError):
        return str(json.loads(known.read_text(encoding="ascii"))["sha256"])
    digest = storage.sha256_file(path)
    with suppress(StorageError):  # a home that cannot be written to: asked again next time
        storage.write_json(known, {"sha256": digest})
    return digest
