"""This machine as a backend: jobs that outlive the command line and its terminal. Runs on the client.

A job is a folder below HOME/jobs and a supervisor (`jobfolder`, `supervisor`); every command reads the folder. What
`graceful refresh` starts and waits for is a child of its own, see `foreground`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from graceful import startup
from graceful.environment import HOME_VARIABLE, RUN_SPEC_VARIABLE
from graceful.errors import EXIT_INFRASTRUCTURE, InfrastructureError, SpecError, StorageError
from graceful.launch import ended, names
from graceful.launch.backend import Change, Difference, Finding, Handle, Part, Phase, Plan, Severity, Status, refuse
from graceful.launch.job import JobSpec
from graceful.launch.local.jobfolder import PIECE, JobFolder
from graceful.patience import Patience

if TYPE_CHECKING:
    from graceful.launch.local.profile import Local

_LOG = logging.getLogger(__name__)
SCHEME = "local"
STOP_SECONDS = 90.0
"""A driver may take so long to write its checkpoint; then it is killed."""
START_SECONDS = 5.0
POLL = 0.2


@dataclass(frozen=True, kw_only=True)
class LocalBackend:
    """Detached jobs of this machine; a `backend.Backend`.

    Attributes:
        profile: Variables that jobs get.
        home: Folder that holds `jobs`; becomes GRACEFUL_HOME of the jobs.
        patience: Clock and pauses.
    """

    profile: Local
    home: Path
    patience: Patience = field(default_factory=Patience)

    def plan(self, job: JobSpec) -> Plan:
        """Describe the job and look whether there is one of its name; change nothing."""
        handle = Handle(scheme=SCHEME, name=names.job_name(job.run_id))
        folder = self._folder(handle)
        change = Change.CREATE
        findings: tuple[Finding, ...] = ()
        with contextlib.suppress(FileNotFoundError):
            same_spec = folder.job()["digest"] == _digest(job)
            change, findings = (Change.NONE, ()) if same_spec else (Change.REFUSED, (_taken(handle, folder),))
        title = f"local job {handle.name}"
        return Plan(
            job=job,
            where=f"this machine, {folder.path}",
            handle=handle,
            documents=({"kind": "LocalJob", "command": list(job.command), "env": self._env(job, folder)},),
            findings=findings,
            parts=(Part(role="this machine", count=1, cpu=float(os.cpu_count() or 1), gpu=job.resources.gpu or 0),),
            differences=(Difference(document=title, change=change),),
            notes=("it goes on when this command and its terminal are gone",),
        )

    def submit(self, planned: Plan, /) -> Handle:
        """Make the folder under its name at once, with the lock held, then start its supervisor.

        Raises:
            SpecError: The plan has errors, or the run id belongs to another spec.
            InfrastructureError: The folder cannot be written, or the supervisor does not start.
        """
        refuse(planned)
        job, folder = planned.job, self._folder(planned.handle)
        try:
            folder.path.parent.mkdir(parents=True, exist_ok=True)
            new = JobFolder(Path(tempfile.mkdtemp(prefix=".new-", dir=folder.path.parent)))
            try:
                self._write(new, job, folder)
                lock = new.acquire()
            except OSError:
                shutil.rmtree(new.path)
                raise
            assert lock is not None
            try:
                new.path.rename(folder.path)
            except OSError:
                os.close(lock)
                shutil.rmtree(new.path)
                if not folder.path.is_dir():
                    raise
                if folder.job()["digest"] != _digest(job):
                    raise SpecError(_taken(planned.handle, folder).line()) from None
                return planned.handle
        except OSError as e:
            raise InfrastructureError(f"{folder.path}: cannot be made ({e.strerror}); choose another --home") from e
        _supervise(folder, lock)
        return planned.handle

    def status(self, handle: Handle) -> Status:
        """Return the status that the job's folder records."""
        return self._status(self._existing(handle))

    def logs(self, handle: Handle, *, follow: bool = False, since: datetime | None = None) -> Iterator[str]:
        """Return the lines of the job's log, of all attempts."""
        folder = self._existing(handle)
        if since is not None:
            raise SpecError("--since: logs of this machine keep no times; leave it out")
        return self._lines(folder, follow=follow)

    def stop(self, handle: Handle) -> Status:
        """Ask the program to end as Ctrl-C does; kill it if it has not after `STOP_SECONDS`."""
        folder = self._existing(handle)
        if (status := self._status(folder)).phase.terminal:
            return status
        folder.stopped.touch()
        signalled: set[str] = set()
        end = self.patience.now() + STOP_SECONDS
        while not (status := self._status(folder)).phase.terminal:
            if pid := folder.state().pid:  # 0: its supervisor is just starting
                with contextlib.suppress(ProcessLookupError):
                    _end_processes(folder, pid, signalled, kill=self.patience.now() >= end)
            self.patience.sleep(POLL)
        return status

    def resume(self, handle: Handle) -> Status:
        """Start the program again on the same document; its log goes on."""
        folder = self._existing(handle)
        end = self.patience.now() + START_SECONDS
        while True:
            status = self._status(folder)
            if status.phase is Phase.SUCCEEDED:
                raise SpecError(f"{status.run_id}: {status.phase}; nothing to resume, give its spec a new name")
            if not status.phase.terminal:
                return status
            if (lock := folder.acquire()) is not None:
                folder.stopped.unlink(missing_ok=True)
                _supervise(folder, lock)
                return self._status(folder)
            if self.patience.now() >= end:
                group = folder.state().pid
                raise InfrastructureError(
                    f"{status.run_id}: a process of its last attempt is alive (group {group}); end it, then resume"
                )
            self.patience.sleep(POLL)

    def list(self) -> Sequence[Status]:
        """Return every job below home, newest first."""
        folders = [JobFolder(path.parent) for path in (self.home / "jobs").glob("[!.]*/job.json")]
        statuses = []
        for folder in folders:
            try:
                statuses.append(self._status(folder))
            except StorageError as e:
                _LOG.warning("%s", e.message)
        return sorted(statuses, key=lambda status: (status.created or _LONG_AGO, status.run_id), reverse=True)

    def _folder(self, handle: Handle) -> JobFolder:
        return JobFolder(self.home / "jobs" / handle.name)

    def _existing(self, handle: Handle) -> JobFolder:
        folder = self._folder(handle)
        if handle.scheme != SCHEME:
            raise SpecError(f"{handle}: not on this machine; choose its profile with --on")
        if not (folder.path / "job.json").is_file():
            raise SpecError(f"no run {handle.name!r} in {folder.path.parent}; `graceful list --on local` shows them")
        return folder

    def _env(self, job: JobSpec, folder: JobFolder) -> dict[str, str]:
        document = {} if job.document is None else {RUN_SPEC_VARIABLE: str(folder.document)}
        defaults = {HOME_VARIABLE: str(self.home), "PYTHONUNBUFFERED": "1"}
        return {**defaults, **document, **self.profile.env, **job.env}

    def _write(self, new: JobFolder, job: JobSpec, folder: JobFolder) -> None:
        new.document.parent.mkdir()
        for name, text in {new.document.name: job.document or "", **job.files}.items():
            new.write_private(new.document.parent / name, text)
        new.write_job(
            {
                "run_id": job.run_id,
                "name": job.name,
                "digest": _digest(job),
                "command": list(job.command),
                "env": self._env(job, folder),
                "cwd": str(startup.working_directory()),
                "created": datetime.now(UTC).isoformat(),
            }
        )

    @staticmethod
    def _status(folder: JobFolder) -> Status:
        alive, job, state = folder.alive(), folder.job(), folder.state()
        ending: ended.Ending | None = None
        if state.exit_code is not None:
            ending = ended.read(state.exit_code, folder.end(state.offset))
            if folder.stopped.exists() and ending.phase is not Phase.SUCCEEDED:
                ending = ended.STOPPED
        elif not alive:
            ending = ended.STOPPED if folder.stopped.exists() else _VANISHED
        return Status(
            handle=Handle(scheme=SCHEME, name=folder.path.name),
            run_id=job["run_id"],
            phase=ending.phase if ending else Phase.RUNNING,
            attempt=max(1, state.attempt),
            cause=ending.cause if ending else "",
            exit_code=ending.exit_code if ending else None,
            created=datetime.fromisoformat(job["created"]),
        )

    def _lines(self, folder: JobFolder, *, follow: bool) -> Iterator[str]:
        offset, partial = 0, b""
        while True:
            ended = not follow or self._status(folder).phase.terminal
            for chunk in folder.pieces(offset):
                offset += len(chunk)
                *lines, partial = (partial + chunk).split(b"\n")
                if len(partial) > PIECE:
                    lines, partial = [*lines, partial], b""
                yield from (line.decode("utf-8", errors="replace") for line in lines)
            if ended:
                yield from [partial.decode("utf-8", errors="replace")] if partial else []
                return
            self.patience.sleep(POLL)


_VANISHED = ended.Ending(
    phase=Phase.FAILED,
    cause="killed with its supervisor, or this machine was restarted; resume goes on from the last checkpoint",
    exit_code=EXIT_INFRASTRUCTURE,
)
_LONG_AGO = datetime.min.replace(tzinfo=UTC)


def _digest(job: JobSpec) -> str:
    return job.labels.get("config-hash", "")


def _taken(handle: Handle, folder: JobFolder) -> Finding:
    message = f"{handle} is there already with another spec (digest {folder.job()['digest'][:12]})"
    remedy = f"give this version another `name`, or stop that one and delete {folder.path}"
    return Finding(rule="run-id-taken", severity=Severity.ERROR, where=str(handle), message=message, remedy=remedy)


def _supervise(folder: JobFolder, lock: int) -> None:
    """Start a supervisor that takes the lock over, and wait until it has written down who it is."""
    try:
        process = subprocess.run(
            startup.python("graceful.launch.local.supervisor", str(folder.path), str(lock)),
            stdin=subprocess.DEVNULL,
            pass_fds=(lock,),
            start_new_session=True,  # Ctrl-C in our terminal must not reach it
            check=False,
        )
    finally:
        os.close(lock)
    if process.returncode != 0:
        raise InfrastructureError(f"{folder.path}: its supervisor does not start; is the disk full?")


def _end_processes(folder: JobFolder, pid: int, signalled: set[str], *, kill: bool) -> None:
    """Ask the supervisor once, which asks the program alone; if it is gone, the group that it led. Late: kill them all.

    While the lock is held there is such a group, so its number belongs to no other process.
    """
    if kill:
        os.killpg(pid, signal.SIGKILL)
    elif folder.led():
        if "supervisor" not in signalled:
            signalled.add("supervisor")
            os.kill(pid, signal.SIGTERM)
    elif "group" not in signalled:
        signalled.add("group")
        os.killpg(pid, signal.SIGTERM)
