"""The webhook against a real receiver on loopback: at least once, signed, and never a reason to fail."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from graceful import spec
from graceful.environment import WEBHOOK_SECRET_VARIABLE, WEBHOOK_VARIABLE
from graceful.errors import SpecError
from graceful.patience import ONE_TRY
from graceful.programs.messages import notifications
from graceful.programs.messages.outbox import Outbox
from graceful.programs.messages.webhook import PATIENCE, Webhook, signature
from graceful.programs.runs.run import Run
from tests.support.webhook_receiver import DRIBBLE, FLOOD, HANG, Receiver, receiving

VERDICT = {"kind": "verdict", "model": "glyphs", "model_id": "m-1", "event": None, "version": 3}
PROMOTION = {"kind": "promotion", "model": "glyphs", "model_id": "m-1", "event": "r1", "version": 3}


class Said:
    """What was said, and how long was slept."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.slept: list[float] = []

    def hook(self, receiver: Receiver | str, **changes: Any) -> Webhook:
        url = receiver if isinstance(receiver, str) else receiver.url
        patience = replace(PATIENCE, sleep=self.slept.append, random=lambda: 0.5)
        fields = {"patience": patience, "secret": "key-of-mine", **changes}
        return Webhook(url=url, say=self.lines.append, **fields)

    def box(self, receiver: Receiver | str, folder: Path, **changes: Any) -> Outbox:
        hook = self.hook(receiver, **changes)
        return Outbox(folder=folder, receiver=lambda _: hook, say=self.lines.append)


@pytest.fixture
def said() -> Said:
    return Said()


def waiting(outbox: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(outbox.glob("*.json"))]


def test_messages_arrive_in_order_signed_and_leave_the_outbox(tmp_path: Path, said: Said) -> None:
    with receiving(200) as receiver:
        said.box(receiver, tmp_path / "outbox").post(VERDICT, PROMOTION)
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
        said.box(receiver, tmp_path, secret="").post(VERDICT)
    ((headers, _),) = receiver.came
    assert "X-Graceful-Signature" not in headers


def test_errors_of_the_receiver_are_waited_out_with_growing_pauses(tmp_path: Path, said: Said) -> None:
    with receiving(500, 503, 429, 200) as receiver:
        said.box(receiver, tmp_path).post(VERDICT)
    assert [document["id"] for document in receiver.documents()] == [receiver.documents()[0]["id"]] * 4
    assert said.slept == [0.5625, 1.125, 2.25]
    assert (said.lines, waiting(tmp_path)) == ([], [])


@pytest.mark.parametrize(
    ("answers", "reason", "tries"),
    [
        ((500,), "answers 500", 4),
        ((404,), "answers 404", 1),
        ((302,), "answers 302", 4),
        ((HANG,), "no answer within 0.2 s", 4),
        ((DRIBBLE,), "no answer within 0.2 s", 4),
    ],
)
def test_what_cannot_be_delivered_is_said_kept_and_sent_with_the_next(
    tmp_path: Path, said: Said, answers: tuple[int, ...], reason: str, tries: int
) -> None:
    with receiving(*answers) as receiver:
        said.box(receiver, tmp_path, seconds=0.2).post(VERDICT)
        assert len(receiver.came) == tries
    (line,) = said.lines
    assert reason in line
    assert "secret" not in line
    assert "key-of-mine" not in line
    assert [document["kind"] for document in waiting(tmp_path)] == ["verdict"]
    with receiving(200) as receiver:
        said.box(receiver, tmp_path).post(PROMOTION)
    assert [document["kind"] for document in receiver.documents()] == ["verdict", "promotion"]
    assert waiting(tmp_path) == []


def test_nobody_listens(tmp_path: Path, said: Said) -> None:
    with receiving(200) as receiver:
        url = receiver.url
    said.box(url, tmp_path).post(VERDICT)
    assert len(said.lines) == 1
    assert "secret" not in said.lines[0]
    assert len(waiting(tmp_path)) == 1


def test_crash_between_writing_and_sending_loses_nothing(tmp_path: Path, said: Said) -> None:
    def die(_: float) -> None:
        raise KeyboardInterrupt

    with receiving(500, 200) as receiver:
        with pytest.raises(KeyboardInterrupt):
            said.box(receiver, tmp_path, patience=replace(PATIENCE, sleep=die)).post(VERDICT)
        said.box(receiver, tmp_path).flush()
    first, second = receiver.documents()
    assert first == second
    assert waiting(tmp_path) == []


def test_the_same_message_again_has_the_same_id_and_waits_once(tmp_path: Path, said: Said) -> None:
    with receiving(500) as receiver:
        outbox = said.box(receiver, tmp_path, patience=ONE_TRY)
        outbox.post(VERDICT)
        outbox.post(VERDICT)
        outbox.post(PROMOTION)
    assert [document["kind"] for document in sorted(waiting(tmp_path), key=lambda item: item["kind"])] == [
        "promotion",
        "verdict",
    ]


def test_outbox_that_cannot_be_written_does_not_keep_the_message_from_being_sent(tmp_path: Path, said: Said) -> None:
    (tmp_path / "file").write_text("in the way")
    with receiving(200) as receiver:
        said.box(receiver, tmp_path / "file").post(VERDICT)
    assert len(receiver.came) == 1
    assert len(said.lines) == 1


def test_the_moment_of_sending_is_signed_anew_with_each_request(said: Said) -> None:
    moments = iter((1_764_489_600.7, 1_764_489_660.2))
    with receiving(500, 200) as receiver:
        assert said.hook(receiver, clock=lambda: next(moments)).deliver("a1", b"{}", waits_for="")
    stamped = [(headers["X-Graceful-Timestamp"], headers["X-Graceful-Signature-V2"]) for headers, _ in receiver.came]
    assert [moment for moment, _ in stamped] == ["1764489600", "1764489660"]
    for moment, signed in stamped:
        assert signed == f"sha256={hmac.new(b'key-of-mine', f'{moment}.{{}}'.encode(), hashlib.sha256).hexdigest()}"


def test_an_answer_without_an_end_is_not_read(said: Said) -> None:
    with receiving(FLOOD) as receiver:
        began = time.monotonic()
        assert said.hook(receiver).deliver("a1", b"{}", waits_for="")
        assert time.monotonic() - began < 5.0
        assert receiver.sent < 32 * 2**20


def test_tries_end_when_they_took_too_long(said: Said) -> None:
    with receiving(HANG) as receiver:
        patience = replace(PATIENCE, seconds=0.3, sleep=said.slept.append)
        assert not said.hook(receiver, seconds=0.2, patience=patience).deliver("a1", b"{}", waits_for="")
        assert len(receiver.came) == 2


def test_user_and_password_of_an_address_are_sent_and_not_shown(said: Said) -> None:
    with receiving(401) as receiver:
        said.hook(receiver.url.replace("://", "://bob:p%2Fss@")).deliver("a1", b"{}", waits_for="")
    ((headers, _),) = receiver.came
    assert base64.b64decode(headers["Authorization"].removeprefix("Basic ")) == b"bob:p/ss"
    assert "ss@" not in said.lines[0]


def test_what_was_taken_is_not_sent_again(tmp_path: Path, said: Said) -> None:
    with receiving(200) as receiver:
        said.box(receiver, tmp_path).post(VERDICT, PROMOTION)
        said.box(receiver, tmp_path).post(VERDICT, PROMOTION)
    assert len(receiver.came) == 2


def test_each_model_has_its_receiver_and_a_dead_one_blocks_no_other(tmp_path: Path, said: Said) -> None:
    with receiving(500) as dead, receiving(200) as alive:
        hooks = {"glyphs": said.hook(dead, patience=ONE_TRY), "digits": said.hook(alive)}
        outbox = Outbox(folder=tmp_path, receiver=hooks.get, say=said.lines.append)
        outbox.post(VERDICT, PROMOTION, {**VERDICT, "model": "digits"}, {**VERDICT, "model": "nobody"})
        assert len(dead.came) == 1
    assert [document["model"] for document in alive.documents()] == ["digits"]
    assert [(document["model"], document["kind"]) for document in waiting(tmp_path)] == [
        ("glyphs", "verdict"),
        ("glyphs", "promotion"),
        ("nobody", "verdict"),
    ]


def test_many_commands_at_once_send_each_message_once(tmp_path: Path, said: Said) -> None:
    messages = [{**PROMOTION, "event": f"r{number}"} for number in range(12)]
    with receiving(200) as receiver, ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda message: said.box(receiver, tmp_path).post(message), messages))
    assert sorted(document["event"] for document in receiver.documents()) == sorted(one["event"] for one in messages)
    assert (waiting(tmp_path), said.lines) == ([], [])


def test_messages_of_a_run_of_before_are_taken_over(tmp_path: Path, said: Said) -> None:
    old = tmp_path / "run"
    old.mkdir()
    (old / "abc.json").write_text(json.dumps({"id": "abc", **VERDICT}))
    with receiving(200) as receiver:
        outbox = said.box(receiver, tmp_path / "outbox")
        outbox.adopt(old)
        outbox.flush()
    assert [headers["X-Graceful-Delivery"] for headers, _ in receiver.came] == ["abc"]
    assert list(old.iterdir()) == []


@pytest.mark.parametrize("content", [b"[" * 200_000, b"\xff", b"[]", b"{}"], ids=["deep", "no text", "list", "empty"])
def test_what_is_no_message_is_named_and_passed_over(content: bytes, tmp_path: Path, said: Said) -> None:
    (tmp_path / "0-ab.json").write_bytes(content)
    with receiving(200) as receiver:
        said.box(receiver, tmp_path).post(VERDICT)
    assert len(receiver.came) == 1
    (line,) = said.lines
    assert "0-ab.json is not a message" in line


def test_where_it_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The address of a spec is kept for commands without one, and wins over the environment's."""
    monkeypatch.delenv(WEBHOOK_VARIABLE, raising=False)
    monkeypatch.setenv(WEBHOOK_SECRET_VARIABLE, "s3cret\n")
    plain = spec.parse({"model": "glyphs", "name": "v1", "task": {"kind": "digits"}, "home": str(tmp_path)})
    with receiving(200) as own, receiving(200) as others:
        named = plain.model_copy(update={"registry": spec.Registry(webhook=own.url)})
        notifications.of_refresh(Run.of(named)).tell(VERDICT)
        kept = tmp_path / "webhooks" / "glyphs"
        assert kept.stat().st_mode & 0o777 == 0o600
        monkeypatch.setenv(WEBHOOK_VARIABLE, f"{others.url}\n")
        notifications.of_action("glyphs", tmp_path).tell(PROMOTION)
        notifications.of_action("digits", tmp_path).tell({**PROMOTION, "model": "digits"})
        notifications.of_refresh(Run.of(plain)).tell({**PROMOTION, "event": "r2"})
    assert [document["kind"] for document in own.documents()] == ["verdict", "promotion"]
    assert [document["event"] for document in others.documents()] == ["r1", "r2"]
    ((headers, body), *_) = others.came
    assert headers["X-Graceful-Signature"] == signature("s3cret", body)
    assert not kept.exists()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "address", ["ftp://me:pass-word@host/x", "http://[::1/pass-word", "http://h:1234567/pass-word"]
)
def test_a_wrong_address_in_the_environment_is_refused_at_once(
    address: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(WEBHOOK_VARIABLE, address)
    with pytest.raises(SpecError, match=r"^GRACEFUL_WEBHOOK: must be http") as raised:
        notifications.of_action("glyphs", tmp_path)
    assert "pass-word" not in raised.value.message
