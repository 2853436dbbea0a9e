"""Objects in buckets. Drivers, workers and the client's probes use it.

Every object that graceful writes carries the SHA-256 of its bytes, which is checked when it is read.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from graceful import addresses
from graceful.errors import IntegrityError, SpecError, StorageError
from graceful.files import guarded
from graceful.storage import refusals, server
from graceful.storage.local import read_bytes, sha256_file

_DIGEST = "sha256"
ABSENT = frozenset({"NoSuchKey", "404"})
"""Codes of answers that say there is no such object."""
_UNCHANGED = frozenset({"304", "NotModified"})
_CHANGED = frozenset({"412", "PreconditionFailed"})
_SHORTER = frozenset({"416", "InvalidRange"})
_LISTING = frozenset({"Name", "Prefix", "KeyCount", "IsTruncated"})
"""Keys of a listing's response, whether or not objects are listed."""
_AT_ONCE = 1000
"""Objects that one request may delete."""


@dataclass(frozen=True, kw_only=True)
class StoredObject:
    """One object of a bucket as a listing describes it.

    Attributes:
        bucket: Bucket.
        key: Full key.
        size: Bytes.
        etag: The server's content tag, without quotes; changes when the content does.
        modified: When it was last written, by the server's clock; None: not from a listing.
    """

    bucket: str
    key: str
    size: int
    etag: str
    modified: datetime | None = None

    @property
    def uri(self) -> str:
        """Return the address, s3://bucket/key."""
        return f"s3://{self.bucket}/{self.key}"


def split_uri(uri: str) -> tuple[str, str]:
    """Return bucket and key of s3://bucket/some/prefix.

    Raises:
        SpecError: No bucket, or another scheme.
    """
    try:
        return addresses.split(uri)
    except ValueError as e:
        raise SpecError(f"{uri}: {e}") from e


# --- listing and removing ---------------------------------------------------------------------------------------------


def list_objects(uri: str, *, after: str = "") -> list[StoredObject]:
    """Return the objects below a prefix, sorted by key; folder markers are left out. The prefix ends at a slash.

    Args:
        uri: The prefix.
        after: What follows the prefix in a key, behind which the listing begins; empty: with the first.

    Raises:
        StorageError: Unreachable, refused, or no such bucket.
    """
    bucket, prefix = split_uri(uri)
    prefix = f"{prefix.rstrip('/')}/" if prefix.strip("/") else ""

    start = {"StartAfter": f"{prefix}{after}"} if after else {}

    def request() -> list[StoredObject]:
        objects = []
        for page in server.client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix, **start):
            if not _LISTING & set(page):  # any page of XML can be read as a listing of nothing
                raise StorageError(f"s3://{bucket}/{prefix}: {refusals.NO_S3}")
            objects += [_stored(bucket, item) for item in page.get("Contents", ()) if not item["Key"].endswith("/")]
        return objects

    return sorted(server.send(f"s3://{bucket}/{prefix}", request), key=lambda stored: stored.key)


def _stored(bucket: str, item: Mapping[str, Any]) -> StoredObject:
    return StoredObject(
        bucket=bucket,
        key=item["Key"],
        size=item["Size"],
        etag=item["ETag"].strip('"'),
        modified=item["LastModified"],
    )


def remove(stored: Sequence[StoredObject]) -> None:
    """Delete objects of one bucket; objects that do not exist are ignored.

    Raises:
        StorageError: Unreachable or refused.
    """
    for first in range(0, len(stored), _AT_ONCE):
        batch = stored[first : first + _AT_ONCE]
        request = {"Objects": [{"Key": item.key} for item in batch], "Quiet": True}
        response = server.send(batch[0].uri, partial(_delete, batch[0].bucket, request))
        for error in response.get("Errors", ()):
            code = str(error.get("Code", "unknown"))
            address = f"s3://{batch[0].bucket}/{error.get('Key', '')}"
            raise StorageError(f"{address}: not deleted ({code}); check the bucket's policy", {"code": code})


def _delete(bucket: str, request: dict[str, Any]) -> dict[str, Any]:
    response: dict[str, Any] = server.client().delete_objects(Bucket=bucket, Delete=request)
    return response


# --- bytes ------------------------------------------------------------------------------------------------------------


def read_object(uri: str) -> bytes:
    """Return one object's bytes.

    Raises:
        IntegrityError: They are not those that were written.
        StorageError: Unreachable, refused, or no such object.
    """
    return _read(uri, *split_uri(uri))[0]


def read_listed(stored: StoredObject) -> bytes:
    """Return the bytes of an object as it was listed.

    Raises:
        IntegrityError: It was overwritten since, or the bytes are not those that were written.
        StorageError: Unreachable, refused, or vanished.
    """
    change = IntegrityError(f"{stored.uri}: it changed after it was listed; run the same command again")
    condition = {} if stored.etag.startswith("W/") else {"IfMatch": f'"{stored.etag}"'}  # it knows no weak tags
    try:
        data, tag = _read(stored.uri, stored.bucket, stored.key, **condition)
    except StorageError as e:
        if e.facts.get("code") not in _CHANGED:
            raise
        raise change from e
    if tag.strip('"') != stored.etag:  # a server that does not know the condition
        raise change
    return data


def read_range(stored: StoredObject, start: int, stop: int) -> bytes:
    """Return the bytes [start, stop) of an object as it was listed; what was written about their digest is not checked.

    Raises:
        IntegrityError: It was overwritten since, or is shorter than it was.
        StorageError: Unreachable, refused, or vanished.
    """
    condition = {} if stored.etag.startswith("W/") else {"IfMatch": f'"{stored.etag}"'}
    span = f"bytes={start}-{stop - 1}"

    def request() -> tuple[bytes, str]:
        response = server.client().get_object(Bucket=stored.bucket, Key=stored.key, Range=span, **condition)
        return response["Body"].read(), response["ETag"]

    change = IntegrityError(f"{stored.uri}: it changed after it was listed; run the same command again")
    try:
        data, tag = server.send(stored.uri, request)
    except StorageError as e:
        if e.facts.get("code") not in _CHANGED | _SHORTER:
            raise
        raise change from e
    if tag.strip('"') != stored.etag or len(data) != stop - start:
        raise change
    return data


def _read(uri: str, bucket: str, key: str, **conditions: str) -> tuple[bytes, str]:
    """Return bytes and tag of an object."""

    def request() -> tuple[bytes, str, str | None]:
        response = server.client().get_object(Bucket=bucket, Key=key, **conditions)
        return response["Body"].read(), response["ETag"], response.get("Metadata", {}).get(_DIGEST)

    data, tag, expected = server.send(uri, request)
    _require_same_digest(uri, expected, hashlib.sha256(data).hexdigest())
    return data, tag


def read_if_changed(uri: str, known_tag: str | None) -> tuple[bytes, str] | None:
    """Return an object's bytes and tag, unless it still has the known tag.

    Returns:
        None: unchanged, or there is no such object.

    Raises:
        IntegrityError: The bytes are not those that were written.
        StorageError: Unreachable or refused.
    """
    bucket, key = split_uri(uri)
    try:
        return _read(uri, bucket, key, **({"IfNoneMatch": known_tag} if known_tag else {}))
    except StorageError as e:
        if e.facts.get("code") not in (*ABSENT, *_UNCHANGED):
            raise
        return None


def upload(path: Path, uri: str) -> None:
    """Write a file to an object, in parts if it is large; the object is replaced whole or not at all.

    Raises:
        StorageError: Unreachable or refused, or the file cannot be read.
    """
    if path.suffix == ".jsonl" or path.stat().st_size <= server.PART:
        write_object(uri, read_bytes(path))  # read once: it may grow, and bytes and digest belong together
        return
    bucket, key = split_uri(uri)
    extra = {"Metadata": {_DIGEST: sha256_file(path)}}

    def request() -> None:
        with guarded(path, "read"):
            opened = path.open("rb")
        with opened as file:
            server.client().upload_fileobj(file, bucket, key, ExtraArgs=extra, Config=server.parts())

    server.send(uri, request)


def write_object(uri: str, data: bytes) -> None:
    """Do what `upload` does, from memory.

    Raises:
        StorageError: Unreachable or refused.
    """
    bucket, key = split_uri(uri)
    digest = hashlib.sha256(data).hexdigest()

    def request() -> None:
        extra = {"Metadata": {_DIGEST: digest}}
        server.client().upload_fileobj(io.BytesIO(data), bucket, key, ExtraArgs=extra, Config=server.parts())

    server.send(uri, request)


def write_at_once(uri: str, data: bytes) -> bool:
    """Write an object without retries, for copies that are not needed; returns whether it arrived."""
    bucket, key = split_uri(uri)
    metadata = {_DIGEST: hashlib.sha256(data).hexdigest()}
    try:
        server.client().put_object(Bucket=bucket, Key=key, Body=data, Metadata=metadata)
    except StorageError:
        return False
    except refusals.library_errors():
        return False
    return True


def fetch(uri: str, path: Path) -> bool:
    """Copy an object to a file, in parts if it is large; the file is replaced whole or not at all.

    Returns:
        False: There is no such object; the file is left as it is.

    Raises:
        IntegrityError: The bytes that arrived are not those that were written.
        StorageError: Unreachable or refused, or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    with guarded(path, "write"):
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        expected = _download(uri, temporary)
        if expected not in (None, sha256_file(temporary)):
            expected = _download(uri, temporary)  # it may have been replaced between two of its parts
        _require_same_digest(uri, expected, sha256_file(temporary))
        with guarded(path, "write"):
            os.replace(temporary, path)
    except StorageError as e:
        if e.facts.get("code") not in ABSENT:
            raise
        return False
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _download(uri: str, target: Path) -> str | None:
    """Write an object's bytes to a file; returns the digest that was written with it, if any."""
    bucket, key = split_uri(uri)

    def request() -> str | None:
        response = server.client().get_object(Bucket=bucket, Key=key)
        with _open_part(target) as file, closing(response["Body"]) as body:
            if response["ContentLength"] <= server.PART:
                file.write(body.read())
            else:
                server.client().download_fileobj(bucket, key, file, Config=server.parts())
        digest: str | None = response.get("Metadata", {}).get(_DIGEST)
        return digest

    return server.send(uri, request)


class _Part(io.BufferedWriter):
    """A file that boto3 writes; without it a full disk would be reported as an error of the network."""

    def write(self, data: Any) -> int:
        with guarded(self.name, "write"):
            return super().write(data)

    def close(self) -> None:
        with guarded(self.name, "write"):
            super().close()


def _open_part(path: Path) -> _Part:
    with guarded(path, "write"):
        return _Part(io.FileIO(path, "wb"))


def _require_same_digest(uri: str, expected: str | None, actual: str) -> None:
    if expected is not None and actual != expected:
        raise IntegrityError(
            f"{uri}: SHA-256 {actual[:12]}... where {expected[:12]}... was written; restore or delete it"
        )
