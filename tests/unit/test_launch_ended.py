"""What an exit code and the last words of a program mean."""

from __future__ import annotations

import pytest

from graceful.launch import ended
from graceful.launch.backend import Phase
from graceful.launch.outcome import Outcome

HELD = Outcome(exit_code=3, message="too many flips").line()
PASSED = Outcome(exit_code=0).line()
TABLE = [
    (0, "", Phase.SUCCEEDED, 0, ""),
    (0, PASSED, Phase.SUCCEEDED, 0, ""),
    (0, HELD, Phase.SUCCEEDED, 3, "too many flips"),
    (3, "", Phase.SUCCEEDED, 3, "held by the gate"),
    (130, "", Phase.STOPPED, 5, "stopped; resume goes on from the last checkpoint"),
    (2, "talk\ngraceful: x.csv: no such file\n", Phase.FAILED, 2, "x.csv: no such file"),
    (5, HELD, Phase.FAILED, 5, "the program ended with exit code 5; its log may say why"),
    (7, "", Phase.FAILED, 5, "the program ended with exit code 7; its log may say why"),
    (
        -9,
        "",
        Phase.FAILED,
        4,
        "ended by SIGKILL; out of memory is the usual reason; resume goes on from the last checkpoint",
    ),
    (-15, "", Phase.FAILED, 4, "ended by SIGTERM; resume goes on from the last checkpoint"),
    (-99, "", Phase.FAILED, 4, "ended by signal 99; resume goes on from the last checkpoint"),
]


@pytest.mark.parametrize(("code", "log", "phase", "exit_code", "cause"), TABLE)
def test_the_table(code: int, log: str, phase: Phase, exit_code: int, cause: str) -> None:
    found = ended.read(code, log)
    assert (found.phase, found.exit_code, found.cause) == (phase, exit_code, cause)


def test_only_the_end_of_a_long_log_is_searched() -> None:
    assert ended.read(0, f"{HELD}\n{'x' * ended.TAIL}").exit_code == 0
