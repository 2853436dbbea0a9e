"""A real PostgreSQL on loopback, with a password, in a folder of its own; ended with the block."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.mlflow_server import free_port

SECONDS = 120.0


def missing() -> str | None:
    """Why there can be none here; None: there can."""
    if shutil.which("initdb") is None:
        return "no PostgreSQL: initdb is not on the PATH"
    if importlib.util.find_spec("psycopg2") is None:
        return "no driver for PostgreSQL: psycopg2 is not installed"
    return None


@contextmanager
def server() -> Iterator[str]:
    """Start one with an empty database; yields its URI."""
    found = shutil.which("initdb")
    assert found is not None
    programs = Path(found).resolve().parent
    # PostgreSQL refuses to run as root
    other: dict[str, Any] = {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.getuid() == 0 else {}
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    try:
        if other:
            shutil.chown(folder, "nobody", "nogroup")
        password = folder / "password"
        password.write_text("secret\n")
        password.chmod(0o644)
        data = folder / "data"
        subprocess.run(
            [programs / "initdb", "-D", data, "-U", "graceful", "-A", "scram-sha-256", "-E", "UTF8", "--no-sync",
             "--locale", "C", "--pwfile", password],
            check=True, stdout=subprocess.DEVNULL, cwd=folder, timeout=SECONDS, **other,
        )  # fmt: skip
        port = free_port()
        process = subprocess.Popen(
            [programs / "postgres", "-D", data, "-h", "127.0.0.1", "-p", str(port), "-k", folder, "-c", "fsync=off"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder, **other,
        )  # fmt: skip
        try:
            _wait(programs, port, process)
            yield f"postgresql+psycopg2://graceful:secret@127.0.0.1:{port}/postgres"
        finally:
            process.send_signal(signal.SIGINT)  # fast: SIGTERM waits for clients to leave
            process.wait(timeout=60)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _wait(programs: Path, port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + SECONDS
    ask = [programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)]
    while subprocess.run(ask, check=False).returncode != 0:
        assert process.poll() is None, f"postgres ended with {process.returncode}"
        assert time.monotonic() < deadline, "postgres did not start"
        time.sleep(0.1)
