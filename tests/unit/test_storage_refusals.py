"""What botocore, boto3 and s3transfer can raise is one line that names the bucket; only what may pass is waited for."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import re
import string
from collections.abc import Iterator
from typing import Any

import boto3
import botocore
import pytest
import s3transfer
from botocore import exceptions as core

from graceful.errors import StorageError
from graceful.storage import refusals

URI = "s3://bucket/prefix"
INTERNAL = {
    "_RetriesExceededError": "caught where it is raised, in botocore.utils",
    "RequestExceededException": "s3transfer's own, caught by its bandwidth limiter",
    "NoResourcesAvailable": "s3transfer's own, caught by its semaphores",
    "QueueShutdownError": "of s3transfer's first interface, which nobody uses",
    "StubResponseError": "of botocore's stubs for tests",
    "UnStubbedResponseError": "of botocore's stubs for tests",
    "StubAssertionError": "of botocore's stubs for tests",
}


def classes() -> Iterator[type[Exception]]:
    """Every exception that is defined in a module of the three packages."""
    seen = set()
    for package in (botocore, boto3, s3transfer):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if any(part in module.name for part in (".vendored", ".crt", ".data", ".examples", ".docs", ".tests")):
                continue
            for name, found in vars(importlib.import_module(module.name)).items():
                mine = inspect.isclass(found) and issubclass(found, Exception) and not issubclass(found, Warning)
                if mine and found.__module__.split(".")[0] == package.__name__ and name not in INTERNAL:
                    seen.add(found)
    yield from sorted(seen, key=lambda found: found.__qualname__)


def made(kind: type[Exception]) -> Exception:
    """One of a class, with the facts that its text has places for."""
    if issubclass(kind, core.ClientError):
        return kind({"Error": {"Code": "Odd"}, "ResponseMetadata": {"HTTPStatusCode": 400}}, "GetObject")
    parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]
    named = [one.name for one in parameters if one.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    if hasattr(kind, "fmt"):
        named += [name.split("[")[0].split(".")[0] for _, name, _, _ in string.Formatter().parse(kind.fmt) if name]
    accepts_any = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters)
    facts: dict[str, Any] = {
        name: 7 if name in ("expected", "calculated") else "thing"
        for name in named
        if accepts_any or name in inspect.signature(kind.__init__).parameters
    }
    return kind(**{**facts, **({"error": OSError("thing")} if "error" in facts else {})}) if facts else kind()


@pytest.mark.parametrize("kind", list(classes()), ids=lambda kind: kind.__name__)
def test_every_error_of_the_libraries_is_one_line(kind: type[Exception]) -> None:
    error = made(kind)
    assert isinstance(error, refusals.library_errors())
    ours, _ = refusals.storage_error(URI, error)
    assert isinstance(ours, StorageError)
    assert ours.message.startswith(f"{URI}: ")
    assert "; " in ours.message, "it says what to do"
    assert "\n" not in ours.message


def refused(code: str, status: int, operation: str = "GetObject", **said: str) -> core.ClientError:
    return core.ClientError(
        {"Error": {"Code": code, **said}, "ResponseMetadata": {"HTTPStatusCode": status}}, operation
    )


SERVER = [
    (refused("AccessDenied", 403, "ListObjectsV2"), r"access denied \(ListObjectsV2\)", False),
    (refused("AccessDenied", 403, "PutObject"), r"access denied \(PutObject\)", False),
    (refused("ExpiredToken", 400), "the login has expired", False),
    (refused("RequestTimeTooSkewed", 403), "the clocks of this machine and of the server differ", False),
    (refused("AuthorizationHeaderMalformed", 400, Region="eu-west-1"), "set AWS_REGION=eu-west-1", False),
    (refused("PermanentRedirect", 301), "another region; set AWS_REGION", False),
    (refused("404", 404, "HeadObject"), "no such object", False),
    (refused("404", 404, "GetObject"), "no S3 server", True),
    (refused("NoSuchKey", 404, "ListObjectsV2"), "no S3 server", False),
    (refused("SlowDown", 503), "try again later", True),
    (refused("RequestTimeout", 400), "try again later", True),
    (refused("NotImplemented", 501), "the server refused", False),
    (refused("XMinioStorageFull", 507), "disk is full", False),
]


@pytest.mark.parametrize(("error", "text", "passing"), SERVER, ids=lambda part: str(part)[:60])
def test_what_a_server_refuses_says_what_to_do_and_only_what_may_pass_is_waited_for(
    error: core.ClientError, text: str, passing: bool
) -> None:
    ours, may_pass = refusals.storage_error(URI, error)
    assert re.search(text, ours.message)
    assert may_pass is passing


def test_a_header_that_cannot_be_sent_is_never_repeated() -> None:
    cause = ValueError("Invalid header value b'AWS4-HMAC-SHA256 Credential=AKIAEXAMPLE\\n/20260101'")
    ours, passing = refusals.storage_error(URI, core.HTTPClientError(error=cause))
    assert "AKIA" not in ours.message
    assert "AWS_ variables" in ours.message
    assert not passing


def test_what_is_wrong_with_an_address_or_a_setting_is_not_waited_for() -> None:
    for error in (
        core.ParamValidationError(report="Invalid bucket name"),
        core.NoCredentialsError(),
        core.ProfileNotFound(profile="gone"),
        core.InvalidRegionError(region_name="a b"),
        json.JSONDecodeError("Expecting value", "secret", 0),
        FileNotFoundError(2, "No such file or directory", "/token"),
    ):
        ours, passing = refusals.storage_error(URI, error)
        assert not passing, ours.message
        assert "secret" not in ours.message
