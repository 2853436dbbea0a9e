"""How often and after which pauses an action is repeated: doubling, jittered, bounded. Every process.

Clock, sleep and random numbers are fields, so that tests need no time and see every pause.
"""

from __future__ import annotations

import itertools
import logging
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")
E = TypeVar("E", bound=Exception)


@dataclass(frozen=True, kw_only=True)
class Patience:
    """Limits of repetition, and pauses between tries.

    Attributes:
        tries: Most attempts.
        seconds: Time after which no further attempt begins.
        first: Seconds before the second attempt.
        growth: Factor by which each pause is longer than the one before.
        longest: Longest pause in seconds. A server's Retry-After may be, up to `LONGEST_RETRY_AFTER`.
        now: Monotonic seconds.
        sleep: Waits for seconds.
        random: Uniform in [0, 1): a pause is between half and all of its length, so that clients spread.
    """

    tries: float = 5
    seconds: float = math.inf
    first: float = 0.2
    growth: float = 2.0
    longest: float = 10.0
    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    random: Callable[[], float] = random.random

    def repeat(self, action: Callable[[], T], *, failure: type[E], may_pass: Callable[[E], bool]) -> T:
        """Return what an action returns, repeated after failures that may pass, within the limits.

        Args:
            action: The action.
            failure: The kind of error that it ends with where it fails.
            may_pass: Whether the failure may be temporary; not called where the limits forbid another attempt.

        Raises:
            failure: The last one.
        """
        start = self.now()
        for failures in itertools.count(1):
            try:
                return action()
            except failure as e:
                if failures >= self.tries or self.now() - start > self.seconds or not may_pass(e):
                    raise
                self.pause(failures, e)
        raise AssertionError("unreachable: the loop returns or raises")

    def pause(self, failures: int, error: Exception | None = None) -> float:
        """Wait after so many failures in a row (1 for the first); return the seconds waited.

        Args:
            failures: At least 1.
            error: Its `facts["retry_after"]`, if any, is waited at least.
        """
        seconds = min(self.longest, self.first * self.growth ** min(failures - 1, 30)) * (0.5 + 0.5 * self.random())
        retry_after = getattr(error, "facts", {}).get("retry_after")
        if isinstance(retry_after, int | float):
            seconds = max(seconds, min(float(retry_after), LONGEST_RETRY_AFTER))
        self.sleep(seconds)
        return seconds


report_waiting: Callable[[str], None] = logging.getLogger(__name__).info
"""Called with the reason of a wait for a server, and with "" when it answers again; programs replace it."""
ONE_TRY = Patience(tries=1)
LONGEST_RETRY_AFTER = 60.0
"""Longest pause in seconds that a server may ask for."""
