"""Where indices of tests lie: a folder, and a bucket on a real S3 server."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator

import pytest

from graceful.storage.server import client
from tests.support.s3_server import serving


@pytest.fixture(scope="module", params=["folder", pytest.param("bucket", marks=pytest.mark.integration)])
def new_place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], str]]:
    """Return a function that gives the address of an index that does not exist yet."""
    if request.param == "folder":
        yield lambda: str(tmp_path_factory.mktemp("place") / "index")
        return
    with serving():
        bucket = f"graceful-{uuid.uuid4().hex[:8]}"
        client().create_bucket(Bucket=bucket)
        yield lambda: f"s3://{bucket}/{uuid.uuid4().hex[:8]}/index"
