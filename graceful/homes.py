"""The folder in which graceful keeps its files on a machine, also where the user has no home directory. Every process.

Containers often run under a number that has no entry in the system's list of users, without $HOME: then `~` means
nothing, and libraries that look for it fail.
"""

from __future__ import annotations

import getpass
import os
from pathlib import Path

from graceful import paths, startup
from graceful.environment import HOME_VARIABLE
from graceful.errors import SpecError

DEFAULT = ".graceful"
"""Folder of graceful's files, in the working directory, where nothing names another."""


def folder(chosen: str | Path | None = None) -> Path:
    """Return the chosen folder, else $GRACEFUL_HOME, else .graceful here; absolute.

    Raises:
        SpecError: It begins with `~` and there is no such home directory, or it is relative to a folder that was
            deleted.
    """
    variable = os.environ.get(HOME_VARIABLE, "")
    what, path = (HOME_VARIABLE, variable) if variable and not chosen else ("home", chosen or DEFAULT)
    absolute = expanded(path, what=what)
    return absolute if absolute.is_absolute() else startup.working_directory() / absolute


def expanded(path: str | Path, *, what: str) -> Path:
    """Return a path with the home directory that `~` or `~user` stands for.

    Args:
        path: As it was written.
        what: Key, option or variable, for messages.

    Raises:
        SpecError: There is no such home directory, or the path cannot name a file.
    """
    problem = paths.problem(path)
    if problem is not None:
        raise SpecError(f"{what} {str(path)[: paths.LONGEST_PART]!r}: {problem}")
    return Path(path).expanduser()


def variables(home: Path) -> dict[str, str]:
    """Return HOME and USER for programs of a user who has neither: below graceful's own folder, and a number.

    Args:
        home: Folder of graceful's files.
    """
    missing = {}
    try:
        Path.home()
    except RuntimeError:
        missing["HOME"] = str(home)
    try:
        getpass.getuser()
    except (KeyError, OSError):
        missing["USER"] = str(os.getuid())
    return missing
