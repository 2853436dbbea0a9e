"""Addresses of the registry under a home folder, whatever the folder is called. Every process uses it.

A database's address is an SQLAlchemy URL: its path ends at `?`, `%20` in it is a space, and `#` is an ordinary letter.
`urllib` reads it differently. It is therefore built and read here alone, without a library, because the command line
imports none; a test compares it with SQLAlchemy.
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

from graceful import startup

REGISTRY = "mlflow.db"
ARTIFACTS = "artifacts"
_SCHEME = re.compile(r"sqlite(\+\w+)?://")
_SPECIAL = re.compile(r"[?%]")


def default(home: Path) -> str:
    """Return the address of the database under home."""
    return sqlite(home / REGISTRY)


def artifacts(home: Path) -> str:
    """Return the address under home where new experiments keep their artifacts."""
    return (home / ARTIFACTS).as_uri()


def sqlite(file: Path) -> str:
    """Return the address of a database file."""
    path = str(file)
    if _SPECIAL.search(path) is None:
        return f"sqlite:///{path}"
    # with the driver named, because MLflow takes what follows `sqlite:///` for a path and would make folders of it
    return "sqlite+pysqlite:///" + _SPECIAL.sub(lambda found: f"%{ord(found[0]):02X}", path)


def file(uri: str) -> Path | None:
    """Return the absolute path of the file behind an address; None where it is no sqlite database.

    Raises:
        SpecError: It is relative to a folder that was deleted.
    """
    scheme = _SCHEME.match(uri)
    if scheme is None:
        return None
    _, _, path = uri[scheme.end() :].partition("/")
    named = Path(unquote(path.partition("?")[0]))
    return named if named.is_absolute() else startup.working_directory() / named
