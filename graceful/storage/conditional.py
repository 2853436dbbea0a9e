"""Objects that are written only if there is none of their key, and a look whether there is one. Drivers use it.

The server decides by `If-None-Match: *` (S3 since 2024, versitygw, MinIO, Ceph). A server that does not know the
condition overwrites; `graceful.index.places` finds that out before it relies on it.
"""

from __future__ import annotations

import hashlib
import uuid
from typing import Any

from graceful.errors import StorageError
from graceful.storage import server
from graceful.storage.objects import ABSENT, StoredObject, split_uri

_EXISTS = frozenset({"412", "PreconditionFailed"})
_WRITER = "writer"


def create_object(uri: str, data: bytes) -> bool:
    """Write an object unless there is one of its key; returns whether this call has written it.

    An answer can be lost after the object was written, and the request that is then sent again is refused because of
    the object itself. So each call marks its object, and a refusal is followed by a look whose mark is there.

    Raises:
        StorageError: Unreachable or refused.
    """
    bucket, key = split_uri(uri)
    mark = uuid.uuid4().hex
    metadata = {"sha256": hashlib.sha256(data).hexdigest(), _WRITER: mark}

    def request() -> None:
        server.client().put_object(Bucket=bucket, Key=key, Body=data, Metadata=metadata, IfNoneMatch="*")

    try:
        server.send(uri, request)
    except StorageError as e:
        if e.facts.get("code") not in _EXISTS:
            raise
        found = _head(uri)
        return found is not None and found.get("Metadata", {}).get(_WRITER) == mark
    return True


def look_up(uri: str) -> StoredObject | None:
    """Return one object as the server describes it; None: there is none.

    Raises:
        StorageError: Unreachable or refused.
    """
    found = _head(uri)
    if found is None:
        return None
    bucket, key = split_uri(uri)
    etag = found["ETag"].strip('"')
    return StoredObject(bucket=bucket, key=key, size=found["ContentLength"], etag=etag, modified=found["LastModified"])


def _head(uri: str) -> dict[str, Any] | None:
    bucket, key = split_uri(uri)

    def request() -> dict[str, Any]:
        answer: dict[str, Any] = server.client().head_object(Bucket=bucket, Key=key)
        return answer

    try:
        return server.send(uri, request)
    except StorageError as e:
        if e.facts.get("code") not in ABSENT:
            raise
        return None
