"""A detached job of this machine as a folder: what was submitted, its state, its log. Client and supervisor.

HOME/jobs/NAME/job.json     what was submitted; never changed
               input/       what the program reads: the document, named by GRACEFUL_RUN_SPEC, and files beside it
               log          of all attempts
               state.json   attempt, process, beginning and end; replaced whole
               stopped      there: it was stopped by a person
               lock         held while the supervisor or its program lives, however the command line came and went
               supervisor   held while the supervisor lives
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from graceful import locks
from graceful.errors import StorageError
from graceful.files import replacing

LOCK, LOG, SUPERVISOR = "lock", "log", "supervisor"
END = 128 * 1024
"""Bytes at the end of a log among which a program's last words are sought."""
PIECE = 1024 * 1024
"""Bytes of a log that are in memory at once; a longer line is given in pieces."""


@dataclass(frozen=True, kw_only=True)
class State:
    """State of one attempt.

    Attributes:
        attempt: 1 for the first.
        pid: The process id of the supervisor, which leads the process group of the program; 0: it never started.
        offset: Bytes of the log that belong to earlier attempts.
        exit_code: None: not over, or its supervisor was killed.
    """

    attempt: int
    pid: int
    offset: int
    exit_code: int | None = None


@dataclass(frozen=True)
class JobFolder:
    """The folder of one job; reading it needs no lock."""

    path: Path

    @property
    def document(self) -> Path:
        """Return the path of the resolved spec, in the folder of what the program reads."""
        return self.path / "input" / "document"

    @property
    def log(self) -> Path:
        """Return the path of what the program wrote."""
        return self.path / LOG

    @property
    def stopped(self) -> Path:
        """Return the path of the file that marks a stopped job."""
        return self.path / "stopped"

    def job(self) -> Mapping[str, Any]:
        """Return what was submitted.

        Raises:
            FileNotFoundError: There is no such job.
        """
        job = self._read("job.json")
        missing = {"command", "env", "cwd", "run_id"} - job.keys()
        if missing:
            raise StorageError(f"{self.path / 'job.json'}: has no {min(missing)}; delete {self.path}")
        return job

    def write_job(self, job: Mapping[str, Any]) -> None:
        """Write what was submitted, once, before the folder has its name."""
        self.write_private(self.path / "job.json", json.dumps(job, indent=1))

    @staticmethod
    def write_private(path: Path, text: str) -> None:
        """Make a file that only its owner may read: specs and variables may hold secrets."""
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())

    def state(self) -> State:
        """Return the newest attempt; attempt 0 before the first."""
        try:
            return State(**self._read("state.json"))
        except FileNotFoundError:
            return State(attempt=0, pid=0, offset=0)
        except TypeError as e:
            raise StorageError(f"{self.path / 'state.json'}: {e}; delete {self.path} to submit the job again") from e

    def write_state(self, state: State) -> None:
        """Replace it, whole or not at all."""
        with replacing(self.path / "state.json") as file:
            file.write(json.dumps(asdict(state)).encode())

    def _read(self, name: str) -> Mapping[str, Any]:
        try:
            content = json.loads((self.path / name).read_text(encoding="utf-8"))
        except ValueError as e:
            raise StorageError(f"{self.path / name}: not JSON; delete {self.path} to submit the job again") from e
        if not isinstance(content, dict):
            raise StorageError(f"{self.path / name}: not a JSON object; delete {self.path} to submit the job again")
        return content

    def end(self, offset: int = 0) -> str:
        """Return the end of the log, at most `END` bytes of it and none of those before an offset."""
        try:
            with self.log.open("rb") as log:
                log.seek(max(offset, log.seek(0, os.SEEK_END) - END))
                return log.read(END).decode("utf-8", errors="replace")
        except FileNotFoundError:
            return ""

    def pieces(self, offset: int) -> Iterator[bytes]:
        """Yield what the log holds after an offset, in pieces of at most `PIECE` bytes."""
        with contextlib.suppress(FileNotFoundError), self.log.open("rb") as log:
            log.seek(offset)
            while chunk := log.read(PIECE):
                yield chunk

    def acquire(self) -> int | None:
        """Return the lock as a file descriptor for a supervisor; None: a process holds it, so the job is alive."""
        return locks.inheritable(self.path / LOCK, mode=0o600)

    def alive(self) -> bool:
        """Return whether a process works on the job; the shared lock keeps readers from taking each other for it."""
        return locks.is_held(self.path / LOCK)

    def lead(self) -> None:
        """Hold the supervisor's own lock for as long as this process lives; programs do not inherit it."""
        locks.inheritable(self.path / SUPERVISOR, mode=0o600)

    def led(self) -> bool:
        """Return whether a supervisor is alive, which passes signals on."""
        return locks.is_held(self.path / SUPERVISOR)
