"""Copies of objects of buckets on this machine, by content tag. Drivers and workers use it."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path

from graceful import homes
from graceful.errors import IntegrityError
from graceful.files import mark_used
from graceful.storage.local import sha256_json, write_bytes, write_text
from graceful.storage.objects import StoredObject, read_listed, read_object


def read_cached(stored: StoredObject, cache: Path) -> bytes:
    """Return one object's bytes through a local cache; a damaged local copy is fetched again.

    Raises:
        IntegrityError: It was overwritten since it was listed, or the server sent another number of bytes.
        StorageError: Unreachable, refused, vanished, or the disk is full.
    """
    name = _cache_name(stored)
    path, record = cache / name[:2] / name, cache / name[:2] / f"{name}.sha256"
    with suppress(FileNotFoundError):
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() == record.read_text(encoding="ascii"):
            mark_used(record)
            return data
    data = read_listed(stored)
    if len(data) != stored.size:
        raise IntegrityError(
            f"{stored.uri}: {len(data)} bytes where the listing says {stored.size}; it changed meanwhile, start again"
        )
    write_bytes(path, data)
    write_text(record, hashlib.sha256(data).hexdigest())
    return data


def cached_file(stored: StoredObject, cache: Path) -> Path:
    """Return the local file of one object, which `read_cached` brings here where it is missing or damaged.

    Raises:
        IntegrityError, StorageError: As `read_cached`.
    """
    read_cached(stored, cache)
    name = _cache_name(stored)
    return cache / name[:2] / name


def read_by_digest(uri: str, sha256: str, cache: Path) -> bytes:
    """Return the bytes of an object whose digest is known, from the cache where they are there.

    Bytes with another digest are returned as they are and not kept: the caller, which knows the digest, reports it.

    Raises:
        StorageError: Unreachable, refused, no such object, or the disk is full.
    """
    path = cache / sha256[:2] / sha256
    with suppress(FileNotFoundError):
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() == sha256:
            mark_used(path.with_name(f"{sha256}.sha256"))
            return data
    data = read_object(uri)
    if hashlib.sha256(data).hexdigest() == sha256:
        keep(data, cache)
    return data


def keep(data: bytes, cache: Path) -> None:
    """Write bytes into the cache, where `read_by_digest` finds them.

    Raises:
        StorageError: The disk is full, or refuses.
    """
    digest = hashlib.sha256(data).hexdigest()
    write_bytes(cache / digest[:2] / digest, data)
    write_text(cache / digest[:2] / f"{digest}.sha256", digest)


def _cache_name(stored: StoredObject) -> str:
    return sha256_json([stored.uri, stored.etag, stored.size])


def object_cache() -> Path:
    """Return where this machine caches objects: below $GRACEFUL_HOME, else below .graceful here."""
    return homes.folder() / "cache" / "objects"
