"""The file system through which Ray writes checkpoints to a bucket. Driver, controller and workers.

Address and credentials come from the usual AWS variables of each process and are never sent between them.
"""

from __future__ import annotations

from typing import Any

from pyarrow import fs

from graceful.storage import aws_environment

ATTEMPTS = 12
"""Tries of one request, with pauses that double up to 20 seconds: an outage of a minute costs no worker."""


class PatientS3(fs.S3FileSystem):  # type: ignore[misc]
    """pyarrow's, which forgets its retries when it is pickled: only the driver would have patience."""

    @classmethod
    def open(cls) -> PatientS3:
        """As the environment of this process says; pyarrow alone would look at credentials only."""
        aws_environment.check()
        endpoint, region = aws_environment.endpoint(), aws_environment.region()
        address = {"endpoint_override": endpoint.rstrip("/")} if endpoint else {}
        return cls(region=region, retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS), **address)

    def __reduce__(self) -> tuple[Any, ...]:
        return PatientS3.open, ()
