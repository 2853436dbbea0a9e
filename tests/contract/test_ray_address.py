"""RAY_ADDRESS: what it may name, and how soon a Ray that does not answer is told. Real sockets, no cluster."""

from __future__ import annotations

import http.server
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from graceful.errors import InfrastructureError
from graceful.training import ray_address, ray_fit


def refusal(address: str, *, seconds: float = 1.0) -> str:
    started = time.monotonic()
    with pytest.raises(InfrastructureError) as raised:
        ray_address.require_answer(address, seconds=seconds)
    assert time.monotonic() - started < 20.0
    assert raised.value.exit_code == 4
    assert "\n" not in raised.value.message
    assert raised.value.message.startswith("RAY_ADDRESS=")
    return raised.value.message


@pytest.fixture
def listening() -> Iterator[tuple[socket.socket, int]]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server, server.getsockname()[1]


@pytest.mark.parametrize("address", ["", "local", " local\n", None])
def test_no_address_and_a_local_one_mean_a_ray_of_ones_own(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address is not None:
        monkeypatch.setenv("RAY_ADDRESS", address)
    assert ray_address.named() is None


@pytest.mark.parametrize(
    "address",
    [
        "garbage",
        "host:",
        "host:port",
        "host:99999",
        ":6379",
        "6379",
        "tcp://h:1",
        "h:1/path",
        "http://h:8265",
        "[::1",
        "a b",
    ],
)
def test_what_is_no_address_is_refused_with_the_forms(address: str) -> None:
    message = refusal(address)
    assert "must be HOST:PORT, ray://HOST:PORT, auto or local" in message
    assert ("dashboard" in message) == address.startswith("http")


@pytest.mark.parametrize("form", ["{}:{}", "ray://{}:{}", "[::1]:{1}"])
def test_a_dead_cluster_is_told_at_once(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = form.format("127.0.0.1", port)
    assert "no Ray cluster answers there" in refusal(address)
    monkeypatch.setenv("RAY_ADDRESS", address)
    started = time.monotonic()
    with pytest.raises(InfrastructureError, match="no Ray cluster answers there"):
        ray_fit.connect()
    assert time.monotonic() - started < 30.0, "Ray waits four minutes"


def test_a_server_that_hangs_is_told_at_once(listening: tuple[socket.socket, int]) -> None:
    assert "no Ray cluster answers there (timed out)" in refusal(f"127.0.0.1:{listening[1]}")


def test_a_dashboard_is_no_ray(listening: tuple[socket.socket, int]) -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        assert "the server there is not Ray's" in refusal(f"127.0.0.1:{server.server_port}", seconds=5.0)


def test_no_name_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no Ray cluster answers there" in refusal("no-such-host.invalid:6379")
