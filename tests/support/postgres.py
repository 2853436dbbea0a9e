"""A real PostgreSQL on loopback for tests: a cluster of its own in a temporary folder, gone afterwards."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.mlflow_server import free_port

ACCOUNT = "postgres"
"""PostgreSQL refuses to run as root; it then runs under this account."""


def missing() -> str:
    """Why there is no PostgreSQL to test on; empty where there is."""
    if shutil.which("initdb") is None or shutil.which("pg_ctl") is None:
        return "PostgreSQL (initdb, pg_ctl) is not installed"
    if importlib.util.find_spec("psycopg2") is None:
        return "psycopg2 is not installed: pip install psycopg2-binary"
    if os.getuid() == 0 and not any(entry.pw_name == ACCOUNT for entry in pwd.getpwall()):
        return f"PostgreSQL refuses to run as root, and there is no account {ACCOUNT}"
    return ""


@contextmanager
def database() -> Iterator[str]:
    """Serve an empty database until the block ends; yields its URI. Skips the test where there is none."""
    reason = missing()
    if reason:
        pytest.skip(reason)
    with running() as uri:
        yield uri


@contextmanager
def running() -> Iterator[str]:
    """As `database`, for callers that are no test."""
    folder = Path(tempfile.mkdtemp(prefix="graceful-pg-"))
    data, port = folder / "data", free_port()
    user = ACCOUNT if os.getuid() == 0 else None
    if user is not None:
        shutil.chown(folder, user)
    options = (
        f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off -c max_connections=200"
    )
    try:
        _run(user, "initdb", "-D", str(data), "-U", "graceful", "-A", "trust", "-E", "UTF8", "--no-sync")
        _run(user, "pg_ctl", "-D", str(data), "-o", options, "-l", str(folder / "log"), "-w", "-t", "60", "start")
        try:
            yield f"postgresql+psycopg2://graceful:unused@127.0.0.1:{port}/postgres"
        finally:
            _run(user, "pg_ctl", "-D", str(data), "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(user: str | None, *command: str) -> None:
    done = subprocess.run(
        command,
        user=user,
        cwd="/",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, f"{command[0]}: {done.stdout}"
