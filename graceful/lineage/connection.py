"""Where the registry is and how to reach it: URI, settings, errors in one line, the writer's lock. Driver and client.

mlflow is imported on the first connection, which costs more than a second. A tracking server (http, https) or a
database (sqlite, postgresql, mysql) can be used; mlflow's file store cannot, it has no safe concurrent writers.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from graceful import databases, environment, homes, locks, redact
from graceful.environment import (
    MLFLOW_SETTINGS,
    REGISTRY_PASSWORD_VARIABLE,
    REGISTRY_TOKEN_VARIABLE,
    REGISTRY_USER_VARIABLE,
    REGISTRY_VARIABLE,
)
from graceful.errors import GracefulError, RegistryError, SpecError
from graceful.lineage import outages, probing, races

PROBE_SECONDS = 10
"""A server that has not answered within this time is unreachable."""
LOCK_SECONDS = 60.0
SETTINGS = {
    **MLFLOW_SETTINGS,
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_DISABLE_AGENT_HINT": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""Forced: graceful neither reports usage nor unpickles, and its stdout is its own, whatever the environment says."""
DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
}
"""Settings where the environment has none; mlflow's own would retry for minutes."""
_SERVERS = ("http", "https")
_DATABASES = ("sqlite", "postgresql", "mysql")
_TROUBLES = {
    "password authentication failed": "authentication failed, the user or the password is wrong",
    "no password supplied": "authentication failed, it asks for a password",
    "Access denied for user": "authentication failed, the user or the password is wrong",
    "no pg_hba.conf entry": "authentication failed, it refuses this user from this machine",
    "Unknown database": "the database does not exist; create it",
    "could not translate host name": "unknown host",
    "Name or service not known": "unknown host",
    "Temporary failure in name resolution": "unknown host",
    "Unknown MySQL server host": "unknown host",
    "getaddrinfo failed": "unknown host",
    "No route to host": "no route to host",
    "Network is unreachable": "no route to host",
    "Connection refused": "connection refused",
    "timeout expired": "no answer in time",
    "ReadTimeout": "no answer in time",
    "ConnectTimeout": "no answer in time",
    "timed out": "no answer in time",
    "NameResolutionError": "unknown host",
    "ResponseError": "the server answers with errors of its own (5xx); its log says why",
    "not in a valid JSON format": "the server there is not an MLflow server",
    "database or disk is full": "the disk is full",
    "header value": "a credential holds a character that a header of HTTP may not have; write it again",
    "SSLError": "its certificate is not trusted or it does not speak TLS",
}
_MISSING = re.compile(r'(database|role) "([^"]*)" does not exist')
_GLOBAL = threading.Lock()
_CREDENTIALS = re.compile(r"://[^/\s]*@")


@dataclass(frozen=True, kw_only=True)
class RegistryAddress:
    """A resolved registry.

    Attributes:
        uri: For mlflow; a server's carries no credentials (they are moved to the environment).
        display: For people and logs: never a password.
        artifacts: Where new experiments keep artifacts; None: the server decides.
        lock: File that writers of aliases lock.
    """

    uri: str
    display: str
    artifacts: str | None
    lock: Path

    @property
    def server(self) -> bool:
        """Return whether it is a tracking server, not a database."""
        return self.uri.partition("://")[0].lower() in _SERVERS

    @property
    def sqlite(self) -> bool:
        """Return whether it is a file, which only processes of one machine may write."""
        return databases.file(self.uri) is not None


def resolve(uri: str | None, home: Path) -> RegistryAddress:
    """Return the address of the explicit URI, else of $MLFLOW_TRACKING_URI, else of sqlite and files under `home`.

    Raises:
        SpecError: A kind of URI that graceful does not use.
    """
    environment.clean()
    home = homes.folder(home)
    explicit = (uri or "").strip() or os.environ.get(REGISTRY_VARIABLE) or databases.default(home)
    database = databases.file(explicit)
    scheme = explicit.partition("://")[0].split("+")[0]
    problem = databases.problem(explicit) if scheme in _DATABASES else None
    if problem is not None:
        raise SpecError(f"registry {redact.address(explicit)}: {problem}; correct it")
    if scheme in _DATABASES:
        redact.remember_password(explicit)
    else:
        environment.require_readable(explicit, what="registry")
    if scheme not in (*_SERVERS, *_DATABASES):
        raise SpecError(
            f"registry {redact.address(explicit)}: must be http(s)://, sqlite:///, postgresql:// or mysql://; set"
            " registry.uri or $MLFLOW_TRACKING_URI to one of them"
        )
    if database is not None:
        if database == Path.cwd() or database.name == ":memory:":
            raise SpecError(f"registry {explicit}: must name a file, e.g. sqlite:////srv/mlflow.db")
        clean = explicit if "?" in explicit else databases.sqlite(database)  # what follows ? is for the driver
        display = f"sqlite:///{database}"
    else:
        clean = _without_credentials(explicit) if scheme in _SERVERS else databases.quoted(explicit)
        display = redact.message(clean)
    name = hashlib.sha256(_CREDENTIALS.sub("://", explicit).encode()).hexdigest()[:16]
    return RegistryAddress(
        uri=clean,
        display=display,
        artifacts=None if scheme in _SERVERS else databases.artifacts(home),
        lock=database.with_name(database.name + ".lock") if database else home / "locks" / f"registry-{name}.lock",
    )


def connect(address: RegistryAddress) -> Any:
    """Open a client and ask the registry one question, so that an unreachable one fails here and soon.

    Returns:
        An `mlflow.tracking.MlflowClient` whose calls are repeated when they lose a race, and while the registry does
        not answer.

    Raises:
        RegistryError: Unreachable, refused, or no database.
    """
    os.environ.update(SETTINGS)
    for key, value in DEFAULTS.items():
        os.environ.setdefault(key, value)
    environment.header_value(os.environ.get(REGISTRY_TOKEN_VARIABLE, ""), what=REGISTRY_TOKEN_VARIABLE)
    with translated_errors(address, "connect"):
        _probe_patiently(address)
        from mlflow.tracking import MlflowClient

        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # tracebacks of what we say in a line
        with _GLOBAL, _schema_lock(address):  # makes the tables of a new database
            client = MlflowClient(tracking_uri=address.uri, registry_uri=address.uri)
            if not address.server:
                client.search_experiments(max_results=1)
    return outages.Patient(races.Client(client), address.display)


@contextmanager
def _schema_lock(address: RegistryAddress) -> Iterator[None]:
    """Keep processes apart that open the same database file for the first time: MLflow would make its tables twice."""
    if not address.sqlite:
        yield
        return
    with exclusive(address.lock.with_name(f"{address.lock.name}-setup")):
        yield


def _probe_patiently(address: RegistryAddress) -> None:
    """Ask the registry; a job on a cluster waits for one that does not answer."""
    if outages.is_job() and not address.sqlite:
        outages.ridden_out(lambda: _probe(address), failures=_foreign_errors(), display=address.display)
    else:
        _probe(address)


def _probe(address: RegistryAddress) -> None:
    path = databases.file(address.uri)
    if path is not None:
        probing.file(path, seconds=PROBE_SECONDS)
    elif address.server:
        probing.server(address.uri, seconds=PROBE_SECONDS)
    else:
        probing.database(address.uri, address.display, seconds=PROBE_SECONDS)


@contextmanager
def translated_errors(address: RegistryAddress, action: str) -> Iterator[None]:
    """Turn what mlflow, the database, the network and the disk raise into one RegistryError line without secrets."""
    try:
        yield
    except GracefulError:
        raise
    except _foreign_errors() as e:
        text = str(e)
        reason = _reason(text)
        cause = e if redact.record(text) == text else None  # a traceback must not print a password either
        raise RegistryError(f"registry {address.display}: cannot {action}: {reason}; {_remedy(address)}") from cause


def _remedy(address: RegistryAddress) -> str:
    if address.server:
        return "check that the server runs and that its URI and credentials are right"
    if address.sqlite:
        return "check the path, its permissions and free space, and that no other program holds it"
    return "check that the database server runs and that host, port, user, password and database of its URI are right"


@contextmanager
def exclusive(path: Path, *, seconds: float = LOCK_SECONDS) -> Iterator[None]:
    """Keep processes that share this file apart; `lease.writer` does so wherever they run.

    Raises:
        RegistryError: Another process held it all the time.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(locks.exclusive(path, seconds=seconds))
        except BlockingIOError as e:
            raise RegistryError(
                f"{path}: another process is promoting since {seconds:g} s; wait for it or stop it"
            ) from e
        yield


@contextmanager
def as_global(address: RegistryAddress) -> Iterator[None]:
    """Set MLflow's process-wide URI to this address for one call.

    Registering from `models:/m-...` in a database asks a client that takes no URI. The setting also lands in the
    environment, where another store would read it: hence only for a moment, and one thread at a time. Servers do not
    need it.
    """
    import mlflow

    if address.server:
        yield
        return
    with _GLOBAL, _environment({REGISTRY_VARIABLE: address.uri}):
        mlflow.set_tracking_uri(address.uri)
        try:
            yield
        finally:
            mlflow.set_tracking_uri(None)


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            os.environ.pop(key, None)
            if value is not None:
                os.environ[key] = value


def _foreign_errors() -> tuple[type[Exception], ...]:
    """Return the errors to translate; called only after an error, because the imports are slow."""
    from botocore.exceptions import BotoCoreError, ClientError
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return (MlflowException, SQLAlchemyError, sqlite3.Error, BotoCoreError, ClientError, OSError)


def _reason(text: str) -> str:
    """Return the reason of an error: a phrase for usual network failures, else its first line; never a password."""
    for sign, words in _TROUBLES.items():
        if sign in text:
            return words
    missing = _MISSING.search(text)
    if missing is not None:
        return f"its {'user' if missing[1] == 'role' else 'database'} {missing[2]} does not exist; create it"
    lines = [line.strip() for line in redact.message(text).splitlines() if line.strip()] or ["no reason given"]
    first = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return first if len(first) <= 240 else first[:237] + "..."


def _without_credentials(uri: str) -> str:
    parts = urlsplit(uri)
    if parts.username is None:
        return uri
    os.environ[REGISTRY_USER_VARIABLE] = unquote(parts.username)
    os.environ[REGISTRY_PASSWORD_VARIABLE] = unquote(parts.password or "")
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
