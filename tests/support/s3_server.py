"""A real S3 server for tests, and a proxy in front of it that does what networks and busy servers do.

The server is the test bed's versitygw where there is a test bed, else moto's, which checks signatures, too. The proxy
forwards requests as they are, so that their signatures hold.
"""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from graceful.storage import server

TESTBED = Path(__file__).resolve().parents[3] / "shared" / "testbed" / "testbed"


@contextlib.contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables for a while; boto3 must not take a client built before, nor patience with another server."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    server.reset()
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            os.environ.update({name: value} if value is not None else {})
        server.reset()


@contextlib.contextmanager
def serving(*, signed: bool = True) -> Iterator[str]:
    """Yield the address of the server, with the variables that lead to it set.

    Args:
        signed: Every request is signed in its headers. moto can check no other signature, such as those that MLflow's
            server puts into addresses; with False it checks none.
    """
    if TESTBED.exists():
        with _testbed() as endpoint, environment(variables(endpoint, "graceful", "graceful-secret")):
            yield endpoint
        return
    with _moto(signed=signed) as (endpoint, key, secret), environment(variables(endpoint, key, secret)):
        yield endpoint


@contextlib.contextmanager
def unsigned() -> Iterator[str]:
    """moto's server without a look at signatures, so that a proxy may change requests; yields its address."""
    with _moto(signed=False) as (endpoint, key, secret), environment(variables(endpoint, key, secret)):
        yield endpoint


@contextlib.contextmanager
def _moto(*, signed: bool) -> Iterator[tuple[str, str, str]]:
    """Serve S3 from a process of its own; yields its address, and the keys of a user that may do everything.

    moto keeps objects and its settings once in a process, so that two servers in one would share them. Signatures are
    checked once that user exists.
    """
    import boto3

    setup = {"INITIAL_NO_AUTH_ACTION_COUNT": "3"} if signed else {}
    with _moto_process({**os.environ, **setup}) as endpoint:
        with environment(variables(endpoint, "nobody", "nothing")):
            iam = boto3.Session().client("iam")
            iam.create_user(UserName="graceful")
            everything = {
                "Version": "2012-10-17",
                "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}],
            }
            iam.put_user_policy(UserName="graceful", PolicyName="all", PolicyDocument=json.dumps(everything))
            key = iam.create_access_key(UserName="graceful")["AccessKey"]
        yield endpoint, key["AccessKeyId"], key["SecretAccessKey"]


@contextlib.contextmanager
def _moto_process(shell: Mapping[str, str]) -> Iterator[str]:
    """Start moto's server with these variables, and yield its address once it answers."""
    with tempfile.TemporaryFile("w+") as said:
        port = _free_port()
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        process = subprocess.Popen(command, env=dict(shell), stdout=said, stderr=subprocess.STDOUT)
        try:
            end = time.monotonic() + 120
            while not _listens(port):
                said.seek(0)
                assert process.poll() is None, f"moto's server ended with {process.returncode}: {said.read()}"
                assert time.monotonic() < end, "moto's server did not start"
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(timeout=30)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _listens(port: int) -> bool:
    with socket.socket() as asking:
        asking.settimeout(1)
        return asking.connect_ex(("127.0.0.1", port)) == 0


@contextlib.contextmanager
def _testbed() -> Iterator[str]:
    """With a home of its own, so that another test run's server is left alone."""
    home = Path(tempfile.mkdtemp(prefix="graceful-s3-"))
    (home / "bin").symlink_to(_binaries())
    try:
        yield f"http://127.0.0.1:{_started(home)}"
    finally:
        _command(home, "down", port=0)
        shutil.rmtree(home, ignore_errors=True)


def _binaries() -> Path:
    """Return where the test bed's programs are unpacked, which takes seconds and happens once a machine."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    usual, own = cache / "graceful-testbed", cache / "graceful-testbed-s3"
    if (usual / "bin" / ".release").exists():
        return usual / "bin"
    own.mkdir(parents=True, exist_ok=True)
    with (own / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (own / "bin" / ".release").exists():
            _started(own)
            _command(own, "down", port=0)
    return own / "bin"


def _started(home: Path) -> int:
    """Start a server and return its port. Another process may take a port that was free; then a second one is tried."""
    for _ in range(5):
        port = _free_port()
        done = _command(home, "up", port=port)
        if done.returncode == 0:
            return port
    pytest.fail(f"the S3 server did not start: {done.stderr}")


def _command(home: Path, verb: str, *, port: int) -> subprocess.CompletedProcess[str]:
    shell = {**os.environ, "TESTBED_HOME": str(home), "S3_PORT": str(port)}
    with tempfile.TemporaryFile("w+") as errors:  # a pipe would stay open as long as the server lives
        done = subprocess.run(
            [TESTBED, "s3", verb], check=False, env=shell, stdout=subprocess.DEVNULL, stderr=errors, text=True
        )
        errors.seek(0)
        done.stderr = errors.read()
    return done


def variables(endpoint: str, key: str, secret: str) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_DEFAULT_REGION": "us-east-1",
        "NO_PROXY": "127.0.0.1",
    }


class BadRoad:
    """A proxy whose answers break by chance: seeded, so that a test can be repeated.

    Args:
        target: Address of the server.
        error: Chance that a request is answered with 500 and never reaches the server.
        cut: Chance that the body of an answer ends in the middle.
        pause: Seconds between two pieces of a body.
        lost: Chance that a write reaches the server and the connection ends before its answer.
        without: Name of a header that is not forwarded.
        most: Faults in all; afterwards the road is good.
    """

    def __init__(
        self,
        target: str,
        *,
        error: float = 0,
        cut: float = 0,
        pause: float = 0,
        lost: float = 0,
        without: str = "",
        most: int = 1000,
        seed: int = 0,
    ) -> None:
        self.met: Counter[str] = Counter()
        self.seen: list[str] = []
        self.closed = False
        self._host, self._chance, self._lock = urlsplit(target).netloc, random.Random(seed), threading.Lock()
        self._error, self._cut, self._pause, self._most = error, cut, pause, most
        self._lost, self._without = lost, without.lower()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def forward(self) -> None:
                outer.forward(self)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = forward  # noqa: N815 (names that http.server looks for)

            def log_message(self, format: str, *args: object) -> None:
                """Log nothing: the tests look at what happened."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.uri = f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> BadRoad:
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def forward(self, request: BaseHTTPRequestHandler) -> None:
        """Answer one request, well or badly."""
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        with self._lock:
            self.seen.append(f"{request.command} {request.path}")
        if self.closed:
            request.close_connection = True
            request.connection.shutdown(socket.SHUT_RDWR)
            return
        if self._strikes("500", self._error):
            request.send_response(500)
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        server = http.client.HTTPConnection(self._host, timeout=60)
        server.putrequest(request.command, request.path, skip_host=True, skip_accept_encoding=True)
        for name, value in request.headers.items():
            if name.lower() != self._without:
                server.putheader(name, value)
        server.endheaders(body)
        answer = server.getresponse()
        if request.command == "PUT" and self._strikes("lost", self._lost):
            request.close_connection = True
            request.connection.shutdown(socket.SHUT_RDWR)
            return
        self._answer(request, answer, answer.read())
        server.close()

    def _answer(self, request: BaseHTTPRequestHandler, answer: http.client.HTTPResponse, content: bytes) -> None:
        request.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                request.send_header(name, value)
        request.send_header("Content-Length", answer.getheader("Content-Length") or str(len(content)))
        request.end_headers()
        cut = len(content) > 1 and request.command == "GET" and self._strikes("cut", self._cut)
        step = max(len(content) // 8, 1)
        for start in range(0, len(content) // 2 if cut else len(content), step):
            time.sleep(self._pause)
            request.wfile.write(content[start : start + step] if not cut else content[start : start + 1])
        if cut:
            request.close_connection = True
            request.connection.shutdown(socket.SHUT_RDWR)

    def _strikes(self, name: str, chance: float) -> bool:
        with self._lock:
            hit = self.met.total() < self._most and self._chance.random() < chance
            self.met.update([name] if hit else [])
            return hit
