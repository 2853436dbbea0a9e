"""Checks of the web addresses that a spec or the environment names. Runs in every process."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

from graceful import redact
from graceful.environment import WEBHOOK_VARIABLE
from graceful.errors import SpecError

FORM = "must be http(s)://HOST/PATH"


def webhook_problem(url: str) -> str | None:
    """Return what is wrong with the address of a webhook, without repeating it; None if it can be posted to."""
    from urllib3.exceptions import LocationParseError
    from urllib3.util import parse_url

    if any(character.isspace() or not character.isprintable() for character in url):
        return f"{FORM}, it holds white space or control characters"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        host.encode("idna")
        parse_url(url)
    except (ValueError, LocationParseError):  # UnicodeError of idna is a ValueError
        return f"{FORM}, its host or port cannot be read"
    if parts.scheme not in ("http", "https") or not host or port == 0:
        return FORM
    if redact.holds_password(url) and "@" not in parts.netloc:
        return f"{FORM}, write / ? # and @ of a user or password as %2F %3F %23 %40"
    return None


def checked_webhook(url: str) -> str:
    """Return the address itself.

    Raises:
        ValueError: It cannot be posted to; the message does not repeat it.
    """
    problem = webhook_problem(url)
    if problem is not None:
        raise ValueError(f"{problem}; what it holds is not shown, it may be secret")
    return url


def webhook_of(environment: Mapping[str, str]) -> str | None:
    """Return the address that the environment names; None where it names none.

    Raises:
        SpecError: It cannot be posted to.
    """
    url = environment.get(WEBHOOK_VARIABLE, "").strip()
    problem = webhook_problem(url) if url else None
    if problem is not None:
        raise SpecError(f"{WEBHOOK_VARIABLE}: {problem}; what it holds is not shown, it may be secret")
    return url or None
