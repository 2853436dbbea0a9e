"""Tell a web address of verdicts and promotions: at least once, signed, and never at the expense of a refresh. Driver.

A message is a file in an outbox before it is sent and until the receiver has said 2xx; what a crash or a dead receiver
left there is sent with the next message. Its id is the same each time, so that a receiver can tell repetitions.

    POST, Content-Type application/json
    X-Graceful-Delivery   the id
    X-Graceful-Signature  sha256=HEX, HMAC of the body with $GRACEFUL_WEBHOOK_SECRET, where that is set
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import urllib3

from graceful.errors import SpecError, StorageError
from graceful.storage import read_bytes, sha256_json, write_bytes

ADDRESS, SECRET = "GRACEFUL_WEBHOOK", "GRACEFUL_WEBHOOK_SECRET"
TRIES = 4
SECONDS = 10.0
"""For one answer."""
FIRST_PAUSE = 0.5
KEPT = 1000
"""Messages in an outbox; beyond, the oldest are given up."""
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Webhook:
    """Where to tell, and how patiently.

    Attributes:
        url: http or https; may hold a secret, so it is never shown whole.
        outbox: Folder of what was not delivered yet.
        secret: Key of the signature; empty: unsigned.
        say: Takes one line where something was not delivered.
        sleep: Waits.
        jitter: A number in [0, 1).
    """

    url: str
    outbox: Path
    say: Say
    secret: str = field(default="", repr=False)
    tries: int = TRIES
    seconds: float = SECONDS
    sleep: Callable[[float], None] = time.sleep
    jitter: Callable[[], float] = random.random

    @property
    def shown(self) -> str:
        """Scheme and host: paths of webhooks are often secret."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}"

    def post(self, *documents: Mapping[str, Any]) -> None:
        """Put messages into the outbox, then send all that is there. Nothing is raised: what fails is said."""
        for document in documents:
            key = sha256_json(identity(document))[:32]
            data = json.dumps({"id": key, **document}, indent=1, sort_keys=True).encode()
            try:
                write_bytes(self.outbox / f"{key}.json", data)
            except StorageError as e:
                self.say(f"webhook {self.shown}: {e.message}")
                self._deliver(key, data)
        self.flush()

    def flush(self) -> None:
        """Send what is in the outbox, oldest first; the first that cannot be delivered ends it."""
        waiting = sorted(self.outbox.glob("*.json"), key=lambda path: (path.stat().st_mtime_ns, path.name))
        for path in waiting[:-KEPT]:
            path.unlink(missing_ok=True)
        for path in waiting[-KEPT:]:
            try:
                data = read_bytes(path)
            except StorageError as e:
                if path.exists():  # else another process was faster
                    self.say(f"webhook {self.shown}: {e.message}")
                continue
            if not self._deliver(path.stem, data):
                return
            path.unlink(missing_ok=True)

    def _deliver(self, key: str, data: bytes) -> bool:
        reason = ""
        for attempt in range(self.tries):
            if attempt:
                self.sleep(FIRST_PAUSE * 2 ** (attempt - 1) * (0.5 + self.jitter()))
            status, reason = self._send(key, data)
            if 200 <= status < 300:
                return True
            if 400 <= status < 500 and status not in (408, 425, 429):
                break  # the same request gets the same answer; the message stays for a receiver that was corrected
        self.say(f"webhook {self.shown}: not delivered ({reason}); it is sent again with the next one ({self.outbox})")
        return False

    def _send(self, key: str, data: bytes) -> tuple[int, str]:
        headers = {"Content-Type": "application/json", "User-Agent": "graceful", "X-Graceful-Delivery": key}
        if self.secret:
            headers["X-Graceful-Signature"] = signature(self.secret, data)
        try:
            with urllib3.PoolManager(retries=False, timeout=self.seconds) as pool:
                answer = pool.request("POST", self.url, body=data, headers=headers, redirect=False)
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as e:
            return 0, type(e).__name__  # its text may hold the address
        return answer.status, f"answers {answer.status}"


def signature(secret: str, data: bytes) -> str:
    """What a receiver compares with the header, in constant time."""
    return "sha256=" + hmac.new(secret.encode(), data, hashlib.sha256).hexdigest()


def identity(document: Mapping[str, Any]) -> list[Any]:
    """What makes two messages the same."""
    return [document.get(key) for key in ("kind", "model", "model_id", "event")]


def webhook(url: str | None, outbox: Path, say: Say) -> Webhook | None:
    """The receiver that a spec or the environment names; None: nobody is told.

    Raises:
        SpecError: Not an address of the web.
    """
    chosen = url or os.environ.get(ADDRESS)
    if not chosen:
        return None
    if urlsplit(chosen).scheme not in ("http", "https") or not urlsplit(chosen).hostname:
        raise SpecError(f"{ADDRESS}: must be http(s)://HOST/PATH; what it holds is not shown, it may be secret")
    return Webhook(url=chosen, outbox=outbox, say=say, secret=os.environ.get(SECRET, ""))
