"""How a program on a cluster ended: one line in its log, or an exit code that Ray repeats. Driver and client.

Kubernetes has no place for a result of ours, and a pod of ours may not write to its API. The submitter's log outlives
the cluster, so the driver's last line there is the outcome; without it, Ray's message names the exit code.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass

MARK = "graceful-outcome: "
WAITS = "graceful-waits: "
"""Beginning of a line that says what a running program waits for; with nothing behind it, it goes on."""
SKIPPED = "skipped: "
"""Beginning of the message of a refresh that found nothing new to learn; its exit code is 0."""
_EXIT_CODE = re.compile(r"command failed with exit code (\d+)")
_ERROR_LINE = re.compile(r"^graceful: (.+)$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a program ended.

    Attributes:
        exit_code: Its own.
        message: One line for people; empty if there is nothing to say.
        error: Class of the error that ended it; empty if none did.
        retryable: Whether the same command may do better, because something outside the run failed; nothing it has
            finished is done again.
    """

    exit_code: int
    message: str = ""
    error: str = ""
    retryable: bool = False

    def line(self) -> str:
        """Return the line that `last` finds again."""
        return MARK + json.dumps(asdict(self), ensure_ascii=False)


def last(lines: Iterable[str]) -> Outcome | None:
    """Return the newest outcome in a log; lines that merely look like one are passed over."""
    outcome = None
    for line in lines:
        _, separator, text = line.partition(MARK)
        if separator:
            outcome = _parsed(text) or outcome
    return outcome


def waiting_reason(lines: Iterable[str]) -> str:
    """Return what a program waits for according to its log; empty if it waits for nothing."""
    reason = ""
    for line in lines:
        _, separator, text = line.partition(WAITS.strip())
        if separator:
            reason = text.strip()
    return reason


def from_message(message: str) -> Outcome | None:
    """Return what Ray's message about a failed entrypoint says: the exit code, and our error line if it quotes it."""
    code = _EXIT_CODE.search(message)
    if code is None:
        return None
    quotes = _ERROR_LINE.findall(message)
    return Outcome(exit_code=int(code[1]), message=quotes[-1].strip() if quotes else "")


def _parsed(text: str) -> Outcome | None:
    try:
        document = json.loads(text)
        return Outcome(
            exit_code=int(document["exit_code"]),
            message=str(document.get("message", "")),
            error=str(document.get("error", "")),
            retryable=bool(document.get("retryable", False)),
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
