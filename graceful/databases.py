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
_NETWORK = re.compile(
    r"(?P<scheme>\w[\w+]*+)://(?P<user>[^:/@]*(?::[^@]*)?@)?(?P<host>\[[^/?]+\]|[^/:?]*)(?P<port>:[^/?]*)?(?:[/?].*)?",
    re.DOTALL,
)
"""An address as SQLAlchemy reads it: all up to the first @ is the password, whatever it holds."""
_MISREAD = re.compile(r"[][/?#]")


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
    return "sqlite+pysqlite:///" + _SPECIAL.sub(lambda match: f"%{ord(match[0]):02X}", path)


def problem(uri: str) -> str | None:
    """Return what is certainly wrong with the address of a database, without repeating it; None if it can be opened."""
    shape = f"must be an address such as {uri.partition('://')[0]}://..."
    if not uri.isprintable():
        return f"{shape}, it holds control characters"
    if _SCHEME.match(uri):
        return None
    parts = _NETWORK.fullmatch(uri)
    if parts is None:
        return f"{shape}, it cannot be read"
    if "@" in parts["host"]:
        return f"{shape}, write @ of a user or password as %40"
    port = parts["port"]
    if port is not None and not (port[1:].isascii() and port[1:].isdigit() and 0 < int(port[1:]) < 65536):
        return f"{shape}, its port must be a number from 1 to 65535"
    return None


def quoted(uri: str) -> str:
    """Return the address with / ? # [ ] of its user and password percent-encoded, because MLflow misreads them."""
    parts = None if _SCHEME.match(uri) else _NETWORK.fullmatch(uri)
    if parts is None or not parts["user"]:
        return uri
    start, end = parts.span("user")
    return uri[:start] + _MISREAD.sub(lambda sign: f"%{ord(sign[0]):02X}", uri[start:end]) + uri[end:]


def file(uri: str) -> Path | None:
    """Return the absolute path of the file behind an address; None where it is not a sqlite database.

    Raises:
        SpecError: It is relative to a folder that was deleted.
    """
    scheme = _SCHEME.match(uri)
    if scheme is None:
        return None
    _, _, path = uri[scheme.end() :].partition("/")
    named = Path(unquote(path.partition("?")[0]))
    return named if named.is_absolute() else startup.working_directory() / named
