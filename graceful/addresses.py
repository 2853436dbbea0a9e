"""Addresses of buckets, s3://bucket/prefix, and of servers: recognised and checked here alone. Every process uses it.

What people write differs in the scheme's letters (`S3://`, and `s3a://` and `s3n://` of Hadoop); graceful keeps s3://.
Nothing else of an address that works is changed, so that the digest of the spec in which it stands stays what it was.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from graceful import databases

SCHEME = "s3://"
SHAPE = "must look like s3://bucket/prefix"
LONGEST = 1024
"""Bytes of a key, by S3's rules."""
_REMOTE = re.compile(r"\s*s3[an]?:", re.IGNORECASE)
_BEGIN = re.compile(r"s3[an]?://", re.IGNORECASE)
_BUCKET = re.compile(r"[A-Za-z0-9._-]{1,255}")
_OTHER = re.compile(r"\s*([A-Za-z][A-Za-z0-9+.-]*)://")


def is_remote(text: str) -> bool:
    """Return whether a text is meant as the address of a bucket, well written or not."""
    return _REMOTE.match(text) is not None


def has_other_scheme(text: str) -> bool:
    """Return whether a text is an address, but not of a bucket: gs://bucket, file:///folder."""
    return not is_remote(text) and _OTHER.match(text) is not None


def split(text: str) -> tuple[str, str]:
    """Return bucket and key of an address; a key is any text, as a listing may name it.

    Raises:
        ValueError: Another scheme, or nothing that a bucket can be called; the message does not repeat the address.
    """
    begin = _BEGIN.match(text)
    if begin is None:
        rest = re.sub(r"^\s*s3[an]?:/*", "", text, flags=re.IGNORECASE)
        raise ValueError(f"{SHAPE} (write {SCHEME}{rest})" if is_remote(text) and rest.strip("/") else SHAPE)
    bucket, _, key = text[begin.end() :].partition("/")
    if not bucket:
        raise ValueError(f"{SHAPE} (the bucket is missing)")
    if "@" in bucket:
        raise ValueError(f"{SHAPE} (credentials belong in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)")
    if ":" in bucket:
        raise ValueError(f"{SHAPE} (the server belongs in AWS_ENDPOINT_URL)")
    if not _BUCKET.fullmatch(bucket):
        raise ValueError(f"{SHAPE} (a bucket's name has at most 255 letters, digits, dots, hyphens and underscores)")
    return bucket, key


def normalised(text: str) -> str:
    """Return an address that a person wrote, with the scheme s3:// and without space around it.

    Raises:
        ValueError: Its prefix is none that can be meant: empty parts, . and .., characters that cannot be printed, or
            more than 1,024 bytes.
    """
    bucket, key = split(text.strip())
    parts = key.rstrip("/").split("/") if key.strip("/") else []
    if "" in parts:
        prefix = "/".join(part for part in parts if part)
        raise ValueError(f"{SHAPE} (write {SCHEME}{bucket}/{prefix} with single slashes)")
    if {".", ".."} & set(parts):
        raise ValueError(f"{SHAPE} (keys of a bucket know neither . nor ..; write the whole prefix)")
    if not key.isprintable():
        raise ValueError(f"{SHAPE} (the prefix holds a character that cannot be printed)")
    if len(key.encode()) > LONGEST:
        raise ValueError(f"{SHAPE} (the prefix has {len(key.encode())} bytes, at most {LONGEST} are possible)")
    return SCHEME + _BEGIN.sub("", text.strip(), count=1)


def in_document(text: str) -> str:
    """Return as `normalised`; the message says what was got, as those of a spec's and a profile's keys do.

    Raises:
        ValueError: As of `normalised`.
    """
    try:
        return normalised(text)
    except ValueError as e:
        raise ValueError(f"{e}, got {text}") from e


def server_problem(text: str, *, schemes: tuple[str, ...] = ("http", "https")) -> str | None:
    """Return what is wrong with the address of a server, without repeating it; None if it can be asked.

    Args:
        text: As a person wrote it.
        schemes: Those whose address has a host; others are only required to be readable.
    """
    shape = f"must be an address such as {schemes[0]}://host:port"
    if not text.isprintable() or any(character.isspace() for character in text):
        return f"{shape}, it holds white space or control characters"
    try:
        parts = urlsplit(text)
        host = parts.hostname or ""
        readable = parts.port != 0
        host.encode("idna")
    except ValueError:  # also UnicodeError, of idna
        return f"{shape}, its host or port cannot be read"
    if not readable or (parts.scheme in schemes and not host):
        return f"{shape}, its host or port is missing"
    return None


def server(text: str) -> str:
    """Return the address of a web server itself, for keys of a document.

    Raises:
        ValueError: It is none; the message does not repeat it, it may hold a password.
    """
    wrong = server_problem(text)
    if wrong is None and not text.lower().startswith(("http://", "https://")):
        wrong = "must be an address such as http://host:port"
    if wrong is not None:
        raise ValueError(wrong)
    return text


def registry_problem(text: str) -> str | None:
    """Return what is wrong with the address of a registry, without repeating it; None if it can be asked.

    Args:
        text: Of a server, or of a database, whose password and file name may hold nearly everything.
    """
    scheme, separator, _ = text.partition("://")
    is_database = separator and scheme.lower() not in ("http", "https")
    return databases.problem(text) if is_database else server_problem(text)


def registry(text: str) -> str:
    """Return the address of a registry itself: of a server, or of a database.

    Raises:
        ValueError: It cannot be read; the message does not repeat it.
    """
    wrong = registry_problem(text)
    if wrong is not None:
        raise ValueError(wrong)
    return text
