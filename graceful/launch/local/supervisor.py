"""Runs one detached job to its end: `python -m graceful.launch.local.supervisor FOLDER LOCK`. A process of its own.

It outlives the command that started it, because a process must be there to learn the exit code. It forks and leaves its
session before it does anything, writes down who it is, and only then lets the command go on. Standard library alone.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import FrameType

from graceful.environment import RESUMES_VARIABLE
from graceful.errors import EXIT_INFRASTRUCTURE
from graceful.launch.local.jobfolder import JobFolder, State

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main(arguments: list[str]) -> int:
    """Leave the session and supervise; the starting process returns once the state is written."""
    folder, lock = JobFolder(Path(arguments[0])), int(arguments[1])
    read_end, write_end = os.pipe()
    if os.fork():
        os.close(write_end)
        return 0 if os.read(read_end, 1) else EXIT_INFRASTRUCTURE
    os.setsid()
    os.close(read_end)
    return _Supervisor(folder, lock).run(write_end)


class _Supervisor:
    def __init__(self, folder: JobFolder, lock: int) -> None:
        self.folder, self.lock = folder, lock
        self.child: subprocess.Popen[bytes] | None = None
        self.stopping = False

    def run(self, write_end: int) -> int:
        """Start the program, pass stops on, write down how it ended."""
        for number in SIGNALS:
            signal.signal(number, self._stop)
        self.folder.lead()
        with self.folder.log.open("ab", buffering=0) as log:
            previous = self.folder.state()
            state = State(attempt=previous.attempt + 1, pid=os.getpid(), offset=log.seek(0, os.SEEK_END))
            self.folder.write_state(state)
            os.write(write_end, b"1")
            os.close(write_end)
            self._leave_the_terminal(log.fileno())
            code = self._program(log.fileno())
        self.folder.write_state(replace(state, exit_code=code))
        return 0

    def _program(self, log: int) -> int:
        job = self.folder.job()
        try:
            self.child = subprocess.Popen(
                job["command"],
                env={**os.environ, **job["env"], RESUMES_VARIABLE: str(self.folder.state().attempt - 1)},
                cwd=job["cwd"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(self.lock,),  # the job is alive as long as its program is
            )
        except OSError as e:
            os.write(log, f"graceful: cannot start {job['command'][0]} ({e.strerror}); check the path\n".encode())
            return EXIT_INFRASTRUCTURE
        if self.stopping:  # arrived while the program was starting
            self.child.terminate()
        return self.child.wait()

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.stopping = True
        if self.child is not None and self.child.poll() is None:
            self.child.terminate()

    @staticmethod
    def _leave_the_terminal(log: int) -> None:
        """Redirect all output to the log, so that a reader of the command's output does not wait for us."""
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        os.dup2(log, 1)
        os.dup2(log, 2)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
