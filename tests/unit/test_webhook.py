"""The webhook against a real receiver on loopback: at least once, signed, and never a reason to fail."""

from __future__ import annotations

import hashlib
import hmac
import json
from pathlib import Path
from typing import Any

import pytest

from graceful.errors import SpecError
from graceful.programs.webhook import ADDRESS, SECRET, Webhook, signature, webhook
from tests.support.webhook_receiver import HANG, Receiver, receiving

VERDICT = {"kind": "verdict", "model": "glyphs", "model_id": "m-1", "event": None, "version": 3}
PROMOTION = {"kind": "promotion", "model": "glyphs", "model_id": "m-1", "event": "r1", "version": 3}


class Said:
    """What was said, and how long was slept."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.slept: list[float] = []

    def hook(self, receiver: Receiver | str, outbox: Path, **changes: Any) -> Webhook:
        url = receiver if isinstance(receiver, str) else receiver.url
        fields = {"sleep": self.slept.append, "jitter": lambda: 0.5, "secret": "key-of-mine", **changes}
        return Webhook(url=url, outbox=outbox, say=self.lines.append, **fields)


@pytest.fixture
def said() -> Said:
    return Said()


def waiting(outbox: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(outbox.glob("*.json"))]


def test_messages_arrive_in_order_signed_and_leave_the_outbox(tmp_path: Path, said: Said) -> None:
    with receiving(200) as receiver:
        said.hook(receiver, tmp_path / "outbox").post(VERDICT, PROMOTION)
    assert [document["kind"] for document in receiver.documents()] == ["verdict", "promotion"]
    for headers, body in receiver.came:
        wanted = hmac.new(b"key-of-mine", body, hashlib.sha256).hexdigest()
        assert headers["X-Graceful-Signature"] == f"sha256={wanted}" == signature("key-of-mine", body)
        assert headers["X-Graceful-Delivery"] == json.loads(body)["id"]
        assert headers["Content-Type"] == "application/json"
    assert waiting(tmp_path / "outbox") == []
    assert said.lines == []


def test_unsigned_without_a_secret(tmp_path: Path, said: Said) -> None:
    with receiving(204) as receiver:
        said.hook(receiver, tmp_path, secret="").post(VERDICT)
    ((headers, _),) = receiver.came
    assert "X-Graceful-Signature" not in headers


def test_errors_of_the_receiver_are_waited_out_with_growing_pauses(tmp_path: Path, said: Said) -> None:
    with receiving(500, 503, 429, 200) as receiver:
        said.hook(receiver, tmp_path).post(VERDICT)
    assert [document["id"] for document in receiver.documents()] == [receiver.documents()[0]["id"]] * 4
    assert said.slept == [0.5, 1.0, 2.0]
    assert (said.lines, waiting(tmp_path)) == ([], [])


@pytest.mark.parametrize(
    ("answers", "reason", "tries"),
    [
        ((500,), "answers 500", 4),
        ((404,), "answers 404", 1),
        ((302,), "answers 302", 4),
        ((HANG,), "ReadTimeoutError", 4),
    ],
)
def test_what_cannot_be_delivered_is_said_kept_and_sent_with_the_next(
    tmp_path: Path, said: Said, answers: tuple[int, ...], reason: str, tries: int
) -> None:
    with receiving(*answers) as receiver:
        said.hook(receiver, tmp_path, seconds=0.2).post(VERDICT)
        assert len(receiver.came) == tries
    (line,) = said.lines
    assert reason in line
    assert "secret" not in line
    assert "key-of-mine" not in line
    assert [document["kind"] for document in waiting(tmp_path)] == ["verdict"]
    with receiving(200) as receiver:
        said.hook(receiver, tmp_path).post(PROMOTION)
    assert [document["kind"] for document in receiver.documents()] == ["verdict", "promotion"]
    assert waiting(tmp_path) == []


def test_nobody_listens(tmp_path: Path, said: Said) -> None:
    with receiving(200) as receiver:
        url = receiver.url
    said.hook(url, tmp_path).post(VERDICT)
    assert len(said.lines) == 1
    assert "secret" not in said.lines[0]
    assert len(waiting(tmp_path)) == 1


def test_crash_between_writing_and_sending_loses_nothing(tmp_path: Path, said: Said) -> None:
    def die(_: float) -> None:
        raise KeyboardInterrupt

    with receiving(500, 200) as receiver:
        with pytest.raises(KeyboardInterrupt):
            said.hook(receiver, tmp_path, sleep=die).post(VERDICT)
        said.hook(receiver, tmp_path).flush()
    first, second = receiver.documents()
    assert first == second
    assert waiting(tmp_path) == []


def test_the_same_message_again_has_the_same_id_and_waits_once(tmp_path: Path, said: Said) -> None:
    with receiving(500) as receiver:
        hook = said.hook(receiver, tmp_path, tries=1)
        hook.post(VERDICT)
        hook.post(VERDICT)
        hook.post(PROMOTION)
    assert [document["kind"] for document in sorted(waiting(tmp_path), key=lambda item: item["kind"])] == [
        "promotion",
        "verdict",
    ]


def test_outbox_that_cannot_be_written_does_not_keep_the_message_from_being_sent(tmp_path: Path, said: Said) -> None:
    (tmp_path / "file").write_text("in the way")
    with receiving(200) as receiver:
        said.hook(receiver, tmp_path / "file").post(VERDICT)
    assert len(receiver.came) == 1
    assert len(said.lines) == 1


def test_where_it_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: Said) -> None:
    monkeypatch.delenv(ADDRESS, raising=False)
    assert webhook(None, tmp_path, said.lines.append) is None
    monkeypatch.setenv(ADDRESS, "https://environment.example/x")
    monkeypatch.setenv(SECRET, "s3cret")
    found = webhook(None, tmp_path, said.lines.append)
    assert found is not None
    assert (found.url, found.secret) == ("https://environment.example/x", "s3cret")
    assert "s3cret" not in repr(found)
    chosen = webhook("http://spec.example:8080/x", tmp_path, said.lines.append)
    assert chosen is not None
    assert chosen.shown == "http://spec.example:8080"
    monkeypatch.setenv(ADDRESS, "ftp://me:pass-word@host/x")
    with pytest.raises(SpecError, match="GRACEFUL_WEBHOOK: must be http") as raised:
        webhook(None, tmp_path, said.lines.append)
    assert "pass-word" not in raised.value.message
