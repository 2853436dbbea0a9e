"""Client of a Ray cluster's job server: REST calls with a token and retries. Runs on the client, without ray.

Errors are those of `refusals`, by what the caller can do. What may have arrived is never sent twice from here: a POST
is tried once, its caller looks and decides. A log is read whole, because the stream that the server offers
besides ends early now and then, in silence.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import urllib3

from graceful import __version__
from graceful.environment import RAY_TOKEN_FILE_VARIABLE, RAY_TOKEN_VARIABLE, header_value, require_readable
from graceful.launch.refusals import (
    ApiError,
    ForbiddenError,
    InvalidObjectError,
    NotFoundError,
    UnreachableError,
    may_pass,
)
from graceful.patience import Patience

CONNECT_SECONDS = 5.0
READ_SECONDS = 60.0
"""The server waits for its agent for half a minute before it gives up."""
LONGEST = 400
TOKEN_FILE = Path("~/.ray/auth_token")
TOKEN_REMEDY = (
    f"set {RAY_TOKEN_VARIABLE}, or {RAY_TOKEN_FILE_VARIABLE} to a file with it, or write it to ~/.ray/auth_token"
)

Job = Mapping[str, Any]


def token(environment: Mapping[str, str] = os.environ) -> str | None:
    """Return the cluster's token from where Ray itself looks for it; None: there is none, the cluster may need none.

    Raises:
        ForbiddenError: The file that RAY_AUTH_TOKEN_PATH names cannot be read.
    """
    if environment.get(RAY_TOKEN_VARIABLE):
        return header_value(environment[RAY_TOKEN_VARIABLE], what=RAY_TOKEN_VARIABLE)
    token_path = environment.get(RAY_TOKEN_FILE_VARIABLE)
    try:
        path = Path(token_path or TOKEN_FILE).expanduser()
        return header_value(path.read_text(encoding="utf-8"), what=str(path)) or None
    except (OSError, UnicodeDecodeError, RuntimeError) as e:
        if token_path:
            raise ForbiddenError(f"{RAY_TOKEN_FILE_VARIABLE} {token_path}: cannot be read ({e}); {TOKEN_REMEDY}") from e
        return None


@dataclass(kw_only=True)
class Dashboard:
    """One cluster's job server.

    Attributes:
        address: http://host:port.
        patience: Between repeated reads.
        secret: Called for each request, because tokens rotate.
    """

    address: str
    patience: Patience = field(default_factory=Patience)
    secret: Callable[[], str | None] = token

    def __post_init__(self) -> None:
        require_readable(self.address, what="address of the Ray cluster")
        self.address = self.address.rstrip("/")
        self._pool = urllib3.PoolManager(maxsize=2, retries=False)

    def version(self) -> str:
        """Return the version of Ray, e.g. 2.60.0."""
        return str(self._read("/api/version")["ray_version"])

    def jobs(self) -> Sequence[Job]:
        """Return every job that was submitted to the cluster, by whomever."""
        return [job for job in self._read("/api/jobs/") if job.get("submission_id")]

    def job(self, name: str) -> Job:
        """Return one job.

        Raises:
            NotFoundError: There is no such job.
        """
        job: Job = self._read(f"/api/jobs/{quote(name, safe='')}")
        return job

    def log(self, name: str) -> str:
        """Return all that a job wrote until now."""
        return str(self._read(f"/api/jobs/{quote(name, safe='')}/logs")["logs"])

    def submit(self, body: Job) -> None:
        """Submit once; the server refuses a name that it knows."""
        self._ask("POST", "/api/jobs/", json.dumps(body).encode())

    def stop(self, name: str) -> None:
        """Ask it to end; the server does not wait."""
        self._ask("POST", f"/api/jobs/{quote(name, safe='')}/stop")

    def put_package(self, uri: str, data: bytes) -> None:
        """Upload what a job's folder is made of, unless it is there; either way it stays for ten minutes at least."""
        scheme, _, name = uri.partition("://")
        path = f"/api/packages/{scheme}/{quote(name, safe='')}"
        try:
            self._patiently("GET", path)
        except NotFoundError:
            self._patiently("PUT", path, data)

    def _read(self, path: str) -> Any:
        body = self._patiently("GET", path)
        try:
            return json.loads(body)
        except ValueError as e:
            raise UnreachableError(
                f"GET {path}: {self.address} answers, but is not a Ray dashboard; check address in the profile"
            ) from e

    def _patiently(self, method: str, path: str, data: bytes | None = None) -> bytes:
        """Send a read, or a write that may be repeated, and repeat it after failures that may pass."""
        return self.patience.repeat(partial(self._ask, method, path, data), failure=ApiError, may_pass=may_pass)

    def _ask(self, method: str, path: str, data: bytes | None = None) -> bytes:
        headers = {"Accept": "application/json", "User-Agent": f"graceful/{__version__}"}
        if data is not None:
            headers["Content-Type"] = "application/json" if method == "POST" else "application/octet-stream"
        if secret := self.secret():
            headers["Authorization"] = f"Bearer {secret}"
        timeout = urllib3.Timeout(connect=CONNECT_SECONDS, read=READ_SECONDS)
        try:
            response = self._pool.request(
                method, f"{self.address}{path}", body=data, headers=headers, timeout=timeout, redirect=False
            )
        except urllib3.exceptions.HTTPError as e:
            reason = " ".join(str(getattr(e, "reason", None) or e).split())[:LONGEST]
            raise UnreachableError(
                f"{method} {path}: no answer from {self.address} ({reason}); is the cluster up, the address right?"
            ) from e
        if response.status >= 300:
            raise self._refused(f"{method} {path}", response.status, response.data.decode("utf-8", errors="replace"))
        return response.data

    def _refused(self, request: str, code: int, text: str) -> ApiError:
        lines = [line for line in text.strip().splitlines() if line.strip()]
        message = " ".join((lines[-1] if "Traceback" in text and lines else text).split())[:LONGEST]
        facts: dict[str, object] = {"code": code, "request": request}
        if code in (401, 403):
            problem = "wants a token and got none" if code == 401 else "refuses this token"
            return ForbiddenError(f"{self.address} {problem} ({code}); {TOKEN_REMEDY}", facts)
        if code == 404:
            return NotFoundError(f"{request}: {message or 'not found'} at {self.address}", facts)
        if code == 400:
            return InvalidObjectError(f"{request}: {message}; correct the job", facts)
        return ApiError(f"{request}: {self.address} answers {code} ({message}); its logs say more, try again", facts)
