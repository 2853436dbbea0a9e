"""The server behind s3:// addresses: one client, patience with it, its refusals in our words. Every process.

The usual AWS variables lead to it; AWS_ENDPOINT_URL names a server that is not AWS's. boto3 is imported here and in
`refusals`, on first use.

Failures are handled on two levels. botocore repeats a request five times, exponentially with jitter. If a server
has answered this process before, a failing request is repeated (PATIENCE), because a run of hours must survive an
outage of a minute; otherwise the failure is reported at once, because the address is probably wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar

from graceful import patience, redact
from graceful.errors import GracefulError, StorageError
from graceful.patience import Patience
from graceful.storage import aws_environment, refusals

ATTEMPTS = 5
"""Tries of one request, by botocore."""
FIRST_ATTEMPTS = 3
"""Tries until the server has answered once: a wrong address must be reported within seconds."""
PATIENCE = Patience(tries=math.inf, seconds=180.0, first=0.5)
"""Limits of waiting for a server that answered before and then fails; random pauses keep a hundred workers apart."""
MEBIBYTE = 2**20
PART = 16 * MEBIBYTE
"""Larger files travel in parts of this size, several at a time; a part that fails is sent again alone."""
T = TypeVar("T")


def client() -> Any:
    """Return the client of this process, of a session of its own; safe to share between threads.

    Raises:
        StorageError: A variable of the environment that leads to the server is wrong; it is named.
    """
    return _client(patient=_answered)


@lru_cache(maxsize=2)
def _client(*, patient: bool) -> Any:
    """Return a client; `patient`: with long timeouts, for a server that has answered before."""
    import boto3
    from botocore.config import Config

    aws_environment.check()
    own_server = aws_environment.endpoint() is not None
    session = boto3.Session(region_name=aws_environment.region())
    _load_credentials(session)
    return session.client(
        "s3",
        config=Config(
            retries={"mode": "standard", "total_max_attempts": ATTEMPTS if patient else FIRST_ATTEMPTS},
            connect_timeout=5,
            read_timeout=60 if patient else 20,
            max_pool_connections=16,
            s3={"addressing_style": "path" if own_server else "auto"},
        ),
    )


def _load_credentials(session: Any) -> None:
    """Ask for credentials where what is wrong with their source can be said; without any, the first request fails."""
    try:
        credentials = session.get_credentials()
        if credentials is not None:
            credentials.get_frozen_credentials()
    except (OSError, ValueError) as e:  # what a file, a program or a server gives in place of credentials
        reason = redact.message(" ".join(str(e).split()))
        raise StorageError(f"no credentials for the bucket ({reason}); check the AWS_ variables and ~/.aws") from e


@lru_cache(maxsize=1)
def parts() -> Any:
    """Return how large files are split into parts."""
    from boto3.s3.transfer import TransferConfig

    return TransferConfig(multipart_threshold=PART, multipart_chunksize=PART, max_concurrency=8)


def reset() -> None:
    """Forget the client, after variables that configure it have changed."""
    global _answered  # noqa: PLW0603  a fact about this process
    _client.cache_clear()
    _answered = False


_answered = False


class _FailedError(Exception):
    """A request failed; has the error to raise, and whether it may be temporary."""

    def __init__(self, error: GracefulError, *, passing: bool) -> None:
        super().__init__(error.message)
        self.error, self.passing = error, passing


def send(uri: str, request: Callable[[], T]) -> T:
    """Send a request; repeat it while a server that has answered before is unreachable.

    Raises:
        StorageError: With the server's code as the fact `code`, if it has one.
    """
    waits = False

    def attempt() -> T:
        global _answered  # noqa: PLW0603  a fact about this process
        try:
            result = request()
        except refusals.library_errors() as e:
            error, passing = refusals.storage_error(uri, e)
            _answered = _answered or not passing
            raise _FailedError(error, passing=passing) from e
        _answered = True
        return result

    def may_pass(failed: _FailedError) -> bool:
        nonlocal waits
        if failed.passing and _answered and not waits:
            waits = True
            patience.report_waiting(f"{failed.error.message}; waiting up to {PATIENCE.seconds:.0f} s")
        return failed.passing and _answered

    try:
        result = PATIENCE.repeat(attempt, failure=_FailedError, may_pass=may_pass)
    except _FailedError as e:
        raise e.error from e.__cause__
    if waits:
        patience.report_waiting("")
    return result
