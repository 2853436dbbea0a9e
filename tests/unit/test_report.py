"""A report is read back from JSON unchanged, and other documents are refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from graceful.errors import DataError
from graceful.report import Report
from tests.unit.conftest import small_report


def test_a_report_survives_json() -> None:
    assert Report.from_json(small_report().to_json()) == small_report()


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("measurements", "error_rate", "value"), "0.06", "error_rate.value must be a finite number, got '0.06'"),
        (("measurements", "error_rate", "lower"), True, "error_rate.lower must be a finite number, got True"),
        (("measurements", "error_rate", "upper"), float("inf"), "is infinite"),
        (("measurements", "error_rate", "n"), None, "error_rate.n must be a whole number, got None"),
        (("measurements", "error_rate", "count"), 1.5, "error_rate.count must be a whole number"),
        (("measurements", "error_rate"), 0.06, "not a report of graceful"),
        (("measurements",), [], "not a report of graceful"),
        (("version",), None, "version must be a name, got None"),
        (("comparisons",), [5], "not a report of graceful"),
        (("schema",), 2, "this graceful reads 1"),
        (("extra",), 1, "unexpected keyword argument 'extra'"),
    ],
)
def test_what_the_gate_cannot_judge_is_refused_in_one_line(path: tuple[str, ...], value: Any, said: str) -> None:
    raw: dict[str, Any] = json.loads(small_report().to_json())
    inner = raw
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(DataError) as raised:
        Report.from_json(json.dumps(raw), where="report.json")
    assert said in raised.value.message
    assert raised.value.message.startswith("report.json: ")
    assert "\n" not in raised.value.message


@pytest.mark.parametrize(
    "text", ["", "[]", "5", "{}", "[" * 100_000, "1e999", small_report().to_json().replace("0.06", "1e999")]
)
def test_other_files_are_no_reports(text: str) -> None:
    with pytest.raises(DataError, match=r"^report\.json: "):
        Report.from_json(text, where="report.json")
