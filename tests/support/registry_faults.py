"""Many writers of one model at once, through a network in which every request goes wrong once.

Each writer registers a version and makes it champion, repeating its command until it is done, as a person or a job
would. Afterwards the registry is asked, without faults, whether everything is there once.
"""

from __future__ import annotations

import hashlib
import http.client
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from graceful.errors import RegistryError
from graceful.lineage import LineageRecord, Store, events
from tests.support import mlflow_versions as versions

MACHINES = 4
"""Folders of local state: writers of one share a file lock, those of different ones do not."""
MOST_ATTEMPTS = 400
REFUSALS = 2
"""After so many writers that were faster, one gives up."""


class Fault(StrEnum):
    """What happens to every request the first time it is made."""

    NONE = "none"
    ANSWER_LOST = "answer lost after commit"
    REQUEST_LOST = "connection lost before commit"
    REFUSED = "500 before commit"
    UNSURE = "503 after commit"
    CLIENT_DIES = "writer dies after each of its calls"
    SERVER_KILLED = "server killed and started again"


@dataclass(kw_only=True)
class WriterRun:
    """Result of one run of many writers, and of the reading afterwards.

    Attributes:
        attempts: How often the writers' commands were run.
        injected: Faults that happened.
        promoted: Names of the versions whose promotion a writer was told to have succeeded; the others were refused.
    """

    fault: Fault
    model: str
    writers: int
    attempts: int = 0
    injected: int = 0
    versions_found: int = 0
    edges_wrong: int = 0
    champions: int = 0
    events_lost: int = 0
    events_repeated: int = 0
    moves_lost: int = 0
    promoted: set[str] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)
    repairs: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def row(self) -> dict[str, Any]:
        """For the result file."""
        return {
            "fault": str(self.fault),
            "attempts": self.attempts,
            "faults_injected": self.injected,
            "versions_expected": self.writers + 1,
            "versions_found": self.versions_found,
            "champions": self.champions,
            "events_expected": len(self.promoted) + 1,
            "events_lost": self.events_lost,
            "events_repeated": self.events_repeated,
            "edges_wrong": self.edges_wrong,
            "moves_lost": self.moves_lost,
        }

    @property
    def good(self) -> bool:
        """Return whether nothing was lost or doubled."""
        found = (self.versions_found, self.champions, self.events_lost, self.events_repeated, self.edges_wrong)
        return found == (self.writers + 1, 1, 0, 0, 0) and not self.moves_lost and not self.failures


def run_writers(
    uri: str,
    folder: Path,
    fault: Fault,
    writers: int,
    *,
    model: str,
    meanwhile: Callable[[], None] | None = None,
) -> WriterRun:
    """Let `writers` register and promote at once, then look.

    Args:
        uri: Of a real server.
        folder: For bundles and local state.
        fault: What goes wrong.
        writers: How many at once.
        model: Model family, new.
        meanwhile: Called once while they are at work, e.g. to kill the server.
    """
    found = WriterRun(fault=fault, model=model, writers=writers)
    direct = Store(uri, folder / "direct")
    first = direct.register(versions.registration(direct, folder, "v0", model=model))
    direct.promote(model, first.version, expected=None, reason="first", actor="writer")
    with _proxy(uri, fault) as proxy:
        threads = [
            threading.Thread(target=_write, args=(found, proxy, folder, first, number))
            for number in range(1, writers + 1)
        ]
        for thread in threads:
            thread.start()
        if meanwhile is not None:
            meanwhile()
        for thread in threads:
            thread.join()
        found.injected += proxy.injected
    _look(found, Store(uri, folder / "after"), first)
    return found


def _write(found: WriterRun, proxy: _Proxy, folder: Path, first: LineageRecord, number: int) -> None:
    """One writer, who repeats what failed until his version is champion, or another one was faster."""
    lock, expected, refusals = found.lock, None, 0
    dying, client = found.fault is Fault.CLIENT_DIES, None
    for attempt in range(MOST_ATTEMPTS):
        with lock:
            found.attempts += 1
        store = Store(f"{proxy.uri}/c{number}", folder / f"machine{number % MACHINES}")
        try:
            # one connection for all attempts: it is not what is tested
            client = client or store.registry.client
            store.registry.__dict__["client"] = client
            if dying and attempt < 2:
                # the first attempt dies at a call of the registration, the second at one of the promotion
                store.registry.__dict__["client"] = _Dying(client, after=number, late=attempt == 1)
            item = versions.registration(store, folder, f"v{number}", [first], model=found.model)
            record = store.register(item)
            if dying and attempt == 1:
                store.registry.client.begin()
            expected = store.registry.aliases(found.model)["champion"] if expected is None else expected
            store.promote(found.model, record.version, expected=expected, reason=f"v{number}", actor=f"writer {number}")
            with lock:
                found.promoted.add(f"v{number}")
            return
        except Died:
            with lock:
                found.injected += 1
        except RegistryError as e:
            if found.fault is Fault.SERVER_KILLED:
                time.sleep(1.0)  # it takes a while to come back
            if "expected" in e.facts:  # another writer was faster: judge again, but not forever
                refusals, expected = refusals + 1, None
                if refusals == REFUSALS:
                    return
        except Exception as e:  # noqa: BLE001  # a thread must not swallow what it found
            with lock:
                found.failures.append(f"writer {number}: {type(e).__name__}: {e}")
            return
    with lock:
        found.failures.append(f"writer {number}: not done after {MOST_ATTEMPTS} attempts")


class Died(BaseException):
    """The writer's process ended here."""


class _Dying:
    """A client whose process dies right after one of its calls.

    Args:
        real: The client.
        after: Number of the call.
        late: Count from `begin` on.
    """

    def __init__(self, real: Any, *, after: int, late: bool) -> None:
        self._real, self._left, self._counts = real, after, not late

    def begin(self) -> None:
        self._counts = True

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._real, name)

        def call(*arguments: Any, **named: Any) -> Any:
            answer = real(*arguments, **named)
            if self._counts:
                self._left -= 1
                if self._left == 0:
                    raise Died
            return answer

        return call


def _look(found: WriterRun, store: Store, first: LineageRecord) -> None:
    """Settle what dead writers left, then compare with what must be there."""
    found.repairs = [f"{item.where}: {item.what}" for item in store.repair(found.model)]
    listed = store.versions(found.model)
    found.versions_found = len(listed)
    records = store.records(found.model, [item.model_id for item in listed])
    names = Counter(record.name for record in records)
    found.edges_wrong = sum(count - 1 for count in names.values()) + sum(
        [edge.model_id for edge in record.edges] != [first.model_id]
        or [parent.model_id for parent in record.parents] != [first.model_id]
        for record in records
        if record.name != "v0"
    )
    found.champions = sum("champion" in item.aliases for item in listed)
    done = [event for event in store.history(found.model) if event.status == events.DONE and event.kind == "promotion"]
    told = Counter(event.name for event in done)
    found.events_lost = len({"v0", *found.promoted} - {*told})
    found.events_repeated = sum(count - 1 for count in told.values()) + len({*told} - {"v0", *found.promoted})
    moves = [None, *(event.version for event in done)]
    found.moves_lost = sum(event.before != before for event, before in zip(done, moves, strict=False))
    champion = next((item.version for item in listed if "champion" in item.aliases), None)
    found.moves_lost += champion != moves[-1]


# --- the network ------------------------------------------------------------------------------------------------------


class _Proxy(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 512

    def __init__(self, target: str, fault: Fault) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.host, self.port = target.removeprefix("http://").split(":")
        self.fault, self.injected = fault, 0
        self.uri = f"http://127.0.0.1:{self.server_address[1]}"
        self._met: set[bytes] = set()
        self._lock = threading.Lock()

    def draw(self, *parts: bytes) -> Fault:
        """Return the fault of a request: that of the run where the request is made for the first time."""
        if self.fault in (Fault.NONE, Fault.CLIENT_DIES, Fault.SERVER_KILLED):
            return Fault.NONE
        key = hashlib.sha256(b"\0".join(parts)).digest()
        with self._lock:
            if key in self._met:
                return Fault.NONE
            self._met.add(key)
            self.injected += 1
            return self.fault

    def handle_error(self, request: object, client_address: object) -> None:
        """Connections that end are part of the game."""


class _Handler(BaseHTTPRequestHandler):
    server: _Proxy

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""

    def forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.server.draw(self.command.encode(), self.path.encode(), body)
        if fault is Fault.REQUEST_LOST:
            return self._hang_up()
        if fault is Fault.REFUSED:
            return self._answer(500, b"{}")
        _, _, path = self.path[1:].partition("/")  # the first part is the writer's
        headers = {key: value for key, value in self.headers.items() if key.lower() not in ("host", "connection")}
        try:
            backend = http.client.HTTPConnection(self.server.host, int(self.server.port), timeout=60)
            backend.request(self.command, f"/{path}", body, headers)
            answer = backend.getresponse()
            content = answer.read()
            backend.close()
        except OSError:
            return self._hang_up()
        if fault is Fault.ANSWER_LOST:
            return self._hang_up()
        if fault is Fault.UNSURE:
            return self._answer(503, b"{}")
        return self._answer(answer.status, content, answer.getheader("Content-Type") or "application/json")

    do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = forward  # noqa: N815 (names that http.server looks for)

    def _answer(self, status: int, content: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def _proxy(target: str, fault: Fault) -> Iterator[_Proxy]:
    proxy = _Proxy(target, fault)
    thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.shutdown()
        proxy.server_close()
        thread.join(timeout=10)
