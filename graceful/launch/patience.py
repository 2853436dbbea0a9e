"""How long to wait before asking again: doubling, jittered, bounded, with a clock that tests replace. Client."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from graceful.errors import GracefulError


@dataclass(frozen=True, kw_only=True)
class Patience:
    """Pauses between tries.

    Attributes:
        tries: Of one request that may be repeated.
        first: Seconds before the second try; doubled each time.
        longest: Seconds; no pause of ours is longer. A server's Retry-After may be, up to `LONGEST_ASKED`.
        now: Monotonic seconds.
        sleep: Waits for seconds.
        random: Uniform in [0, 1): a pause is between half and all of its length, so that clients do not march in step.
    """

    tries: int = 5
    first: float = 0.2
    longest: float = 10.0
    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    random: Callable[[], float] = random.random

    def pause(self, failures: int, error: GracefulError | None = None) -> float:
        """Wait after so many failures in a row (1 for the first); returns the seconds waited.

        Args:
            failures: At least 1.
            error: Its `facts["retry_after"]`, if any, is waited at least.
        """
        seconds = min(self.longest, self.first * 2.0 ** min(failures - 1, 30)) * (0.5 + 0.5 * self.random())
        asked = error.facts.get("retry_after") if error is not None else None
        if isinstance(asked, int | float):
            seconds = max(seconds, min(float(asked), LONGEST_ASKED))
        self.sleep(seconds)
        return seconds


LONGEST_ASKED = 60.0
"""Seconds; a server that asks for more is asked again all the same."""
