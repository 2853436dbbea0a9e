"""Which failures of the registry are outages, and how long they are waited for."""

from __future__ import annotations

import dataclasses

import pytest

from graceful import patience
from graceful.lineage import outages


@pytest.mark.parametrize(
    ("text", "passes"),
    [
        (
            "HTTPConnectionPool(host='m', port=5000): Max retries exceeded (Connection refused)",
            True,
        ),
        ("API request failed with exception ('Connection aborted.', RemoteDisconnected('Remote end closed'))", True),
        ("API request failed ... (Caused by ResponseError('too many 503 error responses'))", True),
        ("API request to endpoint /api failed with error code 502 != 200", True),
        ("API request to endpoint /api failed with error code 403 != 200", False),
        ("RESOURCE_DOES_NOT_EXIST: Registered Model with name=glyphs not found", False),
        ("Max retries exceeded with url: / (Caused by SSLError(CertificateError('no match')))", False),
        ("(psycopg2.OperationalError) server closed the connection unexpectedly", True),
        ('connection to server at "db" failed: FATAL:  the database system is starting up', True),
        ('connection to server at "db" failed: FATAL:  password authentication failed for user "u"', False),
        ("(pymysql.err.OperationalError) (2003, \"Can't connect to MySQL server on 'db'\")", True),
        ("BAD_REQUEST: statement on table 'runs' expected to update 1 row(s); 0 were matched", False),
    ],
)
def test_outages_are_told_from_refusals(text: str, passes: bool) -> None:
    assert outages.may_pass(RuntimeError(text)) is passes


def test_an_outage_is_waited_for_said_once_and_its_end_too(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    said: list[str] = []
    clock = iter(range(0, 1000, 20))
    limits = dataclasses.replace(outages.PATIENCE, sleep=pauses.append, now=lambda: float(next(clock)))
    monkeypatch.setattr(outages, "PATIENCE", limits)
    monkeypatch.setattr(patience, "report_waiting", said.append)
    answers = iter([OSError("Connection refused"), OSError("Connection refused"), "there"])

    def call() -> str:
        answer = next(answers)
        if isinstance(answer, OSError):
            raise answer
        return answer

    assert outages.ridden_out(call, failures=(OSError,), display="http://m") == "there"
    assert said == ["registry http://m does not answer; waiting up to 180 s", ""]
    assert len(pauses) == 2

    def never() -> str:
        raise OSError("Connection refused")

    with pytest.raises(OSError, match="refused"):
        outages.ridden_out(never, failures=(OSError,), display="http://m")
    assert 8 <= len(pauses) <= 14, "180 s by a clock that goes on by 20 s at each look"
