"""A real MLflow server on loopback, and a proxy in front of it that loses answers after the server has acted."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType

EMPTY: Mapping[str, str] = MappingProxyType({})


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _await_port(port: int) -> None:
    """The server says that it has started just before it listens."""
    end = time.monotonic() + 60.0
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5.0).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


@contextmanager
def server(
    database: Path | str,
    artifacts: Path | str,
    *arguments: str,
    port: int | None = None,
    variables: Mapping[str, str] = EMPTY,
) -> Iterator[str]:
    """Serve a database until the block ends; yields the URI. One worker, no job execution.

    Args:
        database: A sqlite file, or the URI of another database.
        artifacts: A folder, or the URI of a bucket.
        arguments: Further ones of `mlflow server`.
        port: None: a free one.
        variables: Further ones of the server's environment.
    """
    port = free_port() if port is None else port
    store = f"sqlite:///{database}" if isinstance(database, Path) else database
    destination = artifacts.as_uri() if isinstance(artifacts, Path) else artifacts
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", store, "--artifacts-destination", destination, *arguments,
    ]  # fmt: skip
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")},
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PYTHONUNBUFFERED": "1",
        **variables,
    }
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    assert process.stdout is not None
    try:
        said = []
        for line in process.stdout:
            said.append(line)
            if "Application startup complete" in line:
                break
        else:
            raise AssertionError("the server did not start:\n" + "".join(said))
        drain = threading.Thread(target=process.stdout.read, daemon=True)
        drain.start()
        _await_port(port)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:  # a busy machine; the next test does not wait for its farewell
            process.kill()
            process.wait()
        process.stdout.close()


class LossyProxy:
    """Forward to a server; for each path given, lose the first answer after the server has committed.

    Args:
        target: URI of the server.
        lose: Ends of POST and PATCH paths whose first answer is lost.
        listens_on: Port; 0: a free one.
    """

    def __init__(self, target: str, lose: tuple[str, ...] = (), *, listens_on: int = 0) -> None:
        self.lost: Counter[str] = Counter()
        self._lose = lose
        host, port = target.removeprefix("http://").split(":")
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def forward(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                headers = {key: value for key, value in self.headers.items() if key.lower() != "host"}
                backend = http.client.HTTPConnection(host, int(port), timeout=60)
                backend.request(self.command, self.path, body, {**headers, "Host": f"{host}:{port}"})
                answer = backend.getresponse()
                content = answer.read()
                backend.close()
                if outer.swallows(self.command, self.path):
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                self.send_response(answer.status)
                self.send_header("Content-Type", answer.getheader("Content-Type") or "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = forward  # noqa: N815 (names that http.server looks for)

            def log_message(self, format: str, *args: object) -> None:
                """Log nothing: the tests look at what happened."""

        self._http = ThreadingHTTPServer(("127.0.0.1", listens_on), Handler)
        self.uri = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, daemon=True)

    def swallows(self, method: str, path: str) -> bool:
        end = next((end for end in self._lose if path.partition("?")[0].endswith(end)), None)
        if method not in ("POST", "PATCH") or end is None or self.lost[end]:
            return False
        self.lost[end] += 1
        return True

    def __enter__(self) -> LossyProxy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()
