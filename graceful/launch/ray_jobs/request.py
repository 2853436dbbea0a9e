"""The request to a Ray cluster's job server for a job, to print, check and send. Pure functions. Client."""

from __future__ import annotations

import base64
import hashlib
import io
import shlex
import zipfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from graceful import redact
from graceful.environment import CPU_SETTINGS, HOME_VARIABLE, MLFLOW_SETTINGS, REGISTRY_VARIABLE, RUN_SPEC_VARIABLE
from graceful.launch import names
from graceful.launch.backend import Document, Finding, Severity
from graceful.launch.job import JobSpec

if TYPE_CHECKING:
    from graceful.launch.ray_jobs.profile import RayJobs

DOCUMENT = "spec.json"
PACKAGE = f"{names.PREFIX}package"
LARGEST = 60_000
"""Bytes of the zip: driver and workers get it as one variable, which Linux limits to 128 KiB with all around it."""


def render(job: JobSpec, profile: RayJobs) -> dict[str, Any]:
    """Return what the job server is sent; the same job gives the same bytes."""
    package = _zip({**({} if job.document is None else {DOCUMENT: job.document}), **job.files})
    document = {} if job.document is None else {RUN_SPEC_VARIABLE: DOCUMENT}
    registry = {REGISTRY_VARIABLE: profile.mlflow.uri} if profile.mlflow.uri else {}
    env = {
        HOME_VARIABLE: profile.home,
        **registry,
        **MLFLOW_SETTINGS,
        **({} if job.resources.gpu else CPU_SETTINGS),
        **document,
        **profile.env,
        **job.env,
    }
    labels = {f"{names.PREFIX}{key}": value for key, value in job.labels.items()}
    return {
        "submission_id": names.job_name(job.run_id),
        "entrypoint": shlex.join(job.command),
        "runtime_env": {
            "working_dir": f"gcs://_ray_pkg_{hashlib.sha256(package).hexdigest()[:32]}.zip",
            "env_vars": env,
        },
        "metadata": {**labels, names.RUN_ID: job.run_id, PACKAGE: base64.b64encode(package).decode()},
    }


def _zip(files: dict[str, str]) -> bytes:
    """Return an archive with the same bytes for the same files: no times, no order of the file system."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files):
            archive.writestr(zipfile.ZipInfo(name), files[name], zipfile.ZIP_DEFLATED)
        archive.writestr(zipfile.ZipInfo(".graceful"), "")  # Ray refuses an empty archive
    return buffer.getvalue()


def problems(body: Document) -> Iterator[Finding]:
    """Yield findings about a request that must not be sent."""
    size = len(base64.b64decode(body["metadata"][PACKAGE]))
    where = f"Ray job {body['submission_id']}"
    if size > LARGEST:
        message = f"spec and task file take {size} bytes compressed, at most {LARGEST} are carried"
        remedy = "install the task as a package on the cluster, and leave an import of it in the file"
        yield Finding(rule="too-large", severity=Severity.ERROR, where=where, message=message, remedy=remedy)
    visible = {"entrypoint": body["entrypoint"], "runtime_env": body["runtime_env"]}
    for path in redact.secrets(visible):
        message = "looks like a secret, and everybody who may open the dashboard would see it"
        remedy = "give it to the cluster's nodes as a variable"
        yield Finding(rule="secret-in-sight", severity=Severity.ERROR, where=path, message=message, remedy=remedy)
