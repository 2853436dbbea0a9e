"""An HTTP proxy in front of a real API server that injects what networks and busy servers do to clients.

It listens on loopback without TLS and forwards with the credentials of an `Access`. Faults are drawn from a seeded
generator, so that a run can be repeated.
"""

from __future__ import annotations

import json
import random
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import urllib3

from graceful.launch.kubernetes.kubeconfig import Access

STALLED_SECONDS = 60.0


class Fault(StrEnum):
    """What happens to a request."""

    GONE = "410 Gone"
    THROTTLED = "429"
    BROKEN = "500"
    DROPPED = "dropped connection"
    SILENT = "silent connection"
    """Stays open, carries nothing any more: what a lost route looks like."""


@dataclass(kw_only=True)
class Weather:
    """Which faults come and how often.

    Attributes:
        faults: Drawn from with equal chances; empty: none.
        chance: That a request meets one, and that each part of a stream does; the first that can always does.
        only: Paths must contain this.
    """

    faults: tuple[Fault, ...] = ()
    chance: float = 0.0
    only: str = ""
    seed: int = 0
    met: Counter[str] = field(default_factory=Counter)
    watched: set[str] = field(default_factory=set)
    """Field selectors of the watches that were asked for."""

    def __post_init__(self) -> None:
        self._random, self._lock = random.Random(self.seed), threading.Lock()

    def draw(self, path: str, *, stream: bool) -> Fault | None:
        """Return the fault that the next request, or part of a stream, meets."""
        with self._lock:
            # lists do not expire here, and requests have a timeout of their own
            possible = [fault for fault in self.faults if stream or fault not in (Fault.GONE, Fault.SILENT)]
            if not possible or self.chance <= 0.0 or self.only not in path:
                return None
            fault = self._random.choice(possible)
            if self.met and self._random.random() >= self.chance:
                return None  # never the first one: a short run without a fault would show nothing
            self.met[fault.value] += 1
            return fault


@contextmanager
def proxied(access: Access, weather: Weather) -> Iterator[Access]:
    """Yield the same server through bad weather."""
    server = _Server(access, weather)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        address = f"http://127.0.0.1:{server.server_address[1]}"
        yield replace(access, server=address, tls=None, hostname=None, token=None)
    finally:
        server.over.set()
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256

    def __init__(self, access: Access, weather: Weather) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.access, self.weather, self.over = access, weather, threading.Event()
        self.pool = urllib3.PoolManager(ssl_context=access.tls, maxsize=64, retries=False)

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are part of the game."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""

    def _forward(self) -> None:
        stream = "watch=true" in self.path or "follow=true" in self.path
        if stream:
            self.server.weather.watched.update(parse_qs(urlsplit(self.path).query).get("fieldSelector", []))
        fault = self.server.weather.draw(self.path, stream=stream)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) or None
        if fault in (Fault.THROTTLED, Fault.BROKEN):
            return self._refuse(429 if fault is Fault.THROTTLED else 500)
        if fault is Fault.GONE:
            return self._refuse(410)
        upstream = self._upstream(body)
        if fault is Fault.DROPPED:
            upstream.close()
            return self._hang_up()
        if fault is Fault.SILENT:
            upstream.close()
            self.server.over.wait(STALLED_SECONDS)
            return self._hang_up()
        return self._stream(upstream) if stream and upstream.status < 400 else self._answer(upstream)

    do_GET = do_POST = do_PATCH = do_DELETE = do_PUT = _forward  # noqa: N815  # names that http.server looks for

    def _upstream(self, body: bytes | None) -> urllib3.BaseHTTPResponse:
        access = self.server.access
        kept = {key: value for key, value in self.headers.items() if key in ("Accept", "Content-Type", "Authorization")}
        if access.token is not None:
            kept["Authorization"] = f"Bearer {access.token()}"
        url = f"{access.server}{self.path}"
        return self.server.pool.request(self.command, url, body=body, headers=kept, preload_content=False)

    def _refuse(self, code: int) -> None:
        status = {
            "kind": "Status",
            "apiVersion": "v1",
            "status": "Failure",
            "code": code,
            "message": f"injected {code}",
        }
        data = json.dumps(status).encode()
        self.send_response(code)
        if code == 429:
            self.send_header("Retry-After", "0")
        self._send(data)

    def _answer(self, upstream: urllib3.BaseHTTPResponse) -> None:
        data = upstream.read()
        self.send_response(upstream.status)
        self._send(data)

    def _send(self, data: bytes) -> None:
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _stream(self, upstream: urllib3.BaseHTTPResponse) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for part in _lines(upstream):
            fault = self.server.weather.draw(self.path, stream=True)
            if fault is Fault.DROPPED:
                self._chunk(part[: max(1, len(part) // 2)])  # in the middle of a line
                upstream.close()
                return self._hang_up()
            if fault is Fault.SILENT:
                upstream.close()
                self.server.over.wait(STALLED_SECONDS)
                return self._hang_up()
            if fault is not None and "watch=true" in self.path:
                upstream.close()
                code = {Fault.GONE: 410, Fault.THROTTLED: 429}.get(fault, 500)
                error = {"type": "ERROR", "object": {"kind": "Status", "code": code, "message": f"injected {code}"}}
                self._chunk(json.dumps(error).encode() + b"\n")
                return self._chunk(b"")
            self._chunk(part)
        return self._chunk(b"")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)


def _lines(upstream: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
    """Whole lines: a server puts no error into the middle of an event."""
    kept = b""
    for part in upstream.stream(65536):
        *whole, kept = (kept + part).split(b"\n")
        yield from (line + b"\n" for line in whole)
    if kept:
        yield kept
