"""Errors of a Kubernetes API server, classified by what the caller can do about them. Runs on the client.

ApiError            exit 4   anything below; raised itself for 5xx that outlast the retries
|-- NotFoundError        exit 4   404: create it, or look elsewhere
|-- ConflictError        exit 4   409: another writer has it, or was faster: read again, then decide
|-- ForbiddenError       exit 4   401, 403: names verb, resource, identity, and the role to grant
|-- InvalidObjectError   exit 2   400, 422: the object is wrong: edit it
|-- GoneError            exit 4   410: the watch is too old: list again
|-- ThrottledError       exit 4   429: wait `facts["retry_after"]` seconds
'-- UnreachableError     exit 4   no answer: name, network, certificate
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from graceful.errors import EXIT_USAGE, InfrastructureError
from graceful.patience import Patience

LONGEST = 400
"""Characters of a server's own words that are shown."""


class ApiError(InfrastructureError):
    """The API server answered with an error that is none of the kinds below."""


class NotFoundError(ApiError):
    """The object, or its kind, does not exist there."""


class ConflictError(ApiError):
    """It exists already, has changed since it was read, or another manager owns the field."""


class ForbiddenError(ApiError):
    """The identity lacks a permission, or is not known at all."""


class InvalidObjectError(ApiError):
    """The server refused the object as written; editing it is the remedy."""

    exit_code = EXIT_USAGE


class GoneError(ApiError):
    """The resource version is no longer kept: list again."""


class ThrottledError(ApiError):
    """Too many requests; `facts["retry_after"]` holds the seconds the server asks for, if it does."""


class UnreachableError(ApiError):
    """The server did not answer."""


PASSING = (429, 500, 502, 503, 504)
"""HTTP statuses of servers that may do better later."""
LONGEST_ROW = 60
"""Failures in a row before giving up: with pauses of 10 s about ten minutes."""


def may_pass(error: ApiError) -> bool:
    """Return whether the same request may do better later."""
    return isinstance(error, ThrottledError | UnreachableError) or error.facts.get("code") in PASSING


def tolerate(error: ApiError, failures: int, *, patience: Patience, warn: Callable[[ApiError], None]) -> int:
    """Pause after a failure of something that goes on for long, and return how many there are in a row now.

    Args:
        error: The failure; raised again where it does not pass, or where `LONGEST_ROW` preceded it.
        failures: How many preceded it in a row.
        patience: Pauses.
        warn: Called with the failure.
    """
    if not may_pass(error) or failures >= LONGEST_ROW:
        raise error
    warn(error)
    patience.pause(failures + 1, error)
    return failures + 1


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request, for messages.

    Attributes:
        verb: get, list, watch, create, patch, delete.
        resource: Plural, with its group: `rayjobs.ray.io`.
        name: The name of the object; empty for a collection.
        namespace: Empty for cluster-wide kinds.
        identity: Who asked, as far as the client knows.
    """

    verb: str
    resource: str
    name: str = ""
    namespace: str = ""
    identity: str = ""

    def __str__(self) -> str:
        where = f" in namespace {self.namespace}" if self.namespace else ""
        return f"{self.verb} {self.resource}{f' {self.name}' if self.name else ''}{where}"


def refused(request: Request, code: int, body: bytes | str, headers: Mapping[str, str] | None = None) -> ApiError:
    """Return the error that an HTTP answer stands for; one line, the server's own words shortened.

    Args:
        request: What was asked.
        code: HTTP status, 400 or more (or the code of a watch's ERROR event).
        body: A `Status` object as JSON, or whatever a proxy wrote.
        headers: For Retry-After.
    """
    message, facts = _server_message(body), {"code": code, "request": str(request)}
    if code in (401, 403):
        return ForbiddenError(_forbidden(request, code, message), facts)
    if code == 429:
        return ThrottledError(
            f"{request}: the API server is busy ({message}); try again", facts | _retry_after(headers or {})
        )
    if code == 500 and "failed to create typed patch" in message:  # a server-side apply with an unknown or wrong field
        code = 422
    kind, remedy = KINDS.get(code, (ApiError, "the API server's log says more; try again"))
    return kind(f"{request}: {message or f'HTTP {code}'}; {remedy}", facts)


KINDS: dict[int, tuple[type[ApiError], str]] = {
    400: (InvalidObjectError, "correct the object"),
    404: (NotFoundError, "check name, namespace and context (`graceful list`), or install what defines the kind"),
    409: (ConflictError, "read it again and decide"),
    410: (GoneError, "list again"),
    422: (InvalidObjectError, "correct the object"),
}


def unreachable(request: Request, server: str, error: Exception) -> UnreachableError:
    """Return the error for a request without an answer: from where and why, in one line."""
    reason = getattr(error, "reason", None) or error
    text = " ".join(str(reason).split())[:LONGEST]
    return UnreachableError(
        f"{request}: no answer from {server} ({text}); check the network, the context and its certificate",
        {"server": server, "request": str(request)},
    )


def _forbidden(request: Request, code: int, message: str) -> str:
    identity = request.identity or "this identity"
    if code == 401:
        return f"{request}: {identity} is not known to the API server (401); log in again or choose another context"
    group = request.resource.partition(".")[2]
    rule = f'apiGroups: ["{group}"], resources: ["{request.resource.partition(".")[0]}"], verbs: ["{request.verb}"]'
    return f"{request}: forbidden for {identity} ({message}); grant a Role with {rule}"


def _server_message(body: bytes | str) -> str:
    text = body.decode("utf-8", errors="replace") if isinstance(body, bytes) else body
    try:
        document: Any = json.loads(text)
    except ValueError:
        document = None
    if isinstance(document, dict) and isinstance(document.get("message"), str):
        text = document["message"]
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"


def _retry_after(headers: Mapping[str, str]) -> dict[str, object]:
    seconds = headers.get("Retry-After", "")
    return {"retry_after": float(seconds)} if seconds.isascii() and seconds.isdecimal() else {}
