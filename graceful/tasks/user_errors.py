"""One line for what the code of a user raises: file, deepest line, exception. Driver and workers."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from graceful.errors import GracefulError, SpecError


@contextmanager
def user_file_errors(path: Path, *, passing: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Turn whatever a user's file raises into one line: the file, its deepest line on the way, the exception.

    Args:
        path: The file.
        passing: Exceptions that mean something to the caller.
    """
    try:
        yield
    except (Exception, SystemExit) as e:
        if isinstance(e, (GracefulError, *passing)):
            raise
        raise SpecError(_error_line(path, e)) from e


def _error_line(path: Path, error: BaseException) -> str:
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}: {type(error).__name__}: {error.msg}; correct the file"
    own_filename = str(path.resolve())
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == own_filename]
    place = f"{path}:{lines[-1]}" if lines else str(path)
    reason = " ".join(str(error).split())
    return f"{place}: {type(error).__name__}: {reason}; {_remedy(error)}"


def _remedy(error: BaseException) -> str:
    """Return the remedy of a message; a relative path among the options gets one of its own."""
    name = error.filename if isinstance(error, FileNotFoundError) else None
    if not isinstance(name, str) or os.path.isabs(name):
        return "correct the file"
    return (
        f"relative paths in task.options are looked up in the working directory, {os.getcwd()}; write an absolute one,"
        " or have the file join it to Path(__file__).parent"
    )
