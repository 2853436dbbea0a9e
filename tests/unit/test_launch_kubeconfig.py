"""Kubeconfig files as people have them: what reaches the server, and what is refused in one line."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from graceful.errors import SpecError
from graceful.launch.kubernetes import kubeconfig, proxies
from graceful.launch.kubernetes.kube import Kube
from graceful.launch.kubernetes.kubeconfig import Access
from tests.support.http_answers import answering

Json = dict[str, Any]
SERVER = {"server": "https://k:6443", "insecure-skip-tls-verify": True}


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KUBECONFIG", "GRACEFUL_CONTEXT", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


def document(user: Json | None = None, cluster: Json | None = None) -> Json:
    return {
        "current-context": "one",
        "contexts": [{"name": "one", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": SERVER if cluster is None else cluster}],
        "users": [{"name": "u", "user": {"token": "t"} if user is None else user}],
    }


def load(folder: Path, user: Json | None = None, cluster: Json | None = None) -> Access:
    path = folder / "config"
    path.write_text(json.dumps(document(user, cluster)), encoding="utf-8")
    return kubeconfig.load(files=[path], pod=folder / "no-pod")


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(SpecError) as refused:
        call()
    assert "\n" not in refused.value.message
    return refused.value.message


# --- what reaches the server ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ({"token": "abc\n"}, {"Authorization": ["Bearer abc"]}),
        ({"username": "ada", "password": "p:\u00e4ss"}, {"Authorization": ["Basic YWRhOnA6w6Rzcw=="]}),
        ({"username": 12, "password": 345}, {"Authorization": ["Basic MTI6MzQ1"]}),
        (
            {
                "token": "abc",
                "as": "system:serviceaccount:team:runner",
                "as-uid": 7,
                "as-groups": ["team a", "system:authenticated"],
                "as-user-extra": {"acme.example/scope": ["view", "edit"], "a b%": ["\u00e9"]},
            },
            {
                "Authorization": ["Bearer abc"],
                "Impersonate-User": ["system:serviceaccount:team:runner"],
                "Impersonate-Uid": ["7"],
                "Impersonate-Group": ["team a", "system:authenticated"],
                "Impersonate-Extra-acme.example%2Fscope": ["view", "edit"],
                "Impersonate-Extra-a%20b%25": ["\u00e9"],
            },
        ),
        ({}, {}),
    ],
)
def test_who_we_are_reaches_the_server(user: Json, expected: dict[str, list[str]], tmp_path: Path) -> None:
    with answering({"GET /version": [(200, '{"gitVersion": "v1"}')]}) as server:
        access = load(tmp_path, user, {"server": server.address})
        assert Kube(access=access).version() == "v1"
        (headers,) = server.headers
    ours = {key: [] for key, _ in headers if key.startswith(("Impersonate", "Authorization"))}
    for key, value in headers:
        if key in ours:
            ours[key].append(value.encode("latin-1").decode())
    assert ours == expected


def test_messages_name_whom_we_impersonate(tmp_path: Path) -> None:
    assert load(tmp_path, {"token": "t", "as": "bob"}).identity == "bob (impersonated by u)"


@pytest.mark.parametrize(
    ("no_proxy", "server", "direct"),
    [
        ("10.0.0.0/8", "https://10.20.30.40:6443", True),
        ("10.0.0.0/8", "https://11.20.30.40:6443", False),
        ("fd00::/8", "https://[fd00::1]:6443", True),
        ("fd00::/8", "https://10.0.0.1", False),
        ("10.1.2.3", "https://10.1.2.3:6443", True),
        ("10.1.2.3:6443", "https://10.1.2.3:6443", True),
        ("10.1.2.3:443", "https://10.1.2.3:6443", False),
        ("[fd00::1]:6443", "https://[fd00::1]:6443", True),
        ("fd00::1", "https://[FD00:0::1]", True),
        ("example.com", "https://k.example.com", True),
        ("example.com", "https://EXAMPLE.com", True),
        ("example.com", "https://badexample.com", False),
        (".example.com", "https://k.example.com", True),
        (".example.com", "https://example.com", False),
        ("*.example.com", "https://k.example.com", True),
        ("*.example.com", "https://example.com", False),
        ("example.com:443", "https://k.example.com", True),
        ("example.com:443", "https://k.example.com:6443", False),
        ("*", "https://k.example.com", True),
        ("other.example, 192.168.0.0/16 ,.internal", "https://k.internal:6443", True),
        ("other.example, 192.168.0.0/16 ,.internal", "https://192.168.3.4", True),
        (" ,:,/,[],10.0.0.0/99,", "https://10.0.0.1", False),
        ("", "https://localhost:6443", True),
        ("", "https://127.8.9.1:6443", True),
        ("", "https://[::1]:6443", True),
        ("", "https://k.example.com", False),
    ],
)
def test_no_proxy_is_read_as_kubectl_reads_it(no_proxy: str, server: str, direct: bool) -> None:
    environment = {"HTTPS_PROXY": "proxy:3128", "NO_PROXY": no_proxy}
    assert proxies.of(server, environment) == (None if direct else "http://proxy:3128")
    assert proxies.of(server.replace("https", "http"), environment) is None


def test_a_proxy_gets_its_password_and_one_that_cannot_be_used_is_refused_without_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with answering({"GET http://k.example:80/version": [(200, '{"gitVersion": "v1"}')]}) as proxy:
        address = proxy.address.replace("//", "//ada:p%40ss@")
        access = load(tmp_path, cluster={"server": "http://k.example:80", "proxy-url": address})
        assert Kube(access=access).version() == "v1"
        assert ("proxy-authorization", "Basic YWRhOnBAc3M=") in proxy.headers[0]
    monkeypatch.setenv("HTTPS_PROXY", "socks5://ada:hunter2@proxy:1080")
    said = refusal(lambda: load(tmp_path))
    assert "proxy socks5://" in said
    assert "hunter2" not in said


@pytest.mark.parametrize(
    ("answer", "cluster", "token"),
    [
        ({"token": "fresh", "expirationTimestamp": "2999-01-01T00:00:00Z"}, {"proxy-url": "http://proxy:1"}, "fresh"),
        ({"token": "fresh"}, {}, "fresh"),
    ],
)
def test_a_plugin_beside_the_config_logs_in_and_the_cluster_s_settings_stay(
    answer: Json, cluster: Json, token: str, tmp_path: Path
) -> None:
    script = tmp_path / "login"
    told = {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": answer}
    script.write_text(f"#!/bin/sh\necho once >> {tmp_path}/calls\necho '{json.dumps(told)}'\n", encoding="utf-8")
    script.chmod(0o755)
    plugin = {"apiVersion": told["apiVersion"], "command": "./login", "interactiveMode": "Never"}
    access = load(tmp_path, {"exec": plugin, "as": "bob"}, {**SERVER, **cluster, "tls-server-name": "inner"})
    assert access.token is not None
    assert [access.token(), access.token()] == [token, token]
    assert (tmp_path / "calls").read_text().count("once") == 1
    assert (access.proxy, access.hostname) == (cluster.get("proxy-url"), "inner")
    assert ("Impersonate-User", "bob") in access.headers


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_a_config_in_another_encoding_is_read(encoding: str, tmp_path: Path) -> None:
    mark = "\ufeff" if encoding in ("utf-16-le", "utf-16-be") else ""
    text = yaml.safe_dump({**document(), "current-context": "one"}, allow_unicode=True)
    (tmp_path / "config").write_bytes(f"{mark}{text}".encode(encoding))
    assert kubeconfig.load(files=[tmp_path / "config"]).server == "https://k:6443"


def test_names_may_be_numbers(tmp_path: Path) -> None:
    text = json.dumps(document()).replace('"one"', "1").replace('"c"', "2").replace('"u"', "3").replace('"t"', "45")
    (tmp_path / "config").write_text(text, encoding="utf-8")
    access = kubeconfig.load(files=[tmp_path / "config"])
    assert (access.context, access.identity) == ("1", "3")
    assert access.token is not None
    assert access.token() == "45"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "Is a directory"),
        (b"", "kube context '(none current)': not found, known: none"),
        (b"\xff\xfe\x00", "cannot be read (not UTF-16"),
        (b"\x93\xfa", "cannot be read (not UTF-8"),
        (b"- a\n", "must be a mapping with contexts, clusters and users, got a list"),
        (b"contexts: one\n", "contexts must be a list, got text"),
        (b"contexts: [{context: {}}]\n", "contexts.0 has no name"),
        (b"contexts: [one]\n", "contexts.0 must be a mapping, got text"),
        (b"users: [{name: a, user: b}]\n", "users.0.user must be a mapping, got text"),
        (b"users: [{name: a}, {name: a}]\n", "users: 'a' is there twice; keep one"),
        (b"users: []\nusers: []\n", "is written twice"),
        (b"contexts: [{name: [a], context: {}}]\n", "contexts.0.name must be text, got a list"),
    ],
)
def test_a_damaged_config_is_one_line(text: bytes | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.mkdir() if text is None else path.write_bytes(text)
    message = refusal(lambda: kubeconfig.load(files=[path]))
    assert said in message
    assert text == b"" or message.startswith(f"kubeconfig {path}: ")


DATA = base64.b64encode(b"no certificate").decode()
ODD = "not base64!"
HTTPS = {"server": "https://k"}


@pytest.mark.parametrize(
    ("user", "cluster", "said"),
    [
        (
            {"client-certificate-data": "not base64!", "client-key-data": DATA},
            {},
            "client-certificate-data: not base64",
        ),
        ({"client-certificate-data": DATA, "client-key-data": DATA}, {}, "certificate cannot be used"),
        ({"client-certificate": "gone.crt", "client-key": "gone.key"}, {}, "gone.crt: cannot be read (No such file"),
        ({"tokenFile": "gone"}, {}, "gone: cannot be read (No such file"),
        ({"token": "two\nlines-of-secret"}, {}, "token: holds white space or control characters"),
        ({"token": ["a"]}, {}, "token must be text, got a list"),
        ({"token": "t", "username": "ada", "password": "p"}, {}, "has a token and a user name; keep one"),
        ({"username": "a:b", "password": "p"}, {}, "username: must not hold a colon"),
        ({"as-groups": ["g"], "token": "t"}, {}, "as-groups without as"),
        ({"as": "bob", "as-groups": "g", "token": "t"}, {}, "as-groups must be a list of texts"),
        ({"as": "bob\r\nX: y", "token": "t"}, {}, "as: holds control characters"),
        ({"as": "bob", "as-user-extra": {"k": "v"}, "token": "t"}, {}, "as-user-extra.k must be a list of texts"),
        ({"exec": {"command": "gone-plugin", "apiVersion": "v1"}}, {}, "its login failed (No such file"),
        ({"exec": {"command": "false", "apiVersion": "v1", "env": [{"name": 1}]}}, {}, "its login failed"),
        ({"exec": {"apiVersion": "v1"}}, {}, "exec has no command"),
        ({"exec": "aws"}, {}, "exec must be a mapping, got text"),
        (None, {"server": ""}, "its cluster has no server"),
        (None, {"server": "k:6443"}, "server 'k:6443': must be http://host:port or https://host:port"),
        (None, {"server": "https://[::1"}, "server 'https://[::1': must be http://host:port or https://host:port"),
        (None, {"server": "https://k:port"}, "server 'https://k:port': must be http"),
        (None, {**SERVER, "insecure-skip-tls-verify": "false"}, "insecure-skip-tls-verify must be true or false"),
        (None, {**HTTPS, "certificate-authority": "gone.pem"}, "gone.pem: cannot be read (No such file"),
        (
            None,
            {"server": "https://k", "certificate-authority-data": DATA},
            "certificate-authority-data: no certificate",
        ),
        (None, {**SERVER, "proxy-url": "ftp://proxy:1"}, "proxy ftp://proxy:1: must be http://host:port"),
    ],
)
def test_what_cannot_be_used_is_one_line_that_names_it(
    user: Json | None, cluster: Json, said: str, tmp_path: Path
) -> None:
    def connect() -> None:
        access = load(tmp_path, user, cluster or SERVER)
        if access.token is not None:
            access.token()

    message = refusal(connect)
    assert said in message
    assert "lines-of-secret" not in message
    assert "'one'" in message or "gone" in message


def test_a_context_that_names_what_is_not_there_is_told(tmp_path: Path) -> None:
    for section, kind in (("clusters", "cluster 'c'"), ("users", "user 'u'")):
        path = tmp_path / section
        path.write_text(json.dumps({**document(), section: []}), encoding="utf-8")
        assert f"kube context 'one': its {kind} is not there" in refusal(
            lambda path=path: kubeconfig.load(files=[path])
        )


def test_several_files_are_merged_as_kubectl_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/one").write_text(json.dumps({**document({"tokenFile": "token"}), "clusters": []}), encoding="utf-8")
    (tmp_path / "a/token").write_text("of-a\n", encoding="utf-8")
    (tmp_path / "two").write_text(json.dumps({**document(), "current-context": "other"}), encoding="utf-8")
    monkeypatch.setenv("KUBECONFIG", f"{tmp_path}/gone:{tmp_path}/a/one::{tmp_path}/two")
    access = kubeconfig.load(pod=tmp_path)
    assert (access.context, access.server) == ("one", "https://k:6443")
    assert access.token is not None
    assert access.token() == "of-a"
    read, write = os.pipe()
    os.write(write, (tmp_path / "two").read_bytes())
    os.close(write)
    assert kubeconfig.load("one", files=[Path(f"/dev/fd/{read}")]).server == "https://k:6443"  # bash's <(command)
    os.close(read)


@pytest.mark.parametrize("named", [None, "~/config"])
def test_without_a_home_directory_a_line_says_what_to_set(named: str | None, tmp_path: Path) -> None:
    nobody = "os.setuid(54321)" if os.getuid() == 0 else "pwd.getpwuid = lambda uid: {}[uid]"
    code = f"import os, pwd\nfrom graceful.launch.kubernetes import kubeconfig\n{nobody}\nkubeconfig.load()"
    env = {key: value for key, value in os.environ.items() if key not in ("HOME", "KUBECONFIG")}
    env |= {} if named is None else {"KUBECONFIG": named}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    said = done.stderr.strip().splitlines()[-1]
    assert "SpecError: " in said
    assert "KUBECONFIG" in said
    assert "home directory; " in said
    assert "absolute path" in said
