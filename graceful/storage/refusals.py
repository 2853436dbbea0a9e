"""Turn what boto3 and its libraries raise into one line, and say whether it may be temporary. Every process.

No line repeats a header, a variable's value or a proxy's address: credentials stand in them.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from graceful import redact
from graceful.errors import StorageError

PASSING_CODES = frozenset(
    {
        "ConditionalRequestConflict",
        "InternalError",
        "RequestTimeout",
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
    }
)
LASTING_STATUS = frozenset({501, 505, 507})
"""Server errors that waiting does not cure: not implemented, disk full, version not supported."""
_ADDRESS = "check AWS_ENDPOINT_URL and AWS_REGION"
_UNREACHABLE = "not reachable ({reason}); check AWS_ENDPOINT_URL and AWS_REGION"
_LOGIN = "the login has expired; log in again, or give it a new AWS_SESSION_TOKEN"
_DENIED = "check the credentials and the bucket's policy"
_CLOCK = "the clocks of this machine and of the server differ; set this machine's clock"
NO_S3 = f"what answers there is no S3 server, or its path is missing; {_ADDRESS}"
_REMEDIES = {
    "NoSuchBucket": "no such bucket; check the name and AWS_ENDPOINT_URL",
    "NoSuchKey": "no such object; check the key",
    "404": "no such object; check the key",
    "InvalidAccessKeyId": "unknown access key; check AWS_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": "wrong secret key; check AWS_SECRET_ACCESS_KEY",
    "ExpiredToken": _LOGIN,
    "ExpiredTokenException": _LOGIN,
    "TokenRefreshRequired": _LOGIN,
    "InvalidToken": "the server does not know AWS_SESSION_TOKEN; unset it, or give it a new one",
    "RequestTimeTooSkewed": _CLOCK,
    "RequestExpired": _CLOCK,
    "PreconditionFailed": "it was overwritten while it was read; run the same command again",
    "InvalidBucketName": "no bucket can have this name; check it",
    "KeyTooLongError": "the key is too long; shorten the prefix",
    "QuotaExceeded": "the bucket's quota is used up; free some space",
    "XMinioStorageFull": "the server's disk is full; free some space",
    "InsufficientStorage": "the server's disk is full; free some space",
    "405": NO_S3,
    "MethodNotAllowed": NO_S3,
}
_ELSEWHERE = frozenset(
    {"PermanentRedirect", "301", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}
)


@lru_cache(maxsize=1)
def library_errors() -> tuple[type[Exception], ...]:
    """Return base classes of all errors of botocore, boto3, s3transfer, and of files and programs with credentials."""
    from boto3.exceptions import Boto3Error
    from botocore import eventstream, exceptions, model, parsers, utils
    from s3transfer import exceptions as transfers

    return (
        exceptions.BotoCoreError,
        exceptions.ClientError,
        exceptions.UndefinedModelAttributeError,
        parsers.ResponseParserError,
        eventstream.ParserError,
        utils.BadIMDSRequestError,
        utils.InvalidArnException,
        model.InvalidShapeError,
        model.InvalidShapeReferenceError,
        model.NoShapeFoundError,
        model.OperationNotFoundError,
        Boto3Error,
        transfers.CancelledError,
        transfers.InvalidSubscriberMethodError,
        transfers.RetriesExceededError,
        transfers.S3CopyFailedError,
        transfers.S3DownloadFailedError,
        transfers.S3UploadFailedError,
        transfers.S3ValidationError,
        transfers.TransferNotDoneError,
        OSError,
        json.JSONDecodeError,
    )


def storage_error(uri: str, error: Exception) -> tuple[StorageError, bool]:
    """Return a StorageError for one of `library_errors`, with the server's code as a fact, and whether it may pass."""
    from botocore.exceptions import ClientError

    if isinstance(error, ClientError):
        return _refusal(uri, error)
    text, passing = _explanation(error)
    return StorageError(f"{uri}: {text}", {"uri": uri}), passing


def _refusal(uri: str, error: Any) -> tuple[StorageError, bool]:
    """Return the error for an error response of the server, and whether it may pass."""
    details = error.response.get("Error", {})
    code = str(details.get("Code", "unknown"))
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500))
    passing = code in PASSING_CODES or status == 429 or (status >= 500 and status not in LASTING_STATUS)
    head = error.operation_name.startswith("Head")  # answered without a body, hence with the status for a code
    if code in _ELSEWHERE:
        region = details.get("Region") or error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get(
            "x-amz-bucket-region"
        )
        text = f"the bucket lies in another region; set AWS_REGION{f'={region}' if region else ''}"
    elif code in ("AccessDenied", "403", "AllAccessDisabled"):
        text = f"access denied ({error.operation_name}); {_DENIED}"
    elif (code == "404" and not head) or (code == "NoSuchKey" and error.operation_name.startswith("List")):
        text, passing, code = NO_S3, code == "404", "NoS3Server"  # 404 without a code may be an answer that was cut
    else:
        remedy = "try again later" if passing else "check the address and the credentials"
        text = _REMEDIES.get(code, f"the server refused ({code}); {remedy}")
    return StorageError(f"{uri}: {text}", {"uri": uri, "code": code}), passing


def _explanation(error: Exception) -> tuple[str, bool]:
    """Return the message of an error without the address, and whether the error may pass."""
    reason = redact.message(" ".join(str(getattr(error, "last_exception", None) or error).split()))
    facts = getattr(error, "kwargs", {})
    for kinds, text, passing in _table():
        if isinstance(error, kinds):
            if text == _UNREACHABLE:
                return _unreachable(facts.get("error"), reason)
            return text.format(reason=reason, profile=facts.get("profile"), path=facts.get("path")), passing
    if isinstance(error, OSError):  # last: many of botocore's are of its kind, too
        return _system_error(error, reason)
    return f"the AWS settings of this machine cannot be used ({reason}); check the AWS_ variables and ~/.aws", False


@lru_cache(maxsize=1)
def _table() -> tuple[tuple[tuple[type[Exception], ...], str, bool], ...]:
    """Return rows of classes, message and whether the error may pass; an error in no row is one of settings."""
    from boto3.exceptions import Boto3Error
    from botocore import exceptions as core
    from botocore import parsers
    from s3transfer import exceptions as transfers

    login = (core.SSOError, core.LoginError, core.TokenRetrievalError, core.NoAuthTokenError)
    broken = (core.IncompleteReadError, core.ChecksumError, core.FlexibleChecksumError, core.AwsChunkedWrapperError)
    retried = (transfers.RetriesExceededError, transfers.S3DownloadFailedError, transfers.S3UploadFailedError)
    torn = (*broken, *retried, transfers.S3ValidationError, transfers.CancelledError, Boto3Error)
    return (
        ((core.NoCredentialsError,), "no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY", False),
        ((core.PartialCredentialsError,), "half of the credentials ({reason}); set what is missing", False),
        ((core.ProfileNotFound,), "no profile {profile!r}; check AWS_PROFILE and ~/.aws/config", False),
        (
            (core.ConfigParseError, core.ConfigNotFound),
            "{path} is not a file of AWS settings; repair it, or unset the variable that names it",
            False,
        ),
        (
            (core.NoRegionError, core.InvalidRegionError),
            "AWS_REGION or AWS_DEFAULT_REGION names no region; write one such as us-east-1",
            False,
        ),
        (login, "the login has expired ({reason}); log in again", False),
        (
            (core.CredentialRetrievalError, core.MetadataRetrievalError),
            "no credentials ({reason}); check AWS_PROFILE and where it has them from",
            True,
        ),
        (
            (core.ProxyConnectionError,),
            "the proxy is not reachable ({reason}); check HTTP_PROXY and HTTPS_PROXY",
            True,
        ),
        ((core.SSLError,), "not reachable ({reason}); check https in AWS_ENDPOINT_URL, and AWS_CA_BUNDLE", True),
        ((core.ConnectionError, core.HTTPClientError), _UNREACHABLE, True),
        ((parsers.ResponseParserError,), NO_S3, True),
        (
            (core.ParamValidationError, core.ValidationError),
            "S3 cannot have such an address ({reason}); check the name of the bucket and the key",
            False,
        ),
        (torn, "the transfer broke off ({reason}); try again later", True),
    )


def _unreachable(cause: object, reason: str) -> tuple[str, bool]:
    """Return the message for a request that was not sent; http.client refuses headers, which hold credentials."""
    if type(cause).__name__ == "LocationParseError":
        return "HTTP_PROXY, HTTPS_PROXY or ALL_PROXY is not an address; write one such as http://proxy:3128", False
    if isinstance(cause, ValueError):
        return (
            "the credentials or the region hold a line break or another character that no header may hold; write the"
            " AWS_ variables and ~/.aws again",
            False,
        )
    return _UNREACHABLE.format(reason=reason), True


def _system_error(error: OSError, reason: str) -> tuple[str, bool]:
    """Return the message for a file or program with credentials that cannot be used, or for a broken socket."""
    if error.filename is None:
        return _UNREACHABLE.format(reason=reason), True
    settings = "AWS_WEB_IDENTITY_TOKEN_FILE, AWS_CA_BUNDLE and credential_process in ~/.aws/config"
    return f"no credentials ({error.filename}: {error.strerror}); check {settings}", False
