"""Files and objects: atomic writes, digests, the one door to boto3 (loaded on first use). Every process uses it.

Writes go to a temporary file beside the target, are flushed to disk and renamed, so that readers see the old content or
the new and never half of it. `s3://bucket/prefix` is read with the usual AWS variables; AWS_ENDPOINT_URL names another
server. Retries (five attempts, exponential with jitter) are botocore's standard mode.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from graceful.errors import IntegrityError, SpecError, StorageError

ATTEMPTS = 5
_REMEDIES = {
    "NoSuchBucket": "no such bucket; check the name and AWS_ENDPOINT_URL",
    "NoSuchKey": "no such object; check the key",
    "404": "no such object; check the key",
    "AccessDenied": "access denied; check the credentials and the bucket's policy",
    "403": "access denied; check the credentials and the bucket's policy",
    "InvalidAccessKeyId": "unknown access key; check AWS_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": "wrong secret key; check AWS_SECRET_ACCESS_KEY",
}


# --- digests ----------------------------------------------------------------------------------------------------------


def sha256_file(path: str | Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal, read in constant memory.

    Raises:
        StorageError: The file cannot be read.
    """
    with guarded(path, "read"), Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(document: Any) -> str:
    """SHA-256 of a JSON value in canonical form: sorted keys, no spaces, ASCII, no NaN.

    Raises:
        ValueError: NaN or an infinity, which JSON has not.
        TypeError: A value that is not JSON.
    """
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


# --- local files ------------------------------------------------------------------------------------------------------


def write_bytes(path: str | Path, data: bytes) -> Path:
    """Replace a file atomically; missing folders are made.

    Returns:
        The path, for chaining.

    Raises:
        StorageError: Disk full, permission; the old content is untouched.
    """
    target = Path(path)
    with guarded(target, "write"):
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o666 & ~_umask())
            os.replace(name, target)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(name)
            raise
        _flush_folder(target.parent)
    return target


def write_text(path: str | Path, text: str) -> Path:
    """As `write_bytes`, UTF-8."""
    return write_bytes(path, text.encode())


def write_json(path: str | Path, document: Any) -> Path:
    """As `write_bytes`: indented JSON with a final newline, keys in the order given."""
    return write_text(path, json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_bytes(path: str | Path) -> bytes:
    """Read a whole local file.

    Raises:
        StorageError: Missing or unreadable.
    """
    with guarded(path, "read"):
        return Path(path).read_bytes()


@contextmanager
def guarded(path: str | Path, verb: str) -> Iterator[None]:
    """Turn what the operating system refuses into one StorageError line about a path.

    Args:
        path: What is read or written.
        verb: `read`, `write`, or with an object.
    """
    try:
        yield
    except OSError as e:
        full = e.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "free some space" if full else "check the path and its permissions"
        reason = "the disk is full" if full else (e.strerror or str(e))
        raise StorageError(f"{path}: cannot {verb}, {reason}; {remedy}", {"path": str(path)}) from e


@lru_cache(maxsize=1)
def _umask() -> int:
    """The process's mask. It can only be read by setting it, hence once."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _flush_folder(folder: Path) -> None:
    """Make a rename survive a power cut. Some network file systems refuse to flush folders: the rename still holds."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)


# --- objects ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class StoredObject:
    """One object of a bucket as a listing describes it.

    Attributes:
        bucket: Bucket.
        key: Full key.
        size: Bytes.
        etag: The server's content tag, without quotes; changes when the content does.
    """

    bucket: str
    key: str
    size: int
    etag: str

    @property
    def uri(self) -> str:
        """s3://bucket/key"""
        return f"s3://{self.bucket}/{self.key}"


def is_remote(uri: str) -> bool:
    """Whether a path names a bucket."""
    return uri.startswith("s3://")


def split_uri(uri: str) -> tuple[str, str]:
    """s3://bucket/some/prefix -> (bucket, some/prefix).

    Raises:
        SpecError: No bucket, or another scheme.
    """
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not is_remote(uri) or not bucket:
        raise SpecError(f"{uri}: must look like s3://bucket/prefix")
    return bucket, key


def list_objects(uri: str) -> list[StoredObject]:
    """Everything below a prefix, sorted by key; folder markers are left out. The prefix ends at a slash.

    Raises:
        StorageError: Unreachable, refused, or no such bucket.
    """
    bucket, prefix = split_uri(uri)
    prefix = f"{prefix.rstrip('/')}/" if prefix.strip("/") else ""
    found = []
    with _as_object_error(f"s3://{bucket}/{prefix}"):
        for page in _client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            for item in page.get("Contents", ()):
                if not item["Key"].endswith("/"):
                    tag = item["ETag"].strip('"')
                    found.append(StoredObject(bucket=bucket, key=item["Key"], size=item["Size"], etag=tag))
    return sorted(found, key=lambda stored: stored.key)


def read_object(uri: str) -> bytes:
    """One object's bytes; botocore checks the server's checksum where it sends one.

    Raises:
        StorageError: Unreachable, refused, or no such object.
    """
    bucket, key = split_uri(uri)
    with _as_object_error(uri):
        data: bytes = _client().get_object(Bucket=bucket, Key=key)["Body"].read()
    return data


def read_cached(stored: StoredObject, cache: Path) -> bytes:
    """One object's bytes through a local folder; a damaged local copy is fetched again.

    Raises:
        IntegrityError: The server sent another number of bytes than it listed.
        StorageError: Unreachable, refused, vanished, or the disk is full.
    """
    name = sha256_json([stored.uri, stored.etag, stored.size])
    path, record = cache / name[:2] / name, cache / name[:2] / f"{name}.sha256"
    with suppress(FileNotFoundError):
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() == record.read_text(encoding="ascii"):
            return data
    data = read_object(stored.uri)
    if len(data) != stored.size:
        raise IntegrityError(
            f"{stored.uri}: {len(data)} bytes where the listing says {stored.size}; it changed meanwhile, start again"
        )
    write_bytes(path, data)
    write_text(record, hashlib.sha256(data).hexdigest())
    return data


def object_cache() -> Path:
    """Where this machine keeps copies of objects: below $GRACEFUL_HOME, else below .graceful here."""
    return Path(os.environ.get("GRACEFUL_HOME") or ".graceful") / "cache" / "objects"


def download(uri: str, folder: Path) -> list[Path]:
    """Copy everything below a prefix into a folder under its relative name; what is there with its digest stays.

    Returns:
        The local files, in the order of their keys.

    Raises:
        StorageError: As `read_cached`, and keys that point outside the folder.
    """
    prefix = split_uri(uri)[1].rstrip("/")
    paths = []
    for stored in list_objects(uri):
        path = folder / stored.key.removeprefix(f"{prefix}/" if prefix else "")
        if not path.resolve().is_relative_to(folder.resolve()):
            raise StorageError(f"{stored.uri}: the key leaves the folder {folder}; rename the object")
        data = read_cached(stored, folder / ".objects")
        if not path.exists() or hashlib.sha256(data).hexdigest() != sha256_file(path):
            write_bytes(path, data)
        paths.append(path)
    return paths


@lru_cache(maxsize=1)
def _client() -> Any:
    """One client per process, of a session of its own; safe to share between threads."""
    import boto3
    from botocore.config import Config

    own_server = any(os.environ.get(name) for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"))
    return boto3.Session().client(
        "s3",
        config=Config(
            retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
            connect_timeout=5,
            read_timeout=60,
            max_pool_connections=16,
            s3={"addressing_style": "path" if own_server else "auto"},
        ),
    )


@contextmanager
def _as_object_error(uri: str) -> Iterator[None]:
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

    try:
        yield
    except ClientError as e:
        code = str(e.response.get("Error", {}).get("Code", "unknown"))
        ours = e.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500) < 500
        other = f"the server refused ({code}); {'check the address and the credentials' if ours else 'try again later'}"
        raise StorageError(f"{uri}: {_REMEDIES.get(code, other)}", {"uri": uri, "code": code}) from e
    except NoCredentialsError as e:
        raise StorageError(f"{uri}: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY") from e
    except BotoCoreError as e:
        reason = " ".join(str(e).split())
        raise StorageError(f"{uri}: not reachable ({reason}); check AWS_ENDPOINT_URL and AWS_REGION") from e
