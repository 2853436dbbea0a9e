"""A cluster profile: where jobs run, as people write it in cluster/NAME.yaml. The only pydantic of launch. Client.

A profile says what differs between backends: addresses, images, machines, queues, prices. What differs between runs is
in the spec. Unknown keys are refused at every depth.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationError, model_validator

from graceful import addresses, documents, section_errors
from graceful.errors import SpecError
from graceful.launch.resources import quantity
from graceful.sections import NAME, Section

FOLDER = Path("cluster")
VARIABLE = r"^[A-Za-z_][A-Za-z0-9_.-]*$"
TEXT = r"^[^\x00]*$"
IMAGE = r"^[!-~]+$"
FOLDER_IN_PODS = r"^/[^:\x00]*$"
FOLDER_OF_NODES = r"^/[^\x00]*$"
RELEASE = r"^[0-9]+\.[0-9]+\.[0-9]+$"
PATTERNS = {
    VARIABLE: "the name of a variable: letters, digits and _, no digit first",
    TEXT: "text without NUL characters",
    IMAGE: "the address of an image, without spaces",
    FOLDER_IN_PODS: "a path that begins with / and holds no colon",
    FOLDER_OF_NODES: "a path that begins with /",
    RELEASE: "three numbers such as 2.60.0",
}
"""What the patterns of keys want, in words."""


def _quantity(value: str | float) -> str:
    quantity(value)
    return str(value)


Quantity = Annotated[str | int | float, AfterValidator(_quantity)]
LARGEST = 2**31 - 1
Name = Annotated[str, Field(pattern=NAME)]
Count = Annotated[int, Field(ge=0, le=LARGEST)]
Seconds = Annotated[int, Field(ge=1, le=LARGEST)]
Address = Annotated[str, AfterValidator(addresses.server)]
Text = Annotated[str, Field(pattern=TEXT)]
Variables = dict[Annotated[str, Field(pattern=VARIABLE)], Text]
Price = Annotated[float, Field(ge=0.0)]


class Toleration(Section):
    """A taint of nodes that pods accept, as in a pod's specification."""

    key: str | None = None
    operator: Literal["Exists", "Equal"] = "Equal"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None


class Machine(Section):
    """One pod of the cluster: requests equal limits, because Ray believes the limits."""

    cpu: Quantity = "1"
    """Cores."""
    reserved_cpu: Quantity | None = None
    """Cores that the scheduler sets aside; None: all of `cpu`. With less, pods of a small machine share its cores."""
    memory: Quantity = "4Gi"
    """Hard limit."""
    gpu: Count = 0
    """Accelerators."""
    gpu_resource: str = "nvidia.com/gpu"
    """Name under which nodes offer them."""
    node_selector: dict[str, str] = Field(default_factory=dict)
    """Labels that nodes must have."""
    tolerations: tuple[Toleration, ...] = ()
    """Taints that are accepted."""
    spot: bool = False
    """The nodes may vanish at short notice."""
    priority_class: str | None = None
    """PriorityClass of the pods."""
    env: Variables = Field(default_factory=dict)
    """Variables of these pods alone, e.g. NCCL_DEBUG. No secrets."""


class Storage(Section):
    """Where runs, checkpoints and caches are kept: in a bucket or on a volume; with neither they die with the pods."""

    uri: Annotated[str, AfterValidator(addresses.in_document)] | None = None
    """s3://bucket/prefix that every pod reads and writes; becomes GRACEFUL_STORAGE. Folders with a task
    travel through it. Needs an MLflow server."""
    claim: Name | None = None
    """PersistentVolumeClaim (ReadWriteMany for more than one node) that every pod mounts."""
    path: Annotated[str, Field(pattern=FOLDER_IN_PODS)] = "/runs"
    """Folder in the pods for runs, under which the claim lies; becomes GRACEFUL_HOME."""


class Mlflow(Section):
    """The registry that jobs write to."""

    uri: Annotated[str, AfterValidator(addresses.registry)] | None = None
    """Tracking server as pods reach it; None: a database in `storage.path`."""
    token_secret: Name | None = None
    """Secret whose keys become variables, e.g. MLFLOW_TRACKING_TOKEN."""


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


class Local(Section):
    """This machine: programs are child processes."""

    kind: Literal["local"]
    env: Variables = Field(default_factory=dict)
    """Variables added to ours."""


class RayJobs(Section):
    """A Ray cluster that exists already, reached through its dashboard."""

    kind: Literal["rayjobs"]
    address: Address
    """The dashboard, e.g. http://127.0.0.1:8265."""
    home: Annotated[str, Field(pattern=FOLDER_OF_NODES)]
    """Folder for runs that all its nodes share; becomes GRACEFUL_HOME."""
    mlflow: Mlflow = Mlflow()
    env: Variables = Field(default_factory=dict)
    """Variables of the job. No secrets: the dashboard shows them."""


class KubeRay(Section):
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
    worker: Machine = Machine()
    """One per training process."""
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


Profile = Local | RayJobs | KubeRay
KINDS: dict[str, type[Local] | type[RayJobs] | type[KubeRay]] = {
    "local": Local,
    "rayjobs": RayJobs,
    "kuberay": KubeRay,
}


def load(name: str, *, folder: Path | None = None) -> Profile:
    """Read the profile that `--on` names.

    Args:
        name: A path that ends in .yaml, else the name of a file in `folder` without its ending.
        folder: Default: `cluster` in the working directory.

    Raises:
        SpecError: No such profile (the nearest name is proposed), or a key is wrong (with its path).
    """
    if name == "local" and not (folder or FOLDER).joinpath("local.yaml").exists():
        return Local(kind="local")
    path = Path(name) if name.endswith((".yaml", ".yml")) else (folder or FOLDER) / f"{name}.yaml"
    try:
        document = documents.read(path, where=f"--on {name}: {path}")
    except FileNotFoundError as e:
        raise SpecError(f"--on {name}: no profile {path}{_known_profiles(name, path.parent)}") from e
    return parse(document, where=str(path))


def parse(document: object, *, where: str = "profile") -> Profile:
    """Validate an already loaded document.

    Raises:
        SpecError: One line: key path, file, what is wrong, remedy.
    """
    kind = document.get("kind") if isinstance(document, Mapping) else None
    if not isinstance(kind, str) or kind not in KINDS:
        matches = difflib.get_close_matches(str(kind), KINDS, n=1)
        remedy = f"; did you mean {matches[0]}?" if matches else ""
        raise SpecError(f"kind in {where}: must be one of {', '.join(KINDS)}, got {kind!r}{remedy}")
    try:
        return KINDS[kind].model_validate(document)
    except ValidationError as e:
        known = section_errors.Document(root=KINDS[kind], name="profile", patterns=PATTERNS)
        raise SpecError(section_errors.explain(e, known, where)) from e


def _known_profiles(name: str, folder: Path) -> str:
    profiles = sorted(path.stem for path in folder.glob("*.yaml"))
    matches = difflib.get_close_matches(name, profiles, n=1)
    if matches:
        return f"; did you mean {matches[0]}?"
    return f"; there is {', '.join(profiles)}" if profiles else "; write one, or give a path that ends in .yaml"
