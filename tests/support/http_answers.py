"""A small HTTP server on loopback that gives scripted answers and remembers what it was asked."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Answers:
    """Status and body by `METHOD /path`, the last one again and again; what is not there is 404.

    Attributes:
        address: http://127.0.0.1:port.
        given: To be given, in turn.
        asked: (request, Authorization header, body).
        headers: Of each request, name and value, as often as they came.
    """

    given: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    asked: list[tuple[str, str, bytes]] = field(default_factory=list)
    headers: list[list[tuple[str, str]]] = field(default_factory=list)
    address: str = ""

    def next(self, request: str) -> tuple[int, str]:
        answers = self.given.get(request, [(404, "not found")])
        return answers.pop(0) if len(answers) > 1 else answers[0]


@contextmanager
def answering(given: dict[str, list[tuple[int, str]]]) -> Iterator[Answers]:
    """Serve while the block runs."""
    answers = Answers(given)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """Log nothing."""

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            request = f"{self.command} {self.path}"
            answers.asked.append((request, self.headers.get("Authorization", ""), body))
            answers.headers.append(self.headers.items())
            code, text = answers.next(request)
            self.send_response(code)
            self.end_headers()
            self.wfile.write(text.encode())

        do_GET = do_POST = do_PUT = answer  # noqa: N815  # names that the server looks for

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    answers.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield answers
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)
