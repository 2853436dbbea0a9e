"""What the exit code and the last words of a program mean, where we see the exit code itself. Pure. Runs on the client.

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

from graceful.launch.backend import Phase
from graceful.launch.outcome import HELD, KNOWN_CODES, from_message, last

INTERRUPTED = 130
INFRASTRUCTURE = 4
TRAINING_ENDED = 5
TAIL = 20_000
"""Characters at the end of a log among which last words are sought."""


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How a job ended."""

    phase: Phase
    cause: str
    exit_code: int


STOPPED = Ending(
    phase=Phase.STOPPED, cause="stopped; resume goes on from the last checkpoint", exit_code=TRAINING_ENDED
)


def read(code: int, log: str) -> Ending:
    """How a program ended.

    Args:
        code: Its exit code; negative: the signal that ended it.
        log: What it wrote, or the end of that.
    """
    tail = log[-TAIL:]
    outcome = last(tail.splitlines())
    if code == HELD or (code == 0 and outcome is not None and outcome.exit_code == HELD):
        return Ending(phase=Phase.SUCCEEDED, cause=(outcome and outcome.message) or "held by the gate", exit_code=HELD)
    if code == 0:
        return Ending(phase=Phase.SUCCEEDED, cause=outcome.message if outcome else "", exit_code=0)
    if code == INTERRUPTED:
        return STOPPED
    if code < 0:
        hint = "; out of memory is the usual reason" if -code == signal.SIGKILL else ""
        cause = f"ended by {_signal(-code)}{hint}; resume goes on from the last checkpoint"
        return Ending(phase=Phase.FAILED, cause=cause, exit_code=INFRASTRUCTURE)
    failure = from_message(f"command failed with exit code {code}\n{tail}")
    message = (failure.message if failure else "") or f"the program ended with exit code {code}; its log may say why"
    return Ending(phase=Phase.FAILED, cause=message, exit_code=code if code in KNOWN_CODES else TRAINING_ENDED)


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
