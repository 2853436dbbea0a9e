"""The server behind s3:// addresses: one client, patience with it, its refusals in our words. Every process.

The usual AWS variables lead to it; AWS_ENDPOINT_URL names a server that is not AWS's. boto3 is imported here alone, on
first use.

Trouble is met on two levels. botocore repeats a request five times, exponentially with jitter. A server that has
answered this process before and then fails is waited for up to PATIENCE seconds, because a run of hours must survive an
outage of a minute; one that never answered is reported at once, because its address is wrong.
"""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar

from graceful.errors import StorageError

ATTEMPTS = 5
"""Of one request, by botocore."""
PATIENCE = 180.0
"""Seconds for which a server that answered before may fail."""
LONGEST_PAUSE = 10.0
"""Seconds between two tries while waiting for it."""
MEBIBYTE = 2**20
PART = 16 * MEBIBYTE
"""Larger files travel in parts of this size, several at a time; a part that fails is sent again alone."""
_REMEDIES = {
    "NoSuchBucket": "no such bucket; check the name and AWS_ENDPOINT_URL",
    "NoSuchKey": "no such object; check the key",
    "404": "no such object; check the key",
    "AccessDenied": "access denied; check the credentials and the bucket's policy",
    "403": "access denied; check the credentials and the bucket's policy",
    "InvalidAccessKeyId": "unknown access key; check AWS_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": "wrong secret key; check AWS_SECRET_ACCESS_KEY",
}
T = TypeVar("T")


@lru_cache(maxsize=1)
def client() -> Any:
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


@lru_cache(maxsize=1)
def parts() -> Any:
    """How large files are cut for the way."""
    from boto3.s3.transfer import TransferConfig

    return TransferConfig(multipart_threshold=PART, multipart_chunksize=PART, max_concurrency=8)


def reset() -> None:
    """Forget client and server, after the variables that name them have changed."""
    global _answered  # noqa: PLW0603  a fact about this process
    client.cache_clear()
    _answered = False


_answered = False
waiting: Callable[[str], None] = logging.getLogger(__name__).info
"""Told why this process waits for the server, and with "" when it answers again; a program may put its own here."""


def asked(uri: str, ask: Callable[[], T]) -> T:
    """Send a request, again while a server that has answered before is away.

    Raises:
        StorageError: With the server's code as the fact `code`, if it has one.
    """
    global _answered  # noqa: PLW0603  a fact about this process
    until, pause, waits = time.monotonic() + PATIENCE, 0.5, False
    while True:
        try:
            found = ask()
        except Exception as e:
            error, passing = _explained(uri, e)
            if error is None:
                raise
            _answered = _answered or not passing
            if not passing or not _answered or time.monotonic() > until:
                raise error from e
            if not waits:
                waits = True
                waiting(f"{error.message}; waiting up to {PATIENCE:.0f} s")
            time.sleep(random.uniform(pause / 2, pause))  # a hundred workers must not come back at once
            pause = min(2 * pause, LONGEST_PAUSE)
        else:
            _answered = True
            if waits:
                waiting("")
            return found


def _explained(uri: str, error: Exception) -> tuple[StorageError | None, bool]:
    """Our error for one of the library's, and whether it may pass; None: it is not about the server."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError
    from s3transfer import exceptions as transfers

    if isinstance(error, ClientError):
        code = str(error.response.get("Error", {}).get("Code", "unknown"))
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500))
        passing = status >= 500 or status == 429
        remedy = "try again later" if passing else "check the address and the credentials"
        text = _REMEDIES.get(code, f"the server refused ({code}); {remedy}")
        return StorageError(f"{uri}: {text}", {"uri": uri, "code": code}), passing
    if isinstance(error, NoCredentialsError):
        return StorageError(f"{uri}: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"), False
    lost = (transfers.RetriesExceededError, transfers.S3DownloadFailedError, transfers.S3ValidationError)
    if isinstance(error, (BotoCoreError, Boto3Error, *lost)):
        reason = " ".join(str(error).split())
        return StorageError(f"{uri}: not reachable ({reason}); check AWS_ENDPOINT_URL and AWS_REGION"), True
    return None, False
