"""Variables of the environment that lead to a bucket, checked before a library reads them. Every process.

Values come from files and Secrets, where a line break at the end is usual: it is stripped in the environment itself,
because pyarrow, MLflow and child processes read it, too. No message repeats a credential.
"""

from __future__ import annotations

import os
import re
from urllib.parse import urlsplit

from graceful import environment
from graceful.errors import StorageError

ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
_HOST = re.compile(
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)*[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.?"
)


def check() -> None:
    """Strip the AWS variables and check that they can be sent.

    Raises:
        StorageError: One holds a line break or another character that no header may hold.
    """
    environment.clean()
    for name, value in os.environ.items():
        if name.startswith("AWS_") and not value.isprintable():
            raise StorageError(f"{name}: holds a line break or another character that cannot be sent; write it again")


def endpoint() -> str | None:
    """Return the address of a server that is not AWS's; None: AWS.

    Raises:
        StorageError: The variable that names it holds no address of a server.
    """
    for name in ENDPOINTS:
        value = os.environ.get(name, "").strip()
        if value:
            problem = _problem(value)
            if problem:
                raise StorageError(f"{name}{problem}; write an address such as http://minio:9000")
            return value
    return None


def region() -> str | None:
    """Return the region, by the variables of the AWS command line and of other AWS libraries; None: the profile's."""
    return os.environ.get("AWS_REGION", "").strip() or os.environ.get("AWS_DEFAULT_REGION", "").strip() or None


def _problem(value: str) -> str:
    """Return what is wrong with a server's address, to be appended to the variable's name; empty: nothing."""
    if "@" in value:
        return ": holds credentials, which belong in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    try:
        parts = urlsplit(value)
        host, port = parts.hostname, parts.port
    except ValueError as e:
        return f"={value}: is not an address ({e})"
    if parts.scheme not in ("http", "https") or not host:
        return f"={value}: must begin with http:// or https:// and name a host"
    if ":" not in host and not _HOST.fullmatch(host):
        return f"={value}: the name of a host has letters, digits, inner hyphens and dots"
    if parts.query or parts.fragment or port == 0:
        return f"={value}: must end with the port or the path"
    return ""
