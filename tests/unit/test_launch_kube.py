"""Requests to Kubernetes: what is requested and repeated, and how answers are read. No sockets."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import certifi
import pytest
import urllib3

from graceful.errors import SpecError
from graceful.launch import refusals
from graceful.launch.kubernetes import kubeconfig
from graceful.launch.kubernetes.kube import Kube
from graceful.launch.kubernetes.kubeconfig import Access
from graceful.launch.refusals import (
    ApiError,
    ConflictError,
    ForbiddenError,
    GoneError,
    InvalidObjectError,
    NotFoundError,
    Request,
    ThrottledError,
    UnreachableError,
    refused,
)
from graceful.patience import Patience

LOST = urllib3.exceptions.ProtocolError("connection reset")
REFUSED = urllib3.exceptions.NewConnectionError(urllib3.connection.HTTPConnection("k"), "refused")
Json = dict[str, Any]


@dataclass
class Answer:
    """What a pool gives back."""

    status: int
    data: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    chunks: tuple[Any, ...] = ()

    def stream(self, size: int) -> Any:
        for chunk in self.chunks:
            if isinstance(chunk, Exception):
                raise chunk
            yield chunk

    def read(self) -> bytes:
        return self.data

    def close(self) -> None:
        """Nothing is open."""


@dataclass
class Pool:
    """Answers in order; notes what it was asked."""

    answers: list[Any]
    asked: list[Json] = field(default_factory=list)

    def request(self, method: str, url: str, **options: Any) -> Answer:
        self.asked.append({"method": method, "url": url, **options})
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, Answer)
        return answer


def ok(document: Any = None) -> Answer:
    return Answer(200, json.dumps(document or {"metadata": {}}).encode())


def error(code: int, message: str = "said", **headers: str) -> Answer:
    return Answer(code, json.dumps({"kind": "Status", "message": message}).encode(), headers)


def client(*answers: Any) -> tuple[Kube, Pool, list[float]]:
    slept: list[float] = []
    access = Access(server="https://k:6443", context="c", identity="me", token=lambda: "secret")
    kube = Kube(access=access, namespace="ns", patience=Patience(sleep=slept.append, random=lambda: 1.0))
    pool = Pool(list(answers))
    kube._wire._pool = pool  # type: ignore[assignment]
    return kube, pool, slept


def test_addresses_follow_group_namespace_and_subresource() -> None:
    kube, pool, _ = client(ok(), ok(), ok(), ok())
    kube.get("RayJob", "glyphs-v2")
    kube.get("Pod", "p", namespace="other")
    kube.get("Node", "n")
    kube.patch("RayJob", "glyphs-v2", {"status": {}}, part="status")
    assert [asked["url"].removeprefix("https://k:6443/") for asked in pool.asked] == [
        "apis/ray.io/v1/namespaces/ns/rayjobs/glyphs-v2",
        "api/v1/namespaces/other/pods/p",
        "api/v1/nodes/n",
        "apis/ray.io/v1/namespaces/ns/rayjobs/glyphs-v2/status",
    ]
    assert pool.asked[0]["headers"]["Authorization"] == "Bearer secret"


def test_apply_and_create_are_strict_and_a_dry_run_says_so() -> None:
    kube, pool, _ = client(ok(), ok())
    document = {"kind": "RayJob", "metadata": {"name": "a", "namespace": "team"}}
    kube.apply(document, dry_run=True, force=True)
    kube.create(document)
    apply, create = pool.asked
    assert apply["method"] == "PATCH"
    assert apply["headers"]["Content-Type"] == "application/apply-patch+yaml"
    for part in ("namespaces/team/rayjobs/a?", "dryRun=All", "force=true", "fieldValidation=Strict", "fieldManager="):
        assert part in apply["url"]
    assert create["method"] == "POST"
    assert "fieldValidation=Strict" in create["url"]
    assert "dryRun" not in create["url"]


def test_an_unknown_kind_is_refused_before_anything_is_sent() -> None:
    kube, pool, _ = client()
    with pytest.raises(InvalidObjectError, match="kind 'StatefulSet'"):
        kube.apply({"kind": "StatefulSet", "metadata": {"name": "a"}})
    assert pool.asked == []


@pytest.mark.parametrize("failure", [error(429), error(500), error(503), LOST, REFUSED])
def test_reads_are_repeated_until_they_succeed(failure: Any) -> None:
    kube, pool, slept = client(failure, failure, ok({"metadata": {"name": "a"}}))
    assert kube.get("RayJob", "a")["metadata"]["name"] == "a"
    assert len(pool.asked) == 3
    assert slept == [0.2, 0.4]


def test_patience_ends() -> None:
    kube, pool, _ = client(*[error(500)] * 9)
    with pytest.raises(ApiError):
        kube.get("RayJob", "a")
    assert len(pool.asked) == 5


def test_a_throttled_request_waits_as_long_as_it_is_asked_to() -> None:
    kube, _, slept = client(error(429, **{"Retry-After": "7"}), ok())
    kube.get("RayJob", "a")
    assert slept == [7.0]


@pytest.mark.parametrize(("failure", "sent"), [(LOST, 1), (error(500), 1), (REFUSED, 2), (error(429), 2)])
def test_a_create_that_may_have_arrived_is_not_sent_again(failure: Any, sent: int) -> None:
    kube, pool, _ = client(failure, error(409, "already exists"))
    with pytest.raises(ApiError):
        kube.create({"kind": "RayJob", "metadata": {"name": "a"}})
    assert len(pool.asked) == sent


def test_what_will_not_pass_is_not_repeated() -> None:
    for code in (400, 403, 404, 409, 422):
        kube, pool, slept = client(error(code))
        with pytest.raises(ApiError):
            kube.get("RayJob", "a")
        assert (len(pool.asked), slept) == (1, [])


def test_a_list_is_read_page_by_page_and_again_when_it_expires() -> None:
    first = ok({"items": [{"a": 1}], "metadata": {"continue": "t", "resourceVersion": "5"}})
    second = ok({"items": [{"a": 2}], "metadata": {"resourceVersion": "5"}})
    kube, pool, _ = client(first, error(410), first, second)
    found = kube.list("RayJob", selector="x=y")
    assert [item["a"] for item in found.items] == [1, 2]
    assert found.resource_version == "5"
    assert "continue=t" in pool.asked[3]["url"]
    assert all("labelSelector=x%3Dy" in asked["url"] for asked in pool.asked)


def events(*documents: Json) -> bytes:
    return b"".join(json.dumps(document).encode() + b"\n" for document in documents)


def test_a_watch_gives_complete_events_however_the_bytes_are_cut() -> None:
    data = events({"type": "ADDED", "object": {"n": "é"}}, {"type": "BOOKMARK", "object": {}})
    kube, pool, _ = client(Answer(200, chunks=tuple(data[at : at + 1] for at in range(len(data)))))
    found = list(kube.watch("RayJob", resource_version="9", seconds=30, fields="metadata.name=a"))
    assert [(event.type, event.object) for event in found] == [("ADDED", {"n": "é"}), ("BOOKMARK", {})]
    for part in ("watch=true", "allowWatchBookmarks=true", "resourceVersion=9", "timeoutSeconds=30"):
        assert part in pool.asked[0]["url"]
    assert pool.asked[0]["timeout"].read_timeout == 45.0


CUT = [
    Answer(200, chunks=(b'{"type": "AD', LOST)),
    Answer(200, chunks=(b'{"type": "AD',)),
    Answer(200, chunks=(b'{"ty{"type": "ADDED"}\n',)),
]
"""In the middle of an event: on this side of the server, behind it, and by something in between that wrote on."""


def test_a_watch_that_is_too_old_or_cut_says_which() -> None:
    old = events({"type": "ERROR", "object": {"code": 410, "message": "too old"}})
    kube, _, _ = client(Answer(200, chunks=(old,)), error(410), *CUT)
    for kind in (GoneError, GoneError, UnreachableError, UnreachableError, UnreachableError):
        with pytest.raises(kind):
            list(kube.watch("RayJob", resource_version="9", seconds=30))


def test_a_line_of_a_log_that_was_cut_in_the_middle_can_be_told() -> None:
    kube, pool, _ = client(Answer(200, chunks=(b"t1 whole\nt2 ha", LOST)))
    lines = kube.pod_logs("p", since=datetime(2026, 11, 22, 13, 0, 1, 999, tzinfo=UTC), follow=True)
    assert next(lines) == "t1 whole\n"
    with pytest.raises(UnreachableError):
        next(lines)
    assert list(client(Answer(200, chunks=(b"t1 a\nt2 b",)))[0].pod_logs("p")) == ["t1 a\n", "t2 b"]
    assert "sinceTime=2026-11-22T13%3A00%3A01Z" in pool.asked[0]["url"]


def test_can_i_asks_for_group_and_subresource() -> None:
    kube, pool, _ = client(ok({"status": {"allowed": True}}), ok({"status": {}}))
    assert kube.can_i("create", "rayjobs.ray.io")
    assert not kube.can_i("get", "pods/log")
    asked = [json.loads(asked["body"])["spec"]["resourceAttributes"] for asked in pool.asked]
    assert (asked[0]["group"], asked[0]["resource"], asked[0]["namespace"]) == ("ray.io", "rayjobs", "ns")
    assert (asked[1]["group"], asked[1]["resource"], asked[1]["subresource"]) == ("", "pods", "log")


ASKED = Request(verb="create", resource="rayjobs.ray.io", name="a", namespace="ns", identity="me")


@pytest.mark.parametrize(
    ("code", "kind"),
    [(400, InvalidObjectError), (401, ForbiddenError), (403, ForbiddenError), (404, NotFoundError),
     (409, ConflictError), (410, GoneError), (422, InvalidObjectError), (429, ThrottledError), (500, ApiError)],
)  # fmt: skip
def test_an_error_is_one_line_of_the_right_kind(code: int, kind: type[ApiError]) -> None:
    found = refused(ASKED, code, json.dumps({"message": f"two\nlines {'x' * 9999}"}))
    assert type(found) is kind
    assert "\n" not in found.message
    assert len(found.message) < 700
    assert found.facts["code"] == code


def test_a_wrong_object_is_a_usage_error_and_a_refusal_names_the_role_to_grant() -> None:
    assert refused(ASKED, 422, "x").exit_code == 2
    found = refused(ASKED, 403, "no").message
    for word in ("create rayjobs.ray.io a in namespace ns", "me", 'apiGroups: ["ray.io"]', 'verbs: ["create"]'):
        assert word in found
    assert (
        type(refused(ASKED, 500, "failed to create typed patch object: .x: field not declared")) is InvalidObjectError
    )


def test_what_a_proxy_writes_in_place_of_the_server_is_told() -> None:
    assert "<html>no upstream" in refused(ASKED, 502, b"<html>no\nupstream").message
    kube, _, _ = client(*[Answer(200, b"<html>")] * 5)
    with pytest.raises(UnreachableError, match="not JSON"):
        kube.get("RayJob", "a")


def test_no_answer_names_the_server_and_keeps_the_cause() -> None:
    kube, _, _ = client(*[LOST] * 5)
    with pytest.raises(UnreachableError, match="no answer from https://k:6443") as caught:
        kube.get("RayJob", "a")
    assert isinstance(caught.value.__cause__, urllib3.exceptions.HTTPError)


def test_every_api_error_keeps_its_facts() -> None:
    assert refusals.unreachable(ASKED, "s", LOST).facts["server"] == "s"


def config(folder: Path, name: str = "config", **changes: Any) -> Path:
    document = {
        "current-context": "one",
        "contexts": [
            {"name": "one", "context": {"cluster": "c", "user": "u", "namespace": "team"}},
            {"name": "two", "context": {"cluster": "plain", "user": "file"}},
        ],
        "clusters": [
            {"name": "c", "cluster": {"server": "https://k:6443/", "insecure-skip-tls-verify": True}},
            {"name": "plain", "cluster": {"server": "http://127.0.0.1:8001"}},
        ],
        "users": [
            {"name": "u", "user": {"token": "secret"}},
            {"name": "file", "user": {"tokenFile": "token.txt"}},
        ],
        **changes,
    }
    path = folder / name
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Access]:
    for name in ("KUBECONFIG", "GRACEFUL_CONTEXT", "HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    return kubeconfig.load


def test_the_current_context_is_used_and_another_can_be_named(bare: Callable[..., Access], tmp_path: Path) -> None:
    path = config(tmp_path)
    one = bare(files=[path])
    assert (one.server, one.namespace, one.identity, one.context) == ("https://k:6443", "team", "u", "one")
    assert one.token is not None
    assert one.token() == "secret"
    two = bare("two", files=[path])
    assert (two.namespace, two.tls) == ("default", None)


def test_a_token_file_lies_beside_the_config_and_is_read_for_each_request(
    bare: Callable[..., Access], tmp_path: Path
) -> None:
    access = bare("two", files=[config(tmp_path)])
    assert access.token is not None
    for text in ("first", "second"):
        (tmp_path / "token.txt").write_text(f"{text}\n", encoding="utf-8")
        assert access.token() == text


def test_no_secret_is_shown(bare: Callable[..., Access], tmp_path: Path) -> None:
    assert "secret" not in repr(bare(files=[config(tmp_path)]))


def test_of_several_files_the_first_that_has_an_entry_wins(bare: Callable[..., Access], tmp_path: Path) -> None:
    other = [{"name": "c", "cluster": {"server": "https://other:1", "insecure-skip-tls-verify": True}}]
    first = config(tmp_path, "a", contexts=[], users=[], clusters=other, **{"current-context": ""})
    assert bare(files=[first, config(tmp_path, "b")]).server == "https://other:1"


def test_an_unknown_context_is_told_with_those_there_are(bare: Callable[..., Access], tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="kube context 'three': not found, known: one, two"):
        bare("three", files=[config(tmp_path)])
    with pytest.raises(SpecError, match="none current"):
        bare(files=[])


def test_a_config_that_is_no_yaml_or_holds_bad_certificates_is_told(
    bare: Callable[..., Access], tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    broken.write_text("{", encoding="utf-8")
    with pytest.raises(SpecError, match="not valid YAML"):
        bare(files=[broken])
    data = base64.b64encode(b"no certificate").decode()
    users = [{"name": "u", "user": {"client-certificate-data": data, "client-key-data": data}}]
    with pytest.raises(SpecError, match="certificate cannot be used"):
        bare(files=[config(tmp_path, users=users)])


def test_a_pod_uses_its_service_account(
    bare: Callable[..., Access], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    shutil.copy(certifi.where(), tmp_path / "ca.crt")
    (tmp_path / "token").write_text("t", encoding="utf-8")
    (tmp_path / "namespace").write_text("team", encoding="utf-8")
    access = bare(files=[], pod=tmp_path)
    assert (access.server, access.namespace, access.context) == ("https://[fd00::1]:443", "team", "in-cluster")


def test_a_login_by_plugin_goes_through_the_official_client(bare: Callable[..., Access], tmp_path: Path) -> None:
    script = tmp_path / "login"
    answer = {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": {"token": "fresh"}}
    script.write_text(f"#!/bin/sh\necho '{json.dumps(answer)}'\n", encoding="utf-8")
    script.chmod(0o755)
    plugin = {"apiVersion": "client.authentication.k8s.io/v1", "command": str(script), "interactiveMode": "Never"}
    access = bare(files=[config(tmp_path, users=[{"name": "u", "user": {"exec": plugin}}])])
    assert access.token is not None
    assert access.token() == "fresh"
    assert access.server == "https://k:6443"
    script.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    with pytest.raises(SpecError, match="its login failed"):
        bare(files=[config(tmp_path, users=[{"name": "u", "user": {"exec": plugin}}])])
