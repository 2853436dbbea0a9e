"""Lines of `graceful doctor`: those of a backend, and checks of services that it may use. Runs on the client."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from graceful import redact

State = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of the result.

    Attributes:
        name: What was looked at.
        state: ok; warn: works, with a drawback, or could not be looked at; fail: a refresh cannot work.
        found: What is there.
        remedy: What to do, empty if ok.
    """

    name: str
    state: State
    found: str
    remedy: str = ""


def ok(name: str, finding: str) -> Check:
    """Return a check that passed."""
    return Check(name=name, state="ok", found=redact.message(finding))


def warn(name: str, finding: str, remedy: str) -> Check:
    """Return a check of what works with a drawback, or could not be examined."""
    return Check(name=name, state="warn", found=redact.message(finding), remedy=remedy)


def fail(name: str, finding: str, remedy: str) -> Check:
    """Return a check without which a refresh cannot work."""
    return Check(name=name, state="fail", found=redact.message(finding), remedy=remedy)


def is_loopback(host: str) -> bool:
    """Return whether a host name or address means this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Services(Protocol):
    """Checks of services that jobs of a backend use."""

    def bucket(self, uri: str) -> Check:
        """Write, read and delete an object."""
        ...

    def mlflow(self, uri: str | None) -> Sequence[Check]:
        """Ask a tracking server: reachable, new enough, closed to strangers; None: there is none."""
        ...
