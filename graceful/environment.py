"""Credentials and addresses in the environment, as every process reads them: without white space around, checked.

Secrets in files and in Kubernetes often end with a line break. Libraries put such a value into a header of HTTP and
then repeat the whole header in their error.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from urllib.parse import urlsplit

from graceful import redact
from graceful.errors import SpecError

PREFIXES = ("AWS_", "MLFLOW_", "GRACEFUL_", "RAY_AUTH_")


def clean(environment: MutableMapping[str, str] = os.environ) -> None:
    """Strip the values of the variables that graceful and its libraries read."""
    for name, value in list(environment.items()):
        if name.startswith(PREFIXES) and value != value.strip():
            environment[name] = value.strip()


def header_value(text: str, *, what: str) -> str:
    """Return a text that can be sent in a header of HTTP, without white space around.

    Raises:
        SpecError: It holds a line break or another character that is not printable ASCII; it is not repeated.
    """
    text = text.strip()
    if not (text.isascii() and text.isprintable()):
        raise SpecError(
            f"{what}: holds a line break or another character that a header of HTTP may not have; write it anew (its"
            " value is not shown)"
        )
    return text


def require_readable(url: str, *, what: str) -> None:
    """Refuse an address whose host libraries would not find, because their errors repeat parts of its password.

    Args:
        url: With or without user and password.
        what: Whose address, for the message.

    Raises:
        SpecError: Host or port cannot be read, or user and password are not written as an address needs them.
    """
    problem = ""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        problem = "its host or port cannot be read"
    else:
        if redact.holds_password(url) and "@" not in parts.netloc:
            problem = "its user or password holds / ? or #, which an address writes as %2F %3F %23"
    if problem:
        raise SpecError(f"{what} {redact.address(url)}: {problem}; correct it")
    redact.remember_password(url)
