"""Run a job as a child process of this one: inherit its output, pass signals on, wait. Runs on the client.

The child leads a process group of its own, so that Ctrl-C in a terminal reaches it exactly once and through us: a
second interrupt in the middle of writing a checkpoint would spoil it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import FrameType

from graceful.errors import EXIT_HELD, EXIT_INTERRUPTED, EXIT_PASSED, InfrastructureError
from graceful.launch.job import JobSpec

PATIENCE = 3
"""The third interrupt kills the child and everything in its group."""
FORWARDED = {signal.SIGINT: signal.SIGINT, signal.SIGTERM: signal.SIGTERM, signal.SIGHUP: signal.SIGTERM}
DEFERRED = frozenset({signal.SIGINT, signal.SIGTERM})


def run(job: JobSpec, *, deferred: bool = False, interrupt_wins: bool = False, inherited: Sequence[int] = ()) -> int:
    """Start the job, pass SIGINT, SIGTERM and SIGHUP on to it, wait for its end.

    Args:
        job: What to run.
        deferred: The program starts with SIGINT and SIGTERM blocked and unblocks them when it is ready for them; an
            interrupt during its imports waits until then.
        interrupt_wins: An interrupt is reported even if the program still came to a verdict, for callers that would go
            on to the next job.
        inherited: File descriptors that stay open in the program: locks that must not fall when this process is killed.

    Returns:
        Its exit code; 130 if it was interrupted, unless it still came to a verdict (0 or 3).

    Raises:
        InfrastructureError: It cannot be started, or a signal that we did not send ended it.
    """
    relay = _Relay()
    with relay.listening():
        relay.child = _start(job, blocked=DEFERRED if deferred else frozenset(), inherited=inherited)
        if relay.interrupts:  # arrived while the child was starting
            relay.child.terminate()
        with contextlib.suppress(BrokenPipeError):  # it ended before it read everything; its exit code says why
            if relay.child.stdin is not None:
                with relay.child.stdin as stream:
                    stream.write(job.document or "")
        code = relay.child.wait()
    return _exit_code(job, code, interrupted=relay.interrupts > 0, interrupt_wins=interrupt_wins)


def _start(job: JobSpec, *, blocked: frozenset[signal.Signals], inherited: Sequence[int]) -> subprocess.Popen[str]:
    previous_mask = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    try:
        return subprocess.Popen(
            job.command,
            env={**os.environ, **job.env},
            stdin=None if job.document is None else subprocess.PIPE,
            text=True,
            encoding="utf-8",
            process_group=0,
            pass_fds=inherited,
        )
    except OSError as e:
        raise InfrastructureError(f"{job.name}: cannot start {job.command[0]} ({e.strerror}); check the path") from e
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous_mask)


def _exit_code(job: JobSpec, code: int, *, interrupted: bool, interrupt_wins: bool) -> int:
    if interrupted and (interrupt_wins or code not in (EXIT_PASSED, EXIT_HELD)):
        return EXIT_INTERRUPTED
    if code < 0:
        name = signal.Signals(-code).name
        hint = "; out of memory is the usual reason" if -code == signal.SIGKILL else ""
        raise InfrastructureError(f"{job.name}: ended by {name}{hint}; run the same command again to resume")
    return code


@dataclass(kw_only=True)
class _Relay:
    """Pass on the signals that people and schedulers send us."""

    child: subprocess.Popen[str] | None = None
    interrupts: int = 0

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Take over the signals, and give them back."""
        previous_handlers = {number: signal.signal(number, self._forward) for number in FORWARDED}
        try:
            yield
        finally:
            for number, handler in previous_handlers.items():
                signal.signal(number, handler)

    def _forward(self, number: int, frame: FrameType | None) -> None:
        self.interrupts += 1
        if self.child is None or self.child.poll() is not None:
            return
        if self.interrupts >= PATIENCE:
            os.killpg(self.child.pid, signal.SIGKILL)
        else:
            self.child.send_signal(FORWARDED[signal.Signals(number)])
