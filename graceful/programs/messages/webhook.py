"""Send messages to a web address: signed, with limits of time and size, and without failing a refresh. Driver.

POST, Content-Type application/json
X-Graceful-Delivery       the id of the message; the same each time it is sent
X-Graceful-Timestamp      when this request was sent, in seconds since 1970
X-Graceful-Signature-V2   sha256=HEX, HMAC of "TIMESTAMP.BODY" with $GRACEFUL_WEBHOOK_SECRET, where that is set
X-Graceful-Signature      sha256=HEX, HMAC of the body alone, for older receivers; it does not stop replays
"""

from __future__ import annotations

import hashlib
import hmac
import os
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import unquote

import urllib3

from graceful import redact
from graceful.environment import WEBHOOK_SECRET_VARIABLE
from graceful.patience import Patience

SECONDS = 10.0
"""Seconds for one answer, from the look-up of the host to the end of its headers; its body is not read."""
PATIENCE = Patience(tries=4, seconds=30.0, first=0.75)
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Webhook:
    """Where to tell, and how patiently.

    Attributes:
        url: http or https; may hold a secret, so it is never shown whole.
        secret: Key of the signature; empty: unsigned.
        say: Takes one line where something was not delivered.
        patience: Requests until a message counts as not delivered.
        seconds: For one answer.
        clock: Seconds since 1970.
    """

    url: str = field(repr=False)
    say: Say
    secret: str = field(default="", repr=False)
    patience: Patience = PATIENCE
    seconds: float = SECONDS
    clock: Callable[[], float] = time.time

    def __post_init__(self) -> None:
        redact.remember(self.url)  # libraries log the paths of requests

    @property
    def shown(self) -> str:
        """Return scheme and host, because paths of webhooks are often secret."""
        return redact.origin(self.url)

    def deliver(self, key: str, data: bytes, *, waits_for: str) -> bool:
        """Return whether the receiver took a message; if not, say so in one line.

        Args:
            key: Id of the message.
            data: JSON.
            waits_for: Where it waits for the next command, in words.
        """
        try:
            self.patience.repeat(lambda: self._deliver(key, data), failure=_NotTakenError, may_pass=_may_pass)
        except _NotTakenError as e:
            self.say(f"webhook {self.shown}: not delivered ({e.reason}); {waits_for}")
            return False
        return True

    def _deliver(self, key: str, data: bytes) -> None:
        status, reason = self._send(key, data)
        if not 200 <= status < 300:
            raise _NotTakenError(status, reason)

    def _send(self, key: str, data: bytes) -> tuple[int, str]:
        """Send in a thread of its own, because no timeout of a socket ends an answer that comes byte by byte."""
        answers: queue.SimpleQueue[tuple[int, str]] = queue.SimpleQueue()
        exchange = threading.Thread(target=self._exchange, args=(key, data, answers), daemon=True, name="webhook")
        exchange.start()
        try:
            return answers.get(timeout=self.seconds)
        except queue.Empty:
            return 0, f"no answer within {self.seconds:g} s"

    def _exchange(self, key: str, data: bytes, answers: queue.SimpleQueue[tuple[int, str]]) -> None:
        patience = self.seconds + 1.0  # the queue's timeout comes first
        try:
            with urllib3.PoolManager(retries=False, timeout=patience, num_pools=1) as pool:
                answer = pool.request(
                    "POST", self.url, body=data, headers=self._headers(key, data), redirect=False, preload_content=False
                )
                answer.close()  # the status says all: a body of any length is left unread
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as e:
            answers.put((0, type(e).__name__))  # its text may hold the address
        else:
            answers.put((answer.status, f"answers {answer.status}"))

    def _headers(self, key: str, data: bytes) -> dict[str, str]:
        moment = str(int(self.clock()))
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "graceful",
            "X-Graceful-Delivery": key,
            "X-Graceful-Timestamp": moment,
        }
        if self.secret:
            headers["X-Graceful-Signature-V2"] = signature(self.secret, moment.encode() + b"." + data)
            headers["X-Graceful-Signature"] = signature(self.secret, data)
        user = urllib3.util.parse_url(self.url).auth
        if user:
            headers["Authorization"] = urllib3.make_headers(basic_auth=unquote(user))["authorization"]
        return headers


class _NotTakenError(Exception):
    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


def _may_pass(error: _NotTakenError) -> bool:
    """Return False where the same request gets the same answer; the message stays for a receiver that was corrected."""
    return not 400 <= error.status < 500 or error.status in (408, 425, 429)


def signature(secret: str, data: bytes) -> str:
    """Return what a receiver compares with the header, in constant time."""
    return "sha256=" + hmac.new(secret.encode(), data, hashlib.sha256).hexdigest()


def secret() -> str:
    """Return the key of signatures, without the line break at the end that secrets in files often have."""
    return os.environ.get(WEBHOOK_SECRET_VARIABLE, "").strip()
