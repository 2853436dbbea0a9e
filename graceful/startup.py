"""What every process of graceful settles before it works: log level, streams, and how Python is started. Every process.

Standard library alone.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from graceful.environment import LOG_LEVEL_VARIABLE, WORKING_DIRECTORY_VARIABLE
from graceful.errors import SpecError, StorageError

if TYPE_CHECKING:
    import subprocess

Say = Callable[[str], None]
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
DEFAULT_LEVEL = "WARNING"


class StdoutError(StorageError):
    """The result of a command could not be written on stdout."""


def log_level(environment: Mapping[str, str]) -> str:
    """Return the name of the level that the environment asks for, as `logging` takes it.

    Raises:
        SpecError: It names none.
    """
    given = environment.get(LOG_LEVEL_VARIABLE) or DEFAULT_LEVEL
    if given.upper() not in LEVELS:
        raise SpecError(f"{LOG_LEVEL_VARIABLE}: must be one of {', '.join(LEVELS)}, got {given[:40]!r}")
    return given.upper()


def python(module: str, *arguments: str) -> tuple[str, ...]:
    """Return the command that runs a module of ours, or of a dependency, in an interpreter of its own.

    With -P the working directory is not searched for modules: a torch.py or secrets.py that happens to lie there is the
    user's, and no user asked for it to run.
    """
    return (sys.executable, "-P", "-m", module, *arguments)


def answer(
    command: Sequence[str], *, environment: Mapping[str, str], timeout: float | None = None
) -> subprocess.CompletedProcess[str]:
    """Run one of our programs to its end and return what it printed and said, whatever the encoding of the terminal is.

    Raises:
        subprocess.TimeoutExpired: It took longer.
    """
    import subprocess  # the command line starts without it

    return subprocess.run(
        command,
        env={**environment, "PYTHONIOENCODING": "utf-8:backslashreplace"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=timeout,
        check=False,
    )


def working_directory() -> Path:
    """Return the working directory, an absolute path.

    Raises:
        SpecError: It was deleted, so that relative paths mean nothing.
    """
    try:
        return Path.cwd()
    except FileNotFoundError as e:
        raise SpecError("the working directory was deleted; change to a folder that exists (cd) and try again") from e


def search_path(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables with which that command finds graceful where we found it in the working directory alone.

    Raises:
        SpecError: The working directory was deleted; torch cannot be imported in such a folder.
    """
    if str(working_directory()) != _package_root() or sys.flags.safe_path or sys.path[0] not in ("", _package_root()):
        return {}
    return {"PYTHONPATH": os.pathsep.join(filter(None, (environment.get("PYTHONPATH"), _package_root())))}


def leave_working_directory() -> None:
    """Take the working directory, which `python -m` searches first, off the path; not if graceful itself lies there."""
    here = _here()
    if not sys.flags.safe_path and sys.path[0] in ("", here) and _package_root() != here:
        del sys.path[0]


def _here() -> str | None:
    """Return the working directory; None where it was deleted, so that nothing lies in it."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return None


def _package_root() -> str:
    return os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


@contextlib.contextmanager
def outside_working_directory() -> Iterator[None]:
    """Be in the root folder while Ray is started or joined: its workers search the folder where that is first.

    Raises:
        SpecError: The working directory was deleted.
    """
    os.environ[WORKING_DIRECTORY_VARIABLE] = str(working_directory())
    with contextlib.chdir("/"):
        yield


def return_to_working_directory() -> None:
    """Go where the driver is, in a process that began elsewhere: relative paths of a task mean the same there."""
    folder = os.environ.get(WORKING_DIRECTORY_VARIABLE, "")
    if os.path.isdir(folder):
        os.chdir(folder)


def write_anything() -> None:
    """Have stdout and stderr outlive characters that their encoding lacks, and a full disk behind them.

    A result that cannot be written is an error of its own (`StdoutError`); talk that cannot be written is lost.
    """
    for stream, errors in ((sys.stdout, "replace"), (sys.stderr, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)
    if sys.stdout is sys.__stdout__ and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout = _over(_Result, sys.stdout)
    if sys.stderr is sys.__stderr__ and isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr = _over(_Talk, sys.stderr)


def _over(kind: type[io.TextIOWrapper], stream: io.TextIOWrapper) -> io.TextIOWrapper:
    return kind(
        stream.buffer,
        stream.encoding,
        stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,  # instead of line_buffering, under PYTHONUNBUFFERED
    )


class _Result(io.TextIOWrapper):
    def write(self, text: str) -> int:
        if text == "":  # click writes "" and b"" to learn what takes them, and ignores errors
            return 0
        with _translated():
            return super().write(text)

    def flush(self) -> None:
        with _translated():
            super().flush()


class _Talk(io.TextIOWrapper):
    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            return super().write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            super().flush()


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:  # its reader went away, which has an exit code of its own
        raise
    except OSError as e:
        silence_stdout()
        raise StdoutError(f"stdout: the result cannot be written ({e.strerror or e})") from e


@contextlib.contextmanager
def result_on_stdout(say: Say) -> Iterator[None]:
    """Print a result whose exit code is known already: a full disk behind stdout does not change the code.

    Args:
        say: Told of it in one line.
    """
    try:
        yield
        sys.stdout.flush()
    except StdoutError as e:
        say(f"{e.message}; the exit code is that of the result")


def silence_stdout() -> None:
    """Drop what is still to be written: the interpreter flushes once more at its end, and would complain."""
    with contextlib.suppress(OSError, ValueError):  # a stream in memory has no descriptor
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
