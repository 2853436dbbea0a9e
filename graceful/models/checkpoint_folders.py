"""Where the files of a checkpoint are on this machine: a folder, or copies from a bucket or a hub. Driver, workers.

All processes of a node read the same files, which are mapped into memory: what they do not change is there once. Copies
of a bucket are made by one process, below graceful's folder, and are complete or not there; those of a hub are made by
its own client and are used without asking the hub again.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from graceful import homes, locks, storage
from graceful.errors import DataError, IntegrityError
from graceful.files import guarded, mark_used
from graceful.models import packages
from graceful.storage import StoredObject, objects

WEIGHTS = "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
"""Which tensor is in which file, where the weights are in several."""
JSON_FILES = ("config.json", "tokenizer.json", "preprocessor_config.json", INDEX)
PATTERNS = (*JSON_FILES, "*.safetensors")
"""Files of a checkpoint that are read; everything else stays where it is."""
LARGEST = 64 * 2**20
"""Bytes of a JSON file of a checkpoint."""


class Checkpoint(Protocol):
    """Names the place of a checkpoint: the section of a network, or the record of a version."""

    @property
    def checkpoint(self) -> str:
        """Return the checkpoint: a folder, an address of a bucket, or a hub id."""
        ...

    @property
    def revision(self) -> str | None:
        """Return the commit of the hub's repository; None: it is a folder or an address."""
        ...


def folder(section: Checkpoint) -> Path:
    """Return the folder of a checkpoint; that of a bucket or a hub is downloaded once on each machine.

    Raises:
        DataError: No such folder, no checkpoint at that address, or the hub cannot be reached.
        IntegrityError: It was written to while it was copied.
        StorageError: The bucket cannot be reached, or the disk is full.
    """
    return folder_of(section.checkpoint, revision=section.revision)


def folder_of(checkpoint: str, *, revision: str | None = None) -> Path:
    """Do what `folder` does, of what a section names."""
    if revision is not None:
        return _of_hub(checkpoint, revision)
    if storage.is_remote(checkpoint):
        return _of_bucket(checkpoint)
    path = Path(checkpoint)
    if not path.is_dir():
        raise DataError(
            f"task.network.checkpoint: {path} is not a folder; name a folder, s3://bucket/prefix/, or a hub id together"
            " with its revision"
        )
    return path


def _of_bucket(uri: str) -> Path:
    listed = _listed(uri)
    if not any(item.key.endswith(".safetensors") for item in listed):
        raise DataError(f"task.network.checkpoint: {uri} holds no safetensors; name the prefix of config.json")
    name = storage.sha256_json([[item.uri, item.etag, item.size] for item in listed])
    place = homes.folder() / "cache" / "checkpoints" / name[:32]
    if place.is_dir():
        mark_used(place)
        return place
    with guarded(place, "write"):
        place.parent.mkdir(parents=True, exist_ok=True)
        with locks.exclusive(place.with_name(f"{place.name}.lock"), seconds=None):
            if not place.is_dir():
                _download(uri, listed, place)
    return place


def _listed(uri: str) -> list[StoredObject]:
    """Return the files of a checkpoint directly below an address."""
    wanted = [PurePosixPath(pattern) for pattern in PATTERNS]
    prefix = storage.split_uri(uri)[1].strip("/")
    return [
        item
        for item in storage.list_objects(uri)
        if item.key.rpartition("/")[0].strip("/") == prefix
        and any(PurePosixPath(item.key).match(str(pattern)) for pattern in wanted)
    ]


def _download(uri: str, listed: Sequence[StoredObject], place: Path) -> None:
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=".new-") as scratch:
        fresh = Path(scratch) / "files"
        for item in listed:
            path = fresh / PurePosixPath(item.key).name
            if not objects.fetch(item.uri, path) or path.stat().st_size != item.size:
                raise _changed(uri)
        if _listed(uri) != list(listed):
            raise _changed(uri)
        os.replace(fresh, place)


def _changed(uri: str) -> IntegrityError:
    return IntegrityError(f"{uri}: the checkpoint was written to while it was copied; start again when it is complete")


def _of_hub(name: str, revision: str) -> Path:
    hub = packages.package("huggingface_hub")
    options: dict[str, Any] = {"revision": revision, "allow_patterns": list(PATTERNS)}
    try:
        place = Path(hub.snapshot_download(name, local_files_only=True, **options))
        if _is_complete(place):
            return place
    except (OSError, ValueError):
        pass  # it is not in the cache yet
    try:
        return Path(hub.snapshot_download(name, **options))
    except (OSError, ValueError, hub.errors.HfHubHTTPError) as e:
        reason = " ".join(str(e).split())[:200]
        remedy = "check the network and HF_TOKEN"
        if hub.constants.HF_HUB_OFFLINE:
            reason, remedy = "HF_HUB_OFFLINE is set, and it is not in the cache of the hub", "unset that once"
        raise DataError(
            f"task.network.checkpoint: {name} at {revision[:12]} cannot be had ({reason}); {remedy}, or name a folder"
            " or s3://bucket/prefix/"
        ) from e


def _is_complete(place: Path) -> bool:
    """Return whether a folder of the hub's cache has all of a checkpoint; a download may have been broken off."""
    described = [(place / name).is_file() for name in JSON_FILES]
    if not described[0] or not any(described[1:3]):
        return False
    try:
        return bool(weight_files(place))
    except DataError:
        return False


def weight_files(place: Path) -> tuple[str, ...]:
    """Return the names of the files that hold the weights of a checkpoint: one, or an index and what it names.

    Raises:
        DataError: There are none, or the index is damaged.
    """
    if (place / WEIGHTS).is_file():
        return (WEIGHTS,)
    if not (place / INDEX).is_file():
        raise DataError(f"task.network.checkpoint: {place} has no {WEIGHTS}; save the weights as safetensors")
    parts = read_json(place / INDEX).get("weight_map")
    names = sorted(set(parts.values())) if isinstance(parts, dict) else []
    if not names or not all((place / str(name)).is_file() for name in names):
        raise DataError(f"{place / INDEX}: names files that are not there; download the checkpoint again")
    return (INDEX, *names)


def read_json(path: Path) -> dict[str, Any]:
    """Return what a JSON file of a checkpoint holds.

    Raises:
        DataError: It is missing, damaged, or no mapping.
    """
    if not path.is_file():
        raise DataError(f"task.network.checkpoint: {path} is missing; save the model and its fast tokenizer there")
    if path.stat().st_size > LARGEST:
        raise DataError(f"{path}: more than {LARGEST} bytes; does its name fit its content?")
    try:
        value = json.loads(storage.read_bytes(path))
    except ValueError as e:
        raise DataError(f"{path}: no JSON ({e}); download it again") from e
    if not isinstance(value, dict):
        raise DataError(f"{path}: must hold a mapping, got {type(value).__name__}; download it again")
    return value
