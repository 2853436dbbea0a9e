"""The section of a profile of kind kuberay. Runs on the client."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from graceful import addresses
from graceful.launch.base import (
    FOLDER_IN_PODS,
    IMAGE,
    LARGEST,
    RELEASE,
    Cores,
    Count,
    Labels,
    Memory,
    Mlflow,
    Name,
    Price,
    Profile,
    Seconds,
    Variables,
)
from graceful.launch.resources import is_accelerator, quantity
from graceful.sections import Section

if TYPE_CHECKING:
    from graceful.launch.backend import Backend, Handle, Warn
    from graceful.launch.checks import Check, Services


def _accelerator(resource: str) -> str:
    if not is_accelerator(resource):
        raise ValueError(
            f"must end in gpu or be a slice such as nvidia.com/mig-1g.5gb, got {resource!r}; KubeRay tells Ray of no"
            " others"
        )
    return resource


class Toleration(Section):
    """A taint of nodes that pods accept, as in a pod's specification."""

    key: str | None = None
    operator: Literal["Exists", "Equal"] = "Equal"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None

    @model_validator(mode="after")
    def _as_kubernetes_wants(self) -> Toleration:
        if self.operator == "Exists" and self.value:
            raise ValueError(f"operator Exists takes no value, got {self.value!r}; leave it out, or write Equal")
        if self.operator == "Equal" and not self.key:
            raise ValueError("operator Equal needs a key; name it, or write operator: Exists for every taint")
        return self


class Machine(Section):
    """One pod of the cluster: requests equal limits, because Ray believes the limits."""

    cpu: Cores = "1"
    """Cores."""
    reserved_cpu: Cores | None = None
    """Cores that the scheduler sets aside; None: all of `cpu`. With less, pods of a small machine share its cores."""
    memory: Memory = "4Gi"
    """Hard limit."""
    gpu: Count = 0
    """Accelerators."""
    gpu_resource: Annotated[str, AfterValidator(_accelerator)] = "nvidia.com/gpu"
    """Name under which nodes offer them: one that ends in gpu, or a slice such as nvidia.com/mig-1g.5gb."""
    node_selector: Labels = Field(default_factory=dict)
    """Labels that nodes must have."""
    tolerations: tuple[Toleration, ...] = ()
    """Taints that are accepted."""
    spot: bool = False
    """The nodes may vanish at short notice."""
    priority_class: str | None = None
    """PriorityClass of the pods."""
    env: Variables = Field(default_factory=dict)
    """Variables of these pods alone, e.g. NCCL_DEBUG. No secrets."""

    @model_validator(mode="after")
    def _reserved_within_limit(self) -> Machine:
        if self.reserved_cpu is not None and quantity(self.reserved_cpu) > quantity(self.cpu):
            raise ValueError(f"reserved_cpu must be at most cpu = {self.cpu}, got {self.reserved_cpu}")
        return self


class Worker(Machine):
    """One pod with training processes; its cores, memory and accelerators are divided among them."""

    ranks: Annotated[int, Field(ge=1)] | None = None
    """Training processes of one pod; None: one for each accelerator, without accelerators one."""
    shm: Memory | None = None
    """Size of /dev/shm, which counts as memory of the pod; None: a quarter of `memory` where several processes share
    the pod (NCCL and Ray exchange data there), else what the container runtime gives."""


class Submitter(Section):
    """The small pods that submit a run and wait for its end: one of each run, and one of each firing of a schedule."""

    cpu: Cores = "1"
    """Most cores; a tenth of them is reserved."""
    memory: Memory = "1Gi"
    """Hard limit; half of it is reserved."""
    node_selector: Labels | None = None
    """Labels that nodes must have; None: those of `head`."""
    tolerations: tuple[Toleration, ...] | None = None
    """Taints that are accepted; None: those of `head`."""
    priority_class: str | None = None
    """PriorityClass of the pods; None: that of `head`."""
    env: Variables = Field(default_factory=dict)
    """Variables of these pods alone, e.g. HTTPS_PROXY. No secrets."""

    def placed_like(self, head: Machine) -> Submitter:
        """Return what is meant, with the placement of the head where nothing is said."""
        return self.model_copy(
            update={
                name: getattr(head, name) if getattr(self, name) is None else getattr(self, name)
                for name in ("node_selector", "tolerations", "priority_class")
            }
        )


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
    """For pods to be scheduled and images pulled, per attempt."""
    run: Seconds | None = None
    """For an attempt in all; None: no limit."""
    keep: Count = 600
    """After the end, until the pods are deleted."""


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
    """Where everything is created."""
    image: Annotated[str, Field(pattern=IMAGE)]
    """Holds graceful and Ray; the same for head, workers and submitter. Pin it by digest."""
    pull_policy: Literal["IfNotPresent", "Always", "Never"] = "IfNotPresent"
    pull_secrets: tuple[Name, ...] = ()
    """Secrets with the registry's credentials."""
    ray_version: Annotated[str, Field(pattern=RELEASE)] = "2.60.0"
    """Of the image."""
    production: bool = False
    """Warnings about what must not happen in production become errors."""
    service_account: Name | None = None
    """Of the pods; its token is not mounted. None: the namespace's default."""
    queue: Name | None = None
    """Kueue's LocalQueue."""
    head: Machine = Machine(cpu="2", memory="4Gi")
    """The driver runs here: loading data and evaluating happen on it."""
    worker: Worker = Worker()
    """As many as the training processes fill."""
    submitter: Submitter = Submitter()
    storage: Storage = Storage()
    mlflow: Mlflow = Mlflow()
    env: Variables = Field(default_factory=dict)
    """Variables of all pods. No secrets: they are readable in the RayJob."""
    env_from_secrets: tuple[Name, ...] = ()
    """Secrets whose keys become variables of head and workers, e.g. for S3."""
    user: Annotated[int, Field(ge=1, le=LARGEST)] = 1000
    """Numeric user and group of the processes; never root."""
    retries: Retries = Retries()
    deadlines: Deadlines = Deadlines()
    prices: Prices | None = None
    """None: `graceful plan` shows no costs."""

    @model_validator(mode="after")
    def _drained_head(self) -> KubeRay:
        if self.head.gpu:
            raise ValueError(f"head.gpu must be 0, got {self.head.gpu}: the head schedules nothing; give it to worker")
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
