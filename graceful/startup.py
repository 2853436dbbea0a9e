"""What every process of graceful settles before it works: log level, streams, and how Python is started. Every process.

Standard library alone.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping

from graceful.errors import SpecError

Say = Callable[[str], None]
LOG_LEVEL = "GRACEFUL_LOG_LEVEL"
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
DEFAULT_LEVEL = "WARNING"


def log_level(environment: Mapping[str, str]) -> int:
    """Return the level that the environment names, as `logging` counts.

    Raises:
        SpecError: It names none.
    """
    given = environment.get(LOG_LEVEL) or DEFAULT_LEVEL
    if given.upper() not in LEVELS:
        raise SpecError(f"{LOG_LEVEL}: must be one of {', '.join(LEVELS)}, got {given[:40]!r}")
    level: int = getattr(logging, given.upper())
    return level


def python(module: str, *arguments: str) -> tuple[str, ...]:
    """Return the command that runs a module of ours, or of a dependency, in an interpreter of its own.

    With -P the working directory is not searched for modules: a torch.py or secrets.py that happens to lie there is the
    user's, and nobody asked for it to run.
    """
    return (sys.executable, "-P", "-m", module, *arguments)


def search_path(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables with which that command finds graceful where we found it in the working directory alone."""
    if _ours() != os.getcwd() or sys.flags.safe_path or sys.path[0] not in ("", _ours()):
        return {}
    return {"PYTHONPATH": os.pathsep.join(filter(None, (environment.get("PYTHONPATH"), _ours())))}


def leave_working_directory() -> None:
    """Take the working directory, which `python -m` searches first, off the path; not if graceful itself lies there."""
    here = os.getcwd()
    if not sys.flags.safe_path and sys.path[0] in ("", here) and _ours() != here:
        del sys.path[0]


def _ours() -> str:
    return os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def write_anything() -> None:
    """Have stdout and stderr replace characters that their encoding lacks, where they would end the program."""
    for stream, errors in ((sys.stdout, "replace"), (sys.stderr, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)


@contextlib.contextmanager
def result_on_stdout(say: Say) -> Iterator[None]:
    """Print a result whose exit code is known already: a full disk behind stdout does not change the code.

    Args:
        say: Told of it in one line.
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as e:
        silence_stdout()
        say(f"stdout: the result cannot be written ({e.strerror}); the exit code is that of the result")


def silence_stdout() -> None:
    """Drop what is still to be written: the interpreter flushes once more at its end, and would complain."""
    with contextlib.suppress(OSError, ValueError):  # a stream in memory has no descriptor
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
