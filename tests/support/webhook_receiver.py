"""A receiver of webhooks on loopback: it answers as told, or not at all, and keeps what it was told."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HANG = 0
"""A status that means: no answer until the test is over."""
DRIBBLE = 1
"""Headers without an end, a byte every few milliseconds."""
FLOOD = 2
"""200 with a body without an end."""


@dataclass
class Receiver:
    """What came, and what is answered next.

    Attributes:
        url: Where to post, with a secret in its path as such addresses have.
        answers: Statuses, in turn; the last again and again.
        came: (headers, body) of each request, in order.
        sent: Bytes of answers without an end.
    """

    answers: list[int]
    url: str = ""
    came: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    sent: int = 0
    over: threading.Event = field(default_factory=threading.Event)

    def documents(self) -> list[dict[str, Any]]:
        return [json.loads(body) for _, body in self.came]


@contextmanager
def receiving(*answers: int) -> Iterator[Receiver]:
    """Listen while the block runs."""
    receiver = Receiver(list(answers) or [200])

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """Log nothing."""

        def _without_end(self, kind: int) -> None:
            self.close_connection = True
            start = b"HTTP/1.1 200 OK\r\n" + (b"\r\n" if kind == FLOOD else b"X-Slow: ")
            with suppress(OSError):  # the sender hangs up
                self.wfile.write(start)
                while not receiver.over.wait(0.02 if kind == DRIBBLE else 0.0):
                    self.wfile.write(b"x" * (1 if kind == DRIBBLE else 2**20))
                    receiver.sent += 1 if kind == DRIBBLE else 2**20

        def do_POST(self) -> None:  # a name that http.server looks for
            body = self.rfile.read(int(self.headers["Content-Length"]))
            receiver.came.append((dict(self.headers), body))
            status = receiver.answers.pop(0) if len(receiver.answers) > 1 else receiver.answers[0]
            if status == HANG:
                receiver.over.wait(60)
                return
            if status in (DRIBBLE, FLOOD):
                self._without_end(status)
                return
            self.send_response(status)
            if status in (301, 302):
                self.send_header("Location", "http://127.0.0.1:9/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.block_on_close = False
    receiver.url = f"http://127.0.0.1:{server.server_address[1]}/hooks/path-secret?key=query-secret"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        receiver.over.set()
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)
