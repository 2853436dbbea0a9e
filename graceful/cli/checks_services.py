"""`graceful doctor --on NAME`: what runs need besides machines: a bucket, an MLflow server. Client.

Services are asked from here; one whose name only pods can resolve is a warning.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import urllib3
from packaging.version import InvalidVersion, Version

from graceful.cli.checks import probe
from graceful.environment import (
    MLFLOW_SETTINGS,
    REGISTRY_PASSWORD_VARIABLE,
    REGISTRY_TOKEN_VARIABLE,
    REGISTRY_USER_VARIABLE,
    header_value,
)
from graceful.launch.checks import Check, fail, is_loopback, ok, warn

OLDEST_MLFLOW = Version("3.17.2")
"""Oldest MLflow without a warning: before it a path of a trace could leave the artifact folder (CVE-2026-53995)."""
SECONDS = 10.0
SEARCH = "/api/2.0/mlflow/experiments/search?max_results=1"
JOBS = "/ajax-api/3.0/jobs/search"


@dataclass(frozen=True, kw_only=True)
class Services:
    """Checks that backends are lent, see `graceful.launch.checks.Services`.

    Attributes:
        home: This machine's home, in which a bucket is tried.
    """

    home: Path

    def bucket(self, uri: str) -> Check:
        """Check a bucket by writing, reading and deleting an object."""
        return probe("storage", uri, home=self.home, remedy="check the bucket, its rights and the AWS_ variables")

    def mlflow(self, uri: str | None) -> list[Check]:
        """Check the tracking server of a profile."""
        return mlflow(uri)


def mlflow(uri: str | None) -> list[Check]:
    """Check the tracking server: reachable, new enough, and not refusing the host name in our requests."""
    if uri is None:
        return [warn("mlflow", "profile.mlflow.uri is not set", "name a server: a file serves one run at a time")]
    scheme = uri.partition(":")[0].lower()
    if scheme not in ("http", "https"):
        return [ok("mlflow", f"{scheme}: not a server, not asked")]
    base = uri.rstrip("/")
    with urllib3.PoolManager(retries=False, timeout=SECONDS) as pool:
        try:
            version = pool.request("GET", f"{base}/version")
            search = pool.request("GET", f"{base}{SEARCH}", headers=_credentials())
            anonymous = pool.request("GET", f"{base}{SEARCH}").status if _credentials() else search.status
            jobs = pool.request("POST", f"{base}{JOBS}", json={}).status if anonymous in (401, 403) else 0
        except urllib3.exceptions.HTTPError as e:
            return [_unreachable(uri, e)]
    version_text = version.data.decode("utf-8", errors="replace").strip()[:40]
    if version.status != 200:
        return [fail("mlflow", f"{uri} answers {version.status} to /version", "is it MLflow's own address?")]
    search_check = _search_check(uri, search.status, search.data.decode("utf-8", errors="replace"))
    return [
        _release(uri, version_text),
        search_check,
        *_access(uri, search.status, anonymous, jobs),
        *_client_settings(),
    ]


def _credentials() -> dict[str, str]:
    """Return credentials as mlflow's client sends them."""
    token, user = os.environ.get(REGISTRY_TOKEN_VARIABLE), os.environ.get(REGISTRY_USER_VARIABLE)
    if user:
        return urllib3.make_headers(basic_auth=f"{user}:{os.environ.get(REGISTRY_PASSWORD_VARIABLE, '')}")
    return {"Authorization": f"Bearer {header_value(token, what=REGISTRY_TOKEN_VARIABLE)}"} if token else {}


def _access(uri: str, search: int, anonymous: int, jobs: int) -> list[Check]:
    """Check whether a request without credentials is served; the job endpoints may serve it in spite of the login."""
    name, checks = "mlflow auth", []
    if anonymous == 200 and not is_loopback(urlsplit(uri).hostname or ""):
        remedy = "start it with --app-name basic-auth or behind a login: anyone who reaches it can move the champion"
        checks.append(warn(name, "the server asks for no credentials", remedy))
    elif search == 200 and anonymous in (401, 403):
        checks.append(ok(name, "ours are accepted, and requests without any are refused"))
    if jobs == 200:
        remedy = "set MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false on the server and block /ajax-api/3.0/jobs in its proxy"
        checks.append(warn("mlflow jobs", "its job endpoints answer without credentials (CVE-2026-0545)", remedy))
    return checks


def _client_settings() -> list[Check]:
    """Check settings of this machine that other tools of MLflow obey; graceful's own programs override them."""
    unsafe = [
        f"{name}={os.environ[name]}"
        for name, safe_value in sorted(MLFLOW_SETTINGS.items())
        if os.environ.get(name, safe_value).lower() != safe_value
    ]
    if not unsafe:
        return []
    remedy = "graceful overrides it; unset it, or other clients run pickles they download or report usage"
    return [warn("mlflow client", ", ".join(unsafe), remedy)]


def _release(uri: str, version_text: str) -> Check:
    try:
        new_enough = Version(version_text) >= OLDEST_MLFLOW
    except InvalidVersion:
        return fail("mlflow", f"{uri} says {version_text!r} for its version", "is it MLflow's own address?")
    if not new_enough:
        return fail("mlflow", f"{uri}, {version_text}", f"update the server to {OLDEST_MLFLOW} or newer")
    return ok("mlflow", f"{uri}, {version_text}")


def _search_check(uri: str, status: int, text: str) -> Check:
    name, host = "mlflow api", urlsplit(uri).netloc
    if status == 200:
        return ok(name, f"experiments are listed, {host} is an allowed host")
    if status == 403 and "host" in text.lower():
        return fail(
            name, f"{host} is not among the server's allowed hosts", f"start it with --allowed-hosts ...,{host}"
        )
    if status in (401, 403):
        return warn(
            name,
            f"asks for credentials ({status})",
            "set MLFLOW_TRACKING_TOKEN here, or MLFLOW_TRACKING_USERNAME and _PASSWORD; mlflow.token_secret there",
        )
    return fail(name, f"answers {status}: {' '.join(text.split())[:200]}", "its log says why; is its database there?")


def _unreachable(uri: str, error: Exception) -> Check:
    reason = " ".join(str(getattr(error, "reason", None) or error).split())[:200]
    if isinstance(error, urllib3.exceptions.NameResolutionError):
        return warn(
            "mlflow", f"{urlsplit(uri).hostname} has no address here", "fine if it is a name that only pods know"
        )
    return fail("mlflow", f"no answer from {uri} ({reason})", "is it running, the address right?")
