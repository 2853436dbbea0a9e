"""`graceful ui`: MLflow's web page over the registry, on this machine only, until Ctrl-C. Runs on the client."""

from __future__ import annotations

import contextlib
import socket
import threading
import urllib.error
import urllib.request
from contextlib import AbstractContextManager
from pathlib import Path

from graceful import databases, homes, redact, startup
from graceful.cli import output as out
from graceful.cli.registry_address import registry_uri
from graceful.environment import MLFLOW_SETTINGS
from graceful.errors import EXIT_INTERRUPTED, InfrastructureError, RegistryError
from graceful.launch import foreground
from graceful.launch.job import JobSpec

HOST = "127.0.0.1"
FIRST_PORT, LAST_PORT = 5000, 5099
START_SECONDS = 120.0
"""A cold start of the server takes 12 to 76 seconds on small machines."""
PAGE = "#/models?workflowType=machine_learning"
"""Without the parameter the page starts in a mode that hides the registry."""


def serve(*, home: Path | None, port: int | None) -> int:
    """Serve the page, print its address once it answers, and wait for Ctrl-C.

    Raises:
        RegistryError: There is no registry yet.
        InfrastructureError: The port is taken, or the server failed.
    """
    folder = homes.folder(home)
    uri = registry_uri(folder)
    if uri.startswith(("http://", "https://")):
        out.line(f"{redact.shown(uri).replace(f'{redact.HIDDEN}@', '').rstrip('/')}/{PAGE}")
        return 0
    file = databases.file(uri)
    if file is not None and not file.exists():
        raise RegistryError(f"no registry at {file} yet; run `graceful refresh SPEC` first, or give its --home")
    serving_port = free_port(port)
    ended = threading.Event()
    threading.Thread(target=_announce, args=(serving_port, ended), daemon=True).start()
    try:
        with _elsewhere(file):
            code = foreground.run(server(uri, folder, serving_port))
    finally:
        ended.set()
    if code not in (0, EXIT_INTERRUPTED):
        raise InfrastructureError(f"ui: mlflow's server ended with exit code {code}; its last lines above say why")
    return 0


def server(uri: str, home: Path, port: int) -> JobSpec:
    """Return the server as a job: loopback, one worker, no job execution, no telemetry; the URI may hold a password."""
    options = ("--host", HOST, "--port", str(port), "--workers", "1", "--uvicorn-opts", "--log-level warning")
    return JobSpec(
        name="ui",
        command=startup.python("mlflow", "server", *options, "--allowed-hosts", _hosts(port)),
        env={
            "MLFLOW_BACKEND_STORE_URI": uri,
            "MLFLOW_REGISTRY_STORE_URI": uri,
            "MLFLOW_DEFAULT_ARTIFACT_ROOT": databases.artifacts(home),
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            **MLFLOW_SETTINGS,
            "PYTHONWARNINGS": "ignore",  # the server's own dependencies deprecate each other
            **homes.variables(home),
        },
    )


def _elsewhere(file: Path | None) -> AbstractContextManager[None]:
    """Serve from the root folder: uvicorn imports from where it begins. Not if the path of the database is relative."""
    return contextlib.chdir("/") if file is None or file.is_absolute() else contextlib.nullcontext()


def free_port(preferred: int | None) -> int:
    """Return the preferred port if it is free; for None or 0 the first free one from 5000.

    Raises:
        InfrastructureError: It is taken, or all hundred are.
    """
    if preferred:
        if not _is_free(preferred):
            raise InfrastructureError(f"--port {preferred}: taken by another program; leave it out to get a free one")
        return preferred
    for port in range(FIRST_PORT, LAST_PORT + 1):
        if _is_free(port):
            return port
    raise InfrastructureError(f"ports {FIRST_PORT} to {LAST_PORT} are all taken; give a free one with --port")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def _hosts(port: int) -> str:
    return ",".join(f"{name}:{port}" for name in (HOST, "localhost"))


def _announce(port: int, ended: threading.Event) -> None:
    """Print the address when the server answers; give up when it ended or takes too long."""
    waited, pause = 0.0, 0.25
    while waited < START_SECONDS and not ended.wait(pause):
        waited += pause
        with contextlib.suppress(urllib.error.URLError, OSError):  # not up yet: ask again
            urllib.request.urlopen(f"http://{HOST}:{port}/health", timeout=5).close()
            out.line(f"http://{HOST}:{port}/{PAGE}")
            out.talk("Ctrl-C stops it")
            return
    if not ended.is_set():
        out.talk(f"graceful: the page did not answer within {START_SECONDS:g} s; see the lines above")
