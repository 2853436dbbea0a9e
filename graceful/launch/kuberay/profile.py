"""The section of a profile of kind kuberay. Runs on the client."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from graceful import addresses
from graceful.launch.base import (
    FOLDER_IN_PODS,
    LARGEST,
    RELEASE,
    Count,
    Image,
    Mlflow,
    Name,
    Price,
    Profile,
    Seconds,
    Variables,
)
from graceful.launch.kuberay.machines import CaBundle, Machine, Pod, Proxy, Submitter, Worker
from graceful.sections import Section

if TYPE_CHECKING:
    from graceful.launch.backend import Backend, Handle, Warn
    from graceful.launch.checks import Check, Services


class Storage(Section):
    """Where runs, checkpoints and caches are kept: in a bucket or on a volume; with neither they die with the pods."""

    uri: Annotated[str, AfterValidator(addresses.in_document)] | None = None
    """s3://bucket/prefix that every pod reads and writes; becomes GRACEFUL_STORAGE. Folders with a task
    travel through it. Needs an MLflow server."""
    claim: Name | None = None
    """PersistentVolumeClaim (ReadWriteMany for more than one node) that every pod mounts."""
    path: Annotated[str, Field(pattern=FOLDER_IN_PODS)] = "/runs"
    """Folder in the pods for runs, under which the claim lies; becomes GRACEFUL_HOME."""


class Retries(Section):
    """How often what is started again."""

    job: Count = 2
    """Failed jobs, each with a new cluster; the run resumes from its checkpoints."""
    submitter: Count = 2
    """The pod that submits and watches; it finds the running job again."""


class Deadlines(Section):
    """Seconds after which we do not wait any more."""

    start: Seconds = 1800
    """Time for pods to be scheduled and images pulled, per attempt."""
    run: Seconds | None = None
    """Time for an attempt in all; None: no limit."""
    keep: Count = 600
    """Time from the end until the pods are deleted."""


class Prices(Section):
    """What machines cost per hour; used by `graceful plan` alone."""

    currency: str = "USD"
    cpu: Price = 0.0
    """One core."""
    memory: Price = 0.0
    """One GiB."""
    gpu: Price = 0.0
    """One accelerator."""
    spot_factor: Annotated[float, Field(ge=0.0, le=1.0)] = 1.0
    """Share of the price that spot machines cost."""


class KubeRay(Profile):
    """Kubernetes with the KubeRay operator: a cluster of pods for every job."""

    kind: Literal["kuberay"]
    context: str | None = None
    """Entry of the kubeconfig; None: the current one, or in a pod its service account."""
    namespace: Name
    """Namespace in which everything is created."""
    image: Image
    """Holds graceful and Ray; the same for head, workers and submitter. Pin it by digest."""
    pull_policy: Literal["IfNotPresent", "Always", "Never"] = "IfNotPresent"
    pull_secrets: tuple[Name, ...] = ()
    """Secrets with the registry's credentials."""
    ray_version: Annotated[str, Field(pattern=RELEASE)] = "2.60.0"
    """Version of Ray in the image."""
    production: bool = False
    """Warnings about what must not happen in production become errors."""
    service_account: Name | None = None
    """Service account of the pods; its token is not mounted. None: the namespace's default."""
    queue: Name | None = None
    """Kueue's LocalQueue."""
    queue_priority: Name | None = None
    """Kueue's WorkloadPriorityClass: who waits and who is preempted; None: by the priority classes of the pods."""
    head: Machine = Machine(cpu="2", memory="4Gi")
    """The driver runs here: loading data and evaluating happen on it."""
    worker: Worker = Worker()
    """As many as the training processes fill."""
    submitter: Submitter = Submitter()
    """The pod that submits a run and waits for its end."""
    scheduled: Submitter | None = None
    """Pods of schedules, which submit and wait as well; None: as `submitter`."""
    pods: Pod = Pod()
    """Additions to the templates of all pods; those of one kind of pod win."""
    proxy: Proxy = Proxy()
    ca_bundle: CaBundle | None = None
    """None: the certificates that programs bring along."""
    storage: Storage = Storage()
    mlflow: Mlflow = Mlflow()
    env: Variables = Field(default_factory=dict)
    """Variables of head and workers. No secrets: they are readable in the RayJob."""
    env_from_secrets: tuple[Name, ...] = ()
    """Secrets whose keys become variables of head and workers, e.g. for S3."""
    user: Annotated[int, Field(ge=1, le=LARGEST)] | None = 1000
    """Numeric user and group of the processes, never root; None: the cluster chooses, as OpenShift does, from the
    range of the namespace."""
    retries: Retries = Retries()
    deadlines: Deadlines = Deadlines()
    prices: Prices | None = None
    """None: `graceful plan` shows no costs."""

    @model_validator(mode="after")
    def _drained_head(self) -> KubeRay:
        if self.head.gpu:
            raise ValueError(f"head.gpu must be 0, got {self.head.gpu}: the head schedules nothing; give it to worker")
        return self

    @model_validator(mode="after")
    def _one_place_for_runs(self) -> KubeRay:
        if self.storage.claim and (self.head.local_disk or self.worker.local_disk):
            raise ValueError("storage.claim and local_disk both say what lies under storage.path; remove one of them")
        return self

    readers: ClassVar[str] = "all who may read ConfigMaps"
    secret_source: ClassVar[str] = "in a Secret that env_from_secrets of the profile names"
    carrier: ClassVar[str] = "a ConfigMap"
    bucket_remedy: ClassVar[str] = (
        "; set storage.uri: s3://bucket/prefix in the profile, through which it travels, or build an image"
    )

    def build(self, *, home: Path, offline: bool = False, warn: Warn = lambda error: None) -> Backend:
        """Return the backend of RayJobs in the namespace."""
        from graceful.launch.kuberay import backend

        connect = None if offline else backend.connector(self)
        return backend.KubeRayBackend(profile=self, connect=connect, warn=warn)

    def handle(self, name: str) -> Handle:
        """Return the handle of a RayJob in the namespace."""
        from graceful.launch.backend import Handle

        return Handle(scheme=self.kind, location=self.namespace, name=name)

    def checks(self, services: Services) -> Sequence[Check]:
        """Check the cluster, then the bucket and the registry; only the first if the API server does not answer."""
        from graceful.launch.kuberay.checks import of_profile

        return of_profile(self, services)

    @property
    def largest_files(self) -> int:
        """Return the bytes of a ConfigMap."""
        from graceful.launch.kuberay.manifests import LARGEST

        return LARGEST

    @property
    def bucket(self) -> str | None:
        """Return the bucket of `storage`."""
        return self.storage.uri

    @property
    def registry(self) -> str | None:
        """Return the MLflow server that jobs write to."""
        return self.mlflow.uri

    @property
    def kubernetes(self) -> KubeRay:
        """Return this profile."""
        return self
