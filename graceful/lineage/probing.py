"""Whether a registry answers: asked within seconds, before MLflow, which tries for minutes. Driver and client."""

from __future__ import annotations

import importlib.util
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from graceful.errors import RegistryError, SpecError

SEARCH = "/api/2.0/mlflow/experiments/search"
_PATIENCE: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "psycopg2": ("connect_timeout",),
        "psycopg": ("connect_timeout",),
        "pg8000": ("timeout",),
        "pymysql": ("connect_timeout", "read_timeout", "write_timeout"),
        "mysqldb": ("connect_timeout", "read_timeout", "write_timeout"),
        "mysqlconnector": ("connection_timeout",),
    }
)
"""Arguments of each driver that limit how long it waits, in seconds."""
_PACKAGES: Mapping[str, str] = MappingProxyType(
    {"psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient", "pymysql": "PyMySQL", "mysql": "mysql-connector-python"}
)
"""Module -> package, where they are called differently."""
_DRIVERS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"postgresql": ("psycopg2", "psycopg", "pg8000"), "mysql": ("MySQLdb", "pymysql")}
)


def file(path: Path, *, seconds: float) -> None:
    """Ask whether a database file can be written; makes its folder.

    Raises:
        sqlite3.Error, OSError: It cannot.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path, timeout=seconds, isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
    finally:
        connection.close()


def server(uri: str, *, seconds: int) -> None:
    """Ask a tracking server for one experiment, with MLflow's own credentials and certificates, once.

    Raises:
        mlflow.exceptions.MlflowException: It cannot be reached, refuses, or is not an MLflow server.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request_safe

    answer = http_request_safe(
        get_default_host_creds(uri), SEARCH, "POST", max_retries=0, timeout=seconds, json={"max_results": 1}
    )
    try:
        answer.json()
    except ValueError as e:
        raise MlflowException("the answer is not in a valid JSON format") from e


def database(uri: str, display: str, *, seconds: int) -> None:
    """Open one connection to a database server.

    Raises:
        SpecError: The address is none, or names a driver that SQLAlchemy does not know.
        RegistryError: The driver is not installed.
        sqlalchemy.exc.SQLAlchemyError: The server cannot be reached or refuses.
    """
    import sqlalchemy
    from sqlalchemy.pool import NullPool

    try:
        url = sqlalchemy.make_url(uri)
    except (sqlalchemy.exc.ArgumentError, ValueError) as e:
        message = f"registry {display}: is not an address of a database; write postgresql://user@host/name"
        raise SpecError(message) from e
    try:
        limits: dict[str, Any] = dict.fromkeys(_PATIENCE.get(url.get_driver_name(), ()), seconds)
        engine = sqlalchemy.create_engine(url, poolclass=NullPool, connect_args=limits)
    except ImportError as e:
        module = (e.name or str(e)).partition(".")[0]
        raise RegistryError(
            f"registry {display}: its database driver {module} is not installed; run"
            f" `pip install {_PACKAGES.get(module, module)}`{_installed_alternative(url.get_backend_name())}"
        ) from e
    except sqlalchemy.exc.NoSuchModuleError as e:
        raise SpecError(f"registry {display}: SQLAlchemy has no driver {url.drivername}; write postgresql://") from e
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text("SELECT 1"))


def _installed_alternative(backend: str) -> str:
    """Return how to write the address for a driver of the same database that is installed."""
    installed = [name for name in _DRIVERS.get(backend, ()) if importlib.util.find_spec(name) is not None]
    return f", or write {backend}+{installed[0].lower()}://" if installed else ""
