"""One policy of retries: how often, how long, after which pauses."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from graceful import patience
from graceful.errors import InfrastructureError
from graceful.patience import Patience


def failing(times: int) -> Callable[[], int]:
    calls = itertools.count(1)

    def ask() -> int:
        call = next(calls)
        if call <= times:
            raise InfrastructureError(f"failure {call}")
        return call

    return ask


@pytest.mark.parametrize(
    ("limits", "passing", "pauses", "last"),
    [
        ({}, True, [0.2, 0.4, 0.8], "call 4"),
        ({"growth": 1.5, "longest": 0.4}, True, [0.2, 0.3, 0.4], "call 4"),
        ({"tries": 2}, True, [0.2], "failure 2"),
        ({"seconds": 1.5}, True, [0.2], "failure 2"),
        ({}, False, [], "failure 1"),
    ],
)
def test_what_fails_is_repeated_within_limits(
    limits: dict[str, float], passing: bool, pauses: list[float], last: str
) -> None:
    slept: list[float] = []
    policy = Patience(**limits, sleep=slept.append, random=lambda: 1.0, now=itertools.count().__next__)  # type: ignore[arg-type]
    try:
        outcome = f"call {policy.repeat(failing(3), failure=InfrastructureError, may_pass=lambda _: passing)}"
    except InfrastructureError as e:
        outcome = e.message
    assert outcome == last
    assert slept == pytest.approx(pauses)


def test_only_one_module_draws_the_length_of_a_pause() -> None:
    package = Path(patience.__file__).parent
    texts = {path.name: path.read_text(encoding="utf-8") for path in package.rglob("*.py")}
    drawing = [name for name, text in texts.items() if re.search(r"^import random$", text, re.MULTILINE)]
    assert drawing == ["patience.py"]
