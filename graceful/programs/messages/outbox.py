"""Messages of a home that wait for delivery: one file for each, oldest first. Driver and client.

A message is written before it is sent and deleted once it was taken, so that none is lost when a command dies; whatever
command comes next sends what waits. Its id is the same each time, so that receivers can tell repetitions, and ids that
were taken are kept, so that a repeated command does not send them again.

Whoever may write to the bucket can put messages there. With a secret, the name of a message therefore holds an HMAC
over it, and a message that came from the bucket is sent, and so signed for its receiver, only if its HMAC fits:

TIME-ID.json          made without a secret, or by an earlier release
TIME.HMAC-ID.json     made with one
.NAME.from-bucket     there: NAME was brought from the bucket; never copied to it
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from graceful import locks
from graceful.environment import WEBHOOK_SECRET_VARIABLE
from graceful.errors import IntegrityError, StorageError
from graceful.programs.messages.webhook import Say, Webhook
from graceful.storage import Mirror, guarded, list_objects, read_bytes, sha256_json, write_bytes, write_text

FOLDER = "outbox"
KEPT = 1000
"""Messages that wait, and ids of those that were taken; beyond, the oldest are given up."""
LOCK_SECONDS = 30.0
"""Another command that sends is waited for; what is not sent then, it sends too."""
TAKEN = ".taken"
_NAME = re.compile(r"\w[\w.-]*\.json", re.ASCII)
_NAMED = 5
"""Messages whose names one line lists."""


@dataclass(frozen=True, kw_only=True)
class Outbox:
    """The messages of one home.

    Attributes:
        folder: Where they wait.
        receiver: Receiver of a model's messages; None: there is none, and the messages stay.
        say: Takes one line where something went wrong.
        mirror: Copies them to a bucket, because a pod's disk dies with it.
        secret: Key of the HMAC of messages; empty: they have none, and all are sent.
    """

    folder: Path
    receiver: Callable[[str], Webhook | None]
    say: Say
    mirror: Mirror = field(default=Mirror.NONE)
    secret: str = field(default="", repr=False)

    def post(self, *documents: Mapping[str, Any]) -> None:
        """Put messages into the outbox, then send all that wait. Nothing is raised: what fails is said."""
        for document in documents:
            key = sha256_json(identity(document))[:32]
            data = json.dumps({"id": key, **document}, indent=1, sort_keys=True).encode()
            try:
                path = self._put(key, data)
            except StorageError as e:
                self.say(f"outbox: {e.message}")
                hook = self.receiver(str(document.get("model")))
                if hook is not None:
                    hook.deliver(key, data, waits_for="it is lost")
            else:
                self._save(path)
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
        """Bring what another machine left in the bucket, each message marked as one that came from there."""
        if self.mirror.uri is None:
            return
        try:
            stored = list_objects(self.mirror.copy_uri(self.folder))
        except StorageError as e:
            self.say(f"outbox: {e.message}")
            return
        names = [item.uri.removeprefix(f"{self.mirror.copy_uri(self.folder)}/") for item in stored]
        for path in (self.folder / name for name in names if _NAME.fullmatch(name)):
            try:
                if not path.exists():
                    self._fetch(path)
            except (StorageError, IntegrityError, OSError) as e:
                self.say(f"outbox: {e}")

    def adopt(self, folder: Path) -> None:
        """Take over the messages of an earlier release, in which each run had an outbox.

        Where there is a bucket, it may have been the bucket that brought them.
        """
        for path in sorted(folder.glob("*.json"), key=_order):
            try:
                name = f"{path.stat().st_mtime_ns:020d}-{path.stem}.json"
                if self.mirror.uri is not None:
                    write_bytes(_mark(self.folder / name), b"")
                write_bytes(self.folder / name, read_bytes(path))
                self.mirror.save(self.folder, only=(name,))
                self.mirror.delete(path)
            except (StorageError, OSError) as e:
                self.say(f"outbox: {e}")

    def _put(self, key: str, data: bytes) -> Path | None:
        """Return the file of a message; None: it was taken before, or waits already."""
        if key in self._taken() or any(_key(path) == key and not self._is_foreign(path) for path in self._waiting()):
            return None
        moment = f"{time.time_ns():020d}"
        fitting = f".{self._hmac(moment, key, data)}" if self.secret else ""
        return write_bytes(self.folder / f"{moment}{fitting}-{key}.json", data)

    def _save(self, path: Path | None) -> None:
        """Copy a message to the bucket; where that fails it waits here alone."""
        try:
            self.mirror.save(self.folder, only=() if path is None else (path.name,))
        except StorageError as e:
            self.say(f"outbox: {e.message}")

    def _fetch(self, path: Path) -> None:
        """Bring one message from the bucket; its mark comes first, so that no other command sees it without."""
        write_bytes(_mark(path), b"")
        if not self.mirror.restore_file(path):  # another machine delivered it meanwhile
            _mark(path).unlink(missing_ok=True)

    def _forget(self, path: Path) -> None:
        self.mirror.delete(path)
        _mark(path).unlink(missing_ok=True)

    def _hmac(self, moment: str, key: str, data: bytes) -> str:
        """Return the signature of a kept message; it covers the name too, and differs from those that receivers get."""
        named = f"outbox.{moment}.{key}.".encode(errors="surrogateescape")
        return hmac.new(self.secret.encode(), named + data, hashlib.sha256).hexdigest()

    def _is_foreign(self, path: Path) -> bool:
        """Return whether a message came from the bucket and was made without the secret."""
        if not self.secret or not _mark(path).exists():
            return False
        moment, _, signature = path.stem.rpartition("-")[0].partition(".")
        try:
            expected = self._hmac(moment, _key(path), read_bytes(path))
        except StorageError:
            return path.exists()  # else another command has sent it meanwhile
        return not hmac.compare_digest(signature.encode(errors="surrogateescape"), expected.encode())

    def _send_all(self) -> None:
        """Send all messages, also those that arrive meanwhile: the command that wrote them may not have waited."""
        silent: set[str] = set()
        seen: set[Path] = set()
        foreign: list[Path] = []
        while fresh := [path for path in self._waiting() if path not in seen]:
            seen.update(fresh)
            foreign += [path for path in fresh if self._is_foreign(path)]
            own = [path for path in fresh if path not in foreign]
            for path in own[:-KEPT]:
                self._forget(path)
            for path in own[-KEPT:]:
                self._send(path, silent)
        if foreign:
            names = ", ".join(path.name for path in foreign[:_NAMED]) + (" ..." if len(foreign) > _NAMED else "")
            self.say(
                f"outbox: {len(foreign)} messages came from the bucket without an HMAC that fits"
                f" {WEBHOOK_SECRET_VARIABLE} and are not sent: {names}; delete them in {self.folder} and"
                f" {self.mirror.display_path(self.folder)}"
            )

    def _send(self, path: Path, silent: set[str]) -> None:
        try:
            data = read_bytes(path)
            model = str(json.loads(data)["model"])
        except (StorageError, ValueError, KeyError, TypeError, RecursionError) as e:
            if path.exists():  # else another machine's process was faster
                self.say(f"outbox: {path} is not a message ({type(e).__name__}); delete it")
            return
        hook = self.receiver(model)
        if hook is None or hook.url in silent:
            return
        if not hook.deliver(_key(path), data, waits_for=f"the next command sends it again ({self.folder})"):
            silent.add(hook.url)
            return
        taken_keys = [*self._taken(), _key(path)][-KEPT:]
        write_text(self.folder / TAKEN, "\n".join(taken_keys) + "\n")
        self._forget(path)

    def _waiting(self) -> list[Path]:
        return sorted(self.folder.glob("*.json"), key=_order)

    def _taken(self) -> list[str]:
        path = self.folder / TAKEN
        return read_bytes(path).decode("ascii", errors="replace").split() if path.exists() else []

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with ExitStack() as locks_held:
            with guarded(self.folder, "write"):
                try:
                    locks_held.enter_context(locks.exclusive(self.folder / ".lock", seconds=LOCK_SECONDS))
                except BlockingIOError as e:
                    raise StorageError(f"{self.folder}: another command is sending what waits here") from e
            yield


def identity(document: Mapping[str, Any]) -> list[Any]:
    """Return what makes two messages the same."""
    return [document.get(key) for key in ("kind", "model", "model_id", "event")]


def _key(path: Path) -> str:
    return path.stem.rpartition("-")[2]


def _mark(path: Path) -> Path:
    """Return the file that says that a message came from the bucket."""
    return path.with_name(f".{path.name}.from-bucket")


def _order(path: Path) -> tuple[int, str]:
    """Return when it was written: its name says so, except in messages of older versions."""
    moment = path.stem.partition("-")[0].partition(".")[0]
    try:
        return (int(moment) if "-" in path.stem else path.stat().st_mtime_ns), path.name
    except (OSError, ValueError):
        return 0, path.name
