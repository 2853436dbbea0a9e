"""Redaction: what is hidden, what is left alone, and that its time grows linearly with the text."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graceful import redact
from graceful.errors import SpecError

FRAGMENTS = (
    "_token", "token", "-", "_", " ", "=", ":", "://", "@", "/", "a", "password", "ey", "ey.", ".", "-----BEGIN ", "'",
    "PRIVATE KEY", '"', "?", "&", "webhook=", "https://hooks.", "bearer ", "ghp_", "\n", "Z" * 40, "--secret ",
    "\\", ",", "a1", "basic ", "http", "%3D", "authorization",
)  # fmt: skip
SECRET = "mark3r-Secret"


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(FRAGMENTS), min_size=1, max_size=4), st.lists(st.sampled_from(FRAGMENTS), max_size=3))
def test_time_is_linear(repeated: list[str], last: list[str]) -> None:
    pattern = "".join(repeated)
    text = pattern * (100_000 // len(pattern)) + "".join(last)
    for hide in (redact.shown, redact.message, redact.record):
        began = time.process_time()
        hide(text)
        assert time.process_time() - began < 1.0, pattern


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(FRAGMENTS), max_size=12))
def test_what_is_redacted_stays_as_it_is(pieces: list[str]) -> None:
    once = redact.shown("".join(pieces))
    assert redact.shown(once) == once


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://bob:p/ss@host/x", "http://***@host/x"),
        ("http://bob:p#s?s@w@host:80/x", "http://***@host:80/x"),
        ("no answer from 'postgresql://bob:p/w@db/x', try", "no answer from 'postgresql://***@db/x', try"),
        ("https://tok3n@host", "https://***@host"),
        ("s3://bucket/photos@2x/a.jpg", "s3://bucket/photos@2x/a.jpg"),
        ("http://127.0.0.1:5000/#/models/glyphs", "http://127.0.0.1:5000/#/models/glyphs"),
        ("glyphs@champion and glyphs:3", "glyphs@champion and glyphs:3"),
        ("https://hooks.slack.com/services/T0/B0/abc", "https://hooks.slack.com/***"),
        ("POST https://discord.com/api/webhooks/1/abc failed", "POST https://discord.com/*** failed"),
        ("postgresql://db/x?user=bob&password=pw&sslmode=on", "postgresql://db/x?user=bob&password=***&sslmode=on"),
        ("--set registry.webhook=https://h.io/a,b&c", "--set registry.webhook=https://h.io/***"),
        ('{"webhook": "https://h.io/a b"}', '{"webhook": "https://h.io/***"}'),
        ('{"a":"http://h/x","b":"http://bob:secretpw@host/"}', '{"a":"http://h/x","b":"http://***@host/"}'),
        ("http://h/x,http://bob:secretpw@host", "http://h/x,http://***@host"),
        ("http://h:80/x,http://u:p@h1,http://u:p,q@h2/", "http://h:80/x,http://***@h1,http://***@h2/"),
        ("<http://h/x><https://bob:p@host>", "<http://h/x><https://***@host>"),
        ("http://proxy/x?to=http://bob:p/w@host/y", "http://proxy/x?to=http://***@host/y"),
        ("http://h/x,https://hooks.slack.com/services/T0/B0/abc", "http://h/x,https://hooks.slack.com/***"),
        ("curl -H 'authorization: Basic Ym9iOnNlY3JldHB3' h", "curl -H 'authorization: ***' h"),
        ("proxy said basic Ym9iOnB3", "proxy said basic ***"),
        ("the basic configuration", "the basic configuration"),
        ("{'x-api-key': 'abcd1234'}", "{'x-api-key': '***'}"),
        ('password="a\\"rest" next', 'password="***" next'),
        ("password: 'it''s' # next", "password: '***' # next"),
        ('"{\\"password\\": \\"a\\\\\\"rest\\", \\"x\\": 1}"', '"{\\"password\\": \\"***\\", \\"x\\": 1}"'),
        ("postgresql://db/x?user=u&pw=p1&pass=p2&pwd=p3", "postgresql://db/x?user=u&pw=***&pass=***&pwd=***"),
        ("mssql+pyodbc:///?odbc_connect=UID%3Du%3BPWD%3Dhunter2x", "mssql+pyodbc:///?odbc_connect=***"),
        ("mysql://h/x?init=SET%20password%3Dhunter2x&a=b", "mysql://h/x?init=***&a=b"),
        ("password: two words, and more", "password: ***"),
        ("tokenizer: bert-base", "tokenizer: bert-base"),
        ("max_tokens=512", "max_tokens=512"),
        ("pad_token=[PAD]", "pad_token=[PAD]"),
    ],
)
def test_addresses_and_assignments(text: str, shown: str) -> None:
    assert redact.shown(text) == shown


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("the server refused x-api-key: abcd1234, try another", "the server refused x-api-key: ***, try another"),
        ("Authorization: Basic Ym9iOnNlY3JldHB3", "Authorization: Basic ***"),
        ("sent Authorization: Token abcd1234, refused", "sent Authorization: ***, refused"),
        ("authorization: denied by the server", "authorization: denied by the server"),
    ],
)
def test_headers_in_a_sentence_are_hidden(line: str, shown: str) -> None:
    assert redact.message(line) == shown


def test_an_address_of_a_webhook_hides_no_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redact, "_known", set())
    redact.remember("https://ci.example.com/notify/wine-red?model=glyphs-v2&key=a8Fk29dLq0Zx7Rw3")
    redact.remember("https://ci.example.com/glyphs-v1")
    line = "wine-red v2: passed; see http://mlflow:5000/runs/wine-red-v2, glyphs-v1 and glyphs-v2"
    assert redact.message(line) == line
    assert redact.message("POST /notify/wine-red?model=glyphs-v2&key=a8Fk29dLq0Zx7Rw3 500") == "POST *** 500"
    assert redact.message("its part a8Fk29dLq0Zx7Rw3") == "its part ***"


def test_secret_parameters_of_an_address_are_hidden_where_drivers_repeat_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redact, "_known", set())
    redact.remember_password("postgresql://bob:p%40ssw0rd@h/x?sslpassword=open%20sesame&sslmode=on")
    assert redact.message("p@ssw0rd or 'open sesame' is wrong") == "*** or '***' is wrong"


@pytest.mark.parametrize(
    "line",
    [
        "mlflow.token_secret: must be the name of a Secret",
        "token file /x: cannot be read (Permission denied); renew the kubeconfig",
        "set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to a file with it",
        "no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    ],
)
def test_sentences_about_secrets_are_left_alone(line: str) -> None:
    assert redact.message(line) == SpecError(line).message == line


@pytest.mark.parametrize(
    "document",
    [
        {"password": 123456},
        {"options": {"db_password": SECRET}},
        {"AWS_SECRET_ACCESS_KEY": f"/{SECRET}"},
        {"registry": {"webhook": f"https://host.example/{SECRET}"}},
        {"env": [{"name": "GRACEFUL_WEBHOOK", "value": f"https://host.example/?k={SECRET}"}]},
    ],
)
def test_values_are_hidden_by_their_name(document: dict[str, Any]) -> None:
    assert SECRET not in str(redact.hidden(document))
    assert "123456" not in str(redact.hidden(document))
    assert len(list(redact.secrets(document))) == 1
    assert list(redact.secrets(redact.hidden(document))) == []


def test_errors_hide_addresses_and_what_the_environment_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", f"{SECRET}-1\n")
    monkeypatch.setenv("GRACEFUL_WEBHOOK", f"https://host.example/{SECRET}-2")
    message = SpecError(f"b'{SECRET}-1' at http://bob:{SECRET}/@host, https://host.example/{SECRET}-2").message
    assert message == "b'***' at http://***@host, https://host.example/***"


def test_the_working_directory_is_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PWD", "/home/somebody/project")
    line = "/home/somebody/project/jobs/v1.yaml: no such spec file"
    assert redact.message(line) == line


def test_a_password_that_is_a_word_is_not_looked_for_in_sentences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "graceful")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "refresh-1")
    assert SpecError("run `graceful refresh-1` again").message == "run `graceful refresh-1` again"
