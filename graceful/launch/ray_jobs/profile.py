"""The section of a profile of kind rayjobs. Runs on the client."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import Field

from graceful.launch.base import FOLDER_OF_NODES, Address, Mlflow, Profile, Variables

if TYPE_CHECKING:
    from graceful.launch.backend import Backend, Handle, Warn
    from graceful.launch.checks import Check, Services


class RayJobs(Profile):
    """A Ray cluster that exists already, reached through its dashboard."""

    kind: Literal["rayjobs"]
    address: Address
    """The dashboard, e.g. http://127.0.0.1:8265."""
    home: Annotated[str, Field(pattern=FOLDER_OF_NODES)]
    """Folder for runs that all its nodes share; becomes GRACEFUL_HOME."""
    mlflow: Mlflow = Mlflow()
    env: Variables = Field(default_factory=dict)
    """Variables of the job. No secrets: the dashboard shows them."""

    files_folder: ClassVar[str] = "."
    """The working directory, into which Ray unpacks them."""
    readers: ClassVar[str] = "all who may open the dashboard"
    secret_source: ClassVar[str] = "as a variable of the cluster's nodes"
    bucket_remedy: ClassVar[str] = ", kind rayjobs carries one file; use a profile of kind kuberay"

    def build(self, *, home: Path, offline: bool = False, warn: Warn = lambda error: None) -> Backend:
        """Return the backend of the cluster's job server."""
        from graceful.launch.ray_jobs.backend import RayJobsBackend

        return RayJobsBackend(profile=self, offline=offline, warn=warn)

    def handle(self, name: str) -> Handle:
        """Return the handle of a job of this cluster."""
        from graceful.launch.backend import Handle

        return Handle(scheme=self.kind, location=urlsplit(self.address).netloc, name=name)

    def checks(self, services: Services) -> Sequence[Check]:
        """Check the job server and the registry."""
        from graceful.launch.ray_jobs.checks import checks

        return [*checks(self), *services.mlflow(self.mlflow.uri)]

    @property
    def registry(self) -> str | None:
        """Return the MLflow server that jobs write to."""
        return self.mlflow.uri
