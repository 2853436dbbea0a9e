"""How a program ended, from its exit code and the end of its log. Pure functions. Runs on the client.

exit code     outcome line    phase, exit code
0             none, or 0      SUCCEEDED 0
0             3               SUCCEEDED 3 (held by the gate)
3             any             SUCCEEDED 3
130           any             STOPPED 5
1, 2, 4, 5    any             FAILED, the same
a signal      any             FAILED 4
any other     any             FAILED 5
"""

from __future__ import annotations

import signal
from dataclasses import dataclass

from graceful.errors import EXIT_CODES, EXIT_HELD, EXIT_INFRASTRUCTURE, EXIT_INTERRUPTED, EXIT_TRAINING
from graceful.launch.backend import Phase
from graceful.launch.outcome import from_message, last

TAIL = 20_000
"""Characters at the end of a log among which last words are sought."""


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How a job ended."""

    phase: Phase
    cause: str
    exit_code: int


STOPPED = Ending(phase=Phase.STOPPED, cause="stopped; resume goes on from the last checkpoint", exit_code=EXIT_TRAINING)


def read(code: int, log: str) -> Ending:
    """Return how a program ended.

    Args:
        code: Its exit code; negative: the signal that ended it.
        log: What it wrote, or the end of that.
    """
    tail = log[-TAIL:]
    outcome = last(tail.splitlines())
    if code == EXIT_HELD or (code == 0 and outcome is not None and outcome.exit_code == EXIT_HELD):
        return Ending(
            phase=Phase.SUCCEEDED, cause=(outcome and outcome.message) or "held by the gate", exit_code=EXIT_HELD
        )
    if code == 0:
        return Ending(phase=Phase.SUCCEEDED, cause=outcome.message if outcome else "", exit_code=0)
    if code == EXIT_INTERRUPTED:
        return STOPPED
    if code < 0:
        hint = "; out of memory is the usual reason" if -code == signal.SIGKILL else ""
        cause = f"ended by {_signal(-code)}{hint}; resume goes on from the last checkpoint"
        return Ending(phase=Phase.FAILED, cause=cause, exit_code=EXIT_INFRASTRUCTURE)
    failure = from_message(f"command failed with exit code {code}\n{tail}")
    message = (failure.message if failure else "") or f"the program ended with exit code {code}; its log may say why"
    return Ending(phase=Phase.FAILED, cause=message, exit_code=code if code in EXIT_CODES else EXIT_TRAINING)


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
