"""Training goes on while a slow bucket takes a checkpoint in: a real S3 server behind a proxy that holds it back."""

from __future__ import annotations

import contextlib
import os
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from graceful.storage.server import client
from graceful.training import trace
from tests.support.s3_server import serving

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]
TASK = Path(__file__).parents[1] / "support" / "slow_task.py"
EVERY, STEP_SECONDS, HELD_SECONDS = 10, 0.1, 3.0
"""Steps between checkpoints, and seconds of a step and of the first file of a checkpoint on its way to the bucket."""


class SlowRoad:
    """A proxy that holds the first file of the first checkpoint back. It passes bytes on, whatever they say, because
    pyarrow sends pieces whose length is not in a header.

    Args:
        target: Address of the server.
        steps: Returns how many steps have been trained.

    Attributes:
        uri: Its address.
        meanwhile: Steps that were trained while the file was held back.
    """

    def __init__(self, target: str, *, steps: Callable[[], int]) -> None:
        self.meanwhile: list[int] = []
        self._steps, self._first = steps, threading.Lock()
        place, outer = urlsplit(target), self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with socket.create_connection((place.hostname, place.port)) as server:
                    back = threading.Thread(target=outer.carry, args=(server, self.request), daemon=True)
                    back.start()
                    outer.carry(self.request, server)
                    back.join(60)

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.uri = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> SlowRoad:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def carry(self, source: socket.socket, target: socket.socket) -> None:
        """Pass bytes on until one side is done."""
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                head = data.split(b"\r\n", 1)[0]
                if head.startswith(b"PUT ") and b"/step-" in head and self._first.acquire(blocking=False):
                    before = self._steps()
                    time.sleep(HELD_SECONDS)
                    self.meanwhile.append(self._steps() - before)
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with serving() as endpoint:
        client().create_bucket(Bucket="slow")
        yield endpoint


SPEC = """
model: points
name: v1
task: {{kind: python, file: {task}, options: {{seconds: {seconds}}}}}
train: {{epochs: 2, batch_size: 8, num_workers: {workers}, checkpoint_every: {every}, engine: {{kind: torch}}}}
"""


@pytest.mark.parametrize("workers", [0, 1])
def test_training_does_not_wait_for_a_slow_bucket(server: str, tmp_path: Path, workers: int) -> None:
    """In one process, and on a worker of Ray, which writes to the bucket through pyarrow."""
    written, home = tmp_path / "v1.yaml", tmp_path / "home"
    written.write_text(SPEC.format(task=TASK, seconds=STEP_SECONDS, workers=workers, every=EVERY))

    def steps() -> int:
        return sum(row["event"] == "step" for row in trace.read(home / "runs" / "points-v1" / trace.FILE))

    with SlowRoad(server, steps=steps) as road:
        storage = {"GRACEFUL_STORAGE": f"s3://slow/{workers}", "AWS_ENDPOINT_URL": road.uri}
        env = {**os.environ, "GRACEFUL_HOME": str(home), **storage}
        command = [sys.executable, "-m", "graceful.cli", "train", str(written)]
        subprocess.run(command, env=env, check=True, capture_output=True, timeout=500)
    assert road.meanwhile, "no checkpoint passed the proxy"
    # It waits with its next checkpoint until this one has arrived; the trace is at most 0.1 s behind.
    assert EVERY // 2 <= road.meanwhile[0] <= EVERY
    assert steps() > 2 * EVERY
