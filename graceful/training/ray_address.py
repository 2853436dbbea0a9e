"""RAY_ADDRESS: the Ray cluster that it names, and whether a server answers there. Runs in the driver.

    unset, empty, local      a Ray of this process's own
    HOST:PORT, ray://HOST:PORT, auto

Ray itself waits for a dead cluster for minutes and then speaks of its own internals, so the address is asked first: its
server greets in HTTP/2, which a closed port, a dashboard or a process that hangs does not.
"""

from __future__ import annotations

import os
import socket
from urllib.parse import urlsplit

from graceful.errors import InfrastructureError

VARIABLE = "RAY_ADDRESS"
SECONDS = 5.0
"""Seconds for connecting, and for the greeting."""
_LOCAL = ("", "local")
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""First bytes that a client of HTTP/2 sends, with empty settings (RFC 9113, 3.4)."""
_SETTINGS = 4
"""Type of the frame that a server answers with, the fourth byte of it."""


def named() -> str | None:
    """Return the address of the Ray that others have started; None: this process starts its own."""
    address = os.environ.get(VARIABLE, "").strip()
    return None if address in _LOCAL else address


def require_answer(address: str, *, seconds: float = SECONDS) -> None:
    """Refuse an address at which no Ray answers.

    Args:
        address: As `named` returned it.
        seconds: For each of the two steps.

    Raises:
        InfrastructureError: It is none, nothing listens there, or something else than Ray does.
    """
    host, port = _host_and_port(_found() if address == "auto" else address)
    try:
        with socket.create_connection((host, port), timeout=seconds) as connection:
            answered = os.environ.get("RAY_USE_TLS", "0") == "1" or _greeted(connection)
    except OSError as e:
        reason = str(e.strerror or e).lower()
        raise InfrastructureError(
            f"{VARIABLE}={address}: no Ray cluster answers there ({reason}); start that cluster, correct the address,"
            f" or unset {VARIABLE} to use this machine alone"
        ) from e
    if not answered:
        raise InfrastructureError(
            f"{VARIABLE}={address}: the server there is not Ray's; write the address that `ray start` prints,"
            " usually with port 6379 (a dashboard has 8265)"
        )


def _greeted(connection: socket.socket) -> bool:
    """Return whether the server at the other end speaks HTTP/2."""
    connection.sendall(_GREETING)
    answer = b""
    while len(answer) < _SETTINGS:
        more = connection.recv(_SETTINGS - len(answer))
        if not more:
            return False
        answer += more
    return answer[3] == _SETTINGS


def _found() -> str:
    """Return the address of the Ray that runs on this machine."""
    from ray._private import services

    try:
        return str(services.get_ray_address_from_environment("auto", None))
    except ConnectionError as e:
        raise InfrastructureError(
            f"{VARIABLE}=auto: no Ray runs on this machine; start one with `ray start --head`, or unset {VARIABLE}"
        ) from e


def _host_and_port(address: str) -> tuple[str, int]:
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        if parts.scheme in ("", "ray") and parts.hostname and parts.port and not parts.path.strip("/"):
            return parts.hostname, parts.port
    except ValueError:
        pass
    hint = "; that is a dashboard's address" if address.startswith(("http://", "https://")) else ""
    raise InfrastructureError(
        f"{VARIABLE}={address!r:.80}: must be HOST:PORT, ray://HOST:PORT, auto or local{hint}; write the address that"
        " `ray start` prints"
    )
