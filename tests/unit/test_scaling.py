"""The arithmetic of docs/scaling.md is what its script prints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import scaling

PAGE = Path(__file__).parents[2] / "docs" / "scaling.md"


def test_the_page_has_the_rows_of_the_script() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for row in scaling.rows(scaling.Inputs()):
        assert f"| {row.what} | {row.formula} | {row.text} |" in text


@pytest.mark.parametrize(("what", "factor"), [("samples a second that", 0.5), ("an epoch, bound by arithmetic", 2.0)])
def test_half_the_gpus_take_twice_as_long(what: str, factor: float) -> None:
    def value(given: scaling.Inputs) -> float:
        return next(row.value for row in scaling.rows(given) if row.what.startswith(what))

    assert value(replace(scaling.Inputs(), gpus=128)) == pytest.approx(factor * value(scaling.Inputs()))
