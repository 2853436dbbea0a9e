"""Sections of a kuberay profile about pods: machines, placement, labels, overrides of templates. Runs on the client.

Common settings have keys of their own. Everything else that Kubernetes lets a pod say is written as Kubernetes writes
it, under `overrides`, and merged into the templates that graceful makes (see `graceful.launch.kuberay.overrides`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from graceful.launch import names
from graceful.launch.base import (
    FOLDER_IN_PODS,
    LABEL,
    Cores,
    Count,
    Labels,
    Memory,
    Name,
    Quantity,
    Text,
    Variables,
)
from graceful.launch.resources import is_accelerator, quantity
from graceful.sections import Section

OWN_LABELS = (names.PREFIX, "ray.io/", names.MANAGED_BY[0])
"""Prefixes of the labels by which graceful and KubeRay find pods."""
VENDORS = ("nvidia.com/", "amd.com/")
"""Whose accelerators are GPUs under any name: slices, shares (nvidia.com/gpu.shared), partitions (amd.com/cpx_nps4)."""


def _accelerator(resource: str) -> str:
    if not is_accelerator(resource) and not resource.startswith(VENDORS):
        raise ValueError(
            f"must end in gpu or be of {' or '.join(vendor.rstrip('/') for vendor in VENDORS)}, such as"
            f" nvidia.com/mig-1g.5gb, got {resource!r}; training uses no others"
        )
    return resource


def _not_ours(labels: dict[str, str]) -> dict[str, str]:
    taken = next((key for key in labels if key.startswith(OWN_LABELS)), None)
    if taken is not None:
        raise ValueError(f"label {taken}: graceful or KubeRay finds pods by it; choose another name")
    return labels


def _template(document: dict[str, Any]) -> dict[str, Any]:
    """Return a part of a pod template."""
    for key, value in document.items():
        if key not in ("metadata", "spec") or not isinstance(value, dict):
            raise ValueError(
                f"must be the part of a pod template: `metadata` and `spec` with keys, got {key}: {value!r}"
            )
    unknown = next((key for key in document.get("metadata", {}) if key not in ("labels", "annotations")), None)
    if unknown is not None:
        raise ValueError(f"metadata of a pod template has labels and annotations, got {unknown!r}")
    _not_ours(document.get("metadata", {}).get("labels") or {})
    return document


def _further(resources: dict[str, Any]) -> dict[str, Any]:
    taken = next((key for key in resources if key in ("cpu", "memory") or is_accelerator(key)), None)
    if taken is not None:
        raise ValueError(f"{taken} has a key of its own: cpu, memory, or gpu with gpu_resource")
    return resources


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


class Pod(Section):
    """Additions to the templates of pods."""

    labels: Annotated[Labels, AfterValidator(_not_ours)] = Field(default_factory=dict)
    """Labels of the pods, e.g. azure.workload.identity/use."""
    annotations: dict[Annotated[str, Field(pattern=LABEL)], Text] = Field(default_factory=dict)
    """Annotations of the pods, e.g. linkerd.io/inject."""
    overrides: Annotated[dict[str, Any], AfterValidator(_template)] = Field(default_factory=dict)
    """Part of a pod template, as Kubernetes writes it, that is merged into ours: affinity, topology spread, scheduler,
    runtime class, init containers, sidecars, volumes, resource claims, security context. Lists merge by name, as
    `kubectl patch` does it; the container `main` is the one that graceful runs in; null removes a key."""


class LocalDisk(Section):
    """Room for runs, caches and shards on a disk of the node, which goes with the pod."""

    size: Memory
    """Most that the pod keeps there."""
    storage_class: Name | None = None
    """StorageClass that makes volumes on such disks, e.g. of local NVMe; None: an emptyDir, on the disk of kubelet."""


class Machine(Pod):
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
    """Name under which nodes offer them: one that ends in gpu, or any of NVIDIA's and AMD's, such as
    nvidia.com/mig-1g.5gb or nvidia.com/gpu.shared."""
    resources: Annotated[dict[Annotated[str, Field(pattern=LABEL)], Quantity], AfterValidator(_further)] = Field(
        default_factory=dict
    )
    """Further amounts that are requested and allowed: ephemeral-storage, hugepages-2Mi, rdma/hca."""
    local_disk: LocalDisk | None = None
    """What lies under storage.path, unless storage.claim does; None: an emptyDir without a limit."""
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


class Topology(Section):
    """How near each other Kueue places the pods of the workers, by topology-aware scheduling."""

    required: Annotated[str, Field(pattern=LABEL)] | None = None
    """Label of nodes, e.g. cloud.provider.com/topology-rack: all pods share its value, or the job waits."""
    preferred: Annotated[str, Field(pattern=LABEL)] | None = None
    """The same, but pods that do not fit go elsewhere."""

    @model_validator(mode="after")
    def _one_of_both(self) -> Topology:
        if (self.required is None) == (self.preferred is None):
            raise ValueError("must have either `required` or `preferred`; name the label of nodes in one of them")
        return self

    @property
    def annotations(self) -> dict[str, str]:
        """Return the annotation of pods that Kueue reads."""
        if self.required is not None:
            return {f"{names.TOPOLOGY}required-topology": self.required}
        return {f"{names.TOPOLOGY}preferred-topology": str(self.preferred)}


class Worker(Machine):
    """One pod with training processes; its cores, memory and accelerators are divided among them."""

    ranks: Annotated[int, Field(ge=1)] | None = None
    """Training processes of one pod; None: one for each accelerator, without accelerators one."""
    shm: Memory | None = None
    """Size of /dev/shm, which counts as memory of the pod; None: a quarter of `memory` where several processes share
    the pod (NCCL and Ray exchange data there), else what the container runtime gives."""
    topology: Topology | None = None
    """Needs a queue of Kueue whose nodes have a topology; None: anywhere."""


class Submitter(Pod):
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
    """Variables of these pods alone. No secrets."""

    def placed_like(self, head: Machine) -> Submitter:
        """Return what is meant, with the placement of the head where nothing is said."""
        return self.model_copy(
            update={
                name: getattr(head, name) if getattr(self, name) is None else getattr(self, name)
                for name in ("node_selector", "tolerations", "priority_class")
            }
        )


class Proxy(Section):
    """The way out of the cluster, for every pod; becomes HTTPS_PROXY, HTTP_PROXY and NO_PROXY."""

    https: Text | None = None
    """http://host:port of the proxy to https addresses. Without a password: it is readable in the pods."""
    http: Text | None = None
    """The proxy to http addresses."""
    direct: tuple[Text, ...] = ()
    """Hosts, domains and networks that are reached directly; services of the cluster always are."""


class CaBundle(Section):
    """Certificates that every pod trusts, for buckets, MLflow and proxies that a company signs itself.

    They replace those that programs bring along: a bundle for public addresses, too, holds the public ones as well.
    """

    config_map: Name
    """ConfigMap of the namespace."""
    key: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")] = "ca.crt"
    """Its key with certificates in PEM."""
    folder: Annotated[str, Field(pattern=FOLDER_IN_PODS)] = "/etc/graceful-ca"
    """Folder at which pods see it."""
