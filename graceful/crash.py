"""Keep the traceback of a bug in a file that only its owner may read, without secrets. Runs in every process."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import tempfile
import traceback
from pathlib import Path

from graceful import __version__, homes, redact
from graceful.errors import SpecError


def line(error: BaseException) -> str:
    """Write the traceback to a new file and return one line for people, which names the error and the file.

    The file lies in the home folder if there is one, else in the temporary folder of the system. Its name cannot be
    guessed and its mode is 0600.
    """
    arguments = redact.command(sys.argv)
    what = " ".join(f"bug: {type(error).__name__}: {error}".split())
    return redact.message(f"{what} ({_written(error, arguments)}; please report it)")


def _folder() -> Path:
    with contextlib.suppress(SpecError):  # a home folder that cannot be named
        home = homes.folder()
        if os.access(home, os.W_OK):
            return home
    return Path(tempfile.gettempdir())


def _written(error: BaseException, arguments: list[str]) -> str:
    facts = f"graceful {__version__}, Python {platform.python_version()}, {platform.platform()}\n{arguments}\n\n"
    text = redact.record(facts + "".join(traceback.format_exception(error)))
    try:
        folder = _folder()
        handle, path = tempfile.mkstemp(prefix="graceful-crash-", suffix=".log", dir=folder)
        try:
            with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)
        except OSError:
            os.unlink(path)
            raise
    except OSError as e:
        return f"its traceback cannot be kept: {e.strerror}"
    return f"traceback in {Path(path).resolve()}"
