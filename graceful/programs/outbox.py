"""Messages of a home that wait until their receivers took them: one file each, oldest first. Driver and client.

A message is written before it is sent and deleted once it was taken, so that none is lost when a command dies; whatever
command comes next sends what waits. Its id is the same each time, so that receivers can tell repetitions, and ids that
were taken are kept, so that a repeated command does not send them again.
"""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from graceful.errors import StorageError
from graceful.programs.webhook import Say, Webhook
from graceful.storage import Mirror, guarded, read_bytes, sha256_json, write_bytes, write_text

FOLDER = "outbox"
KEPT = 1000
"""Messages that wait, and ids of those that were taken; beyond, the oldest are given up."""
LOCK_SECONDS = 30.0
"""Another command that sends is waited for; what is not sent then, it sends too."""
TAKEN = ".taken"


@dataclass(frozen=True, kw_only=True)
class Outbox:
    """The messages of one home.

    Attributes:
        folder: Where they wait.
        receiver: Who is told of a model; None: nobody, its messages stay.
        say: Takes one line where something went wrong.
        mirror: Copies them to a bucket, because a pod's disk dies with it.
        sleep: Waits.
    """

    folder: Path
    receiver: Callable[[str], Webhook | None]
    say: Say
    mirror: Mirror = field(default=Mirror.NONE)
    sleep: Callable[[float], None] = time.sleep

    def post(self, *documents: Mapping[str, Any]) -> None:
        """Put messages into the outbox, then send all that wait. Nothing is raised: what fails is said."""
        for document in documents:
            key = sha256_json(identity(document))[:32]
            data = json.dumps({"id": key, **document}, indent=1, sort_keys=True).encode()
            try:
                self._put(key, data)
            except StorageError as e:
                self.say(f"outbox: {e.message}")
                hook = self.receiver(str(document.get("model")))
                if hook is not None:
                    hook.deliver(key, data, left="it is lost")
        self.flush()

    def flush(self) -> None:
        """Send what waits, oldest first; a receiver that does not take one is not asked for the others."""
        if not self._waiting():
            return
        try:
            with self._locked():
                self._send_all()
        except StorageError as e:
            self.say(f"outbox: {e.message}")

    def restore(self) -> None:
        """Bring what another machine left in the bucket."""
        try:
            self.mirror.restore(self.folder)
        except StorageError as e:
            self.say(f"outbox: {e.message}")

    def adopt(self, folder: Path) -> None:
        """Take over the messages of an outbox of before, when each run had its own."""
        for path in sorted(folder.glob("*.json"), key=_order):
            try:
                write_bytes(self.folder / f"{path.stat().st_mtime_ns:020d}-{path.stem}.json", read_bytes(path))
                self.mirror.forget(path)
            except (StorageError, OSError) as e:
                self.say(f"outbox: {e}")

    def _put(self, key: str, data: bytes) -> None:
        if key in self._taken() or any(_key(path) == key for path in self._waiting()):
            return
        path = write_bytes(self.folder / f"{time.time_ns():020d}-{key}.json", data)
        self.mirror.save(self.folder, only=(path.name,))

    def _send_all(self) -> None:
        """Also what comes while it sends: the command that put it there may not have waited."""
        silent: set[str] = set()
        seen: set[Path] = set()
        while fresh := [path for path in self._waiting() if path not in seen]:
            seen.update(fresh)
            for path in fresh[:-KEPT]:
                self.mirror.forget(path)
            for path in fresh[-KEPT:]:
                self._send(path, silent)

    def _send(self, path: Path, silent: set[str]) -> None:
        try:
            data = read_bytes(path)
            model = str(json.loads(data)["model"])
        except (StorageError, ValueError, KeyError, TypeError) as e:
            if path.exists():  # else another machine's process was faster
                self.say(f"outbox: {path} is no message ({type(e).__name__}); delete it")
            return
        hook = self.receiver(model)
        if hook is None or hook.url in silent:
            return
        if not hook.deliver(_key(path), data, left=f"the next command sends it again ({self.folder})"):
            silent.add(hook.url)
            return
        taken = [*self._taken(), _key(path)][-KEPT:]
        write_text(self.folder / TAKEN, "\n".join(taken) + "\n")
        self.mirror.forget(path)

    def _waiting(self) -> list[Path]:
        return sorted(self.folder.glob("*.json"), key=_order)

    def _taken(self) -> list[str]:
        path = self.folder / TAKEN
        return read_bytes(path).decode("ascii", errors="replace").split() if path.exists() else []

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with guarded(self.folder, "write"):
            file = (self.folder / ".lock").open("a")
        end = time.monotonic() + LOCK_SECONDS
        with file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as e:
                    if time.monotonic() > end:
                        raise StorageError(f"{self.folder}: another command is sending what waits here") from e
                    self.sleep(0.1)
            yield


def identity(document: Mapping[str, Any]) -> list[Any]:
    """What makes two messages the same."""
    return [document.get(key) for key in ("kind", "model", "model_id", "event")]


def _key(path: Path) -> str:
    return path.stem.rpartition("-")[2]


def _order(path: Path) -> tuple[int, str]:
    """When it was written: its name says so, except of messages of before."""
    moment = path.stem.partition("-")[0]
    try:
        return (int(moment) if "-" in path.stem else path.stat().st_mtime_ns), path.name
    except (OSError, ValueError):
        return 0, path.name
