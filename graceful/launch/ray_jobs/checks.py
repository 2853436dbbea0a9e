"""`graceful doctor --on NAME` for a Ray cluster: its job server. Runs on the client."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from graceful.errors import GracefulError
from graceful.launch.checks import Check, fail, is_loopback, ok, warn
from graceful.launch.ray_jobs.dashboard import TOKEN_REMEDY, Dashboard, token
from graceful.launch.refusals import ForbiddenError
from graceful.launch.versions import client_ray
from graceful.patience import ONE_TRY

if TYPE_CHECKING:
    from graceful.launch.ray_jobs.profile import RayJobs


def checks(profile: RayJobs) -> list[Check]:
    """Check the job server: reachable, of our version, with our token."""
    dashboard = Dashboard(address=profile.address, patience=ONE_TRY)
    try:
        version = dashboard.version()
        jobs = len(dashboard.jobs())
    except ForbiddenError as e:
        return [ok("dashboard", f"{profile.address} answers"), fail("token", e.message, TOKEN_REMEDY)]
    except GracefulError as e:
        return [fail("dashboard", e.message, "start the cluster with its dashboard (ray[default]), check `address`")]
    return [ok("dashboard", f"{profile.address}, {jobs} jobs"), _skew(version), _token(profile)]


def _skew(version: str) -> Check:
    local_version = client_ray()
    if local_version is None or version.split(".")[:2] == local_version.split(".")[:2]:
        return ok("ray", f"{version} there, {local_version or 'none'} here")
    remedy = "jobs use the one there; install the same here, and let the cluster have what graceful needs"
    return fail("ray", f"{version} there, {local_version} here", remedy)


def _token(profile: RayJobs) -> Check:
    host, scheme = urlsplit(profile.address).hostname or "", urlsplit(profile.address).scheme
    if token() is None:
        remedy = "start it with RAY_AUTH_MODE=token: anyone who reaches the dashboard can run anything"
        return warn("token", "the cluster wants none", remedy)
    if scheme == "http" and not is_loopback(host):
        return warn("token", "accepted, and sent in plain text", "use https, or a tunnel to 127.0.0.1")
    return ok("token", "sent, nothing was refused")
