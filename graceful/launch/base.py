"""What every profile has: its section of cluster/NAME.yaml, and what graceful may expect of the backend. Client.

A backend is one class derived from `Profile` and registered by its `kind` (see `graceful.launch.registry`). The class
is the section that people write, so it imports what runs jobs inside methods only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import AfterValidator, Field

from graceful import addresses
from graceful.launch.images import well_formed
from graceful.launch.job import FILES
from graceful.launch.resources import quantity
from graceful.sections import NAME, Section

if TYPE_CHECKING:
    from graceful.launch.backend import Backend, Handle, Warn
    from graceful.launch.checks import Check, Services
    from graceful.launch.kuberay.profile import KubeRay

VARIABLE = r"^[A-Za-z_][A-Za-z0-9_.-]*$"
TEXT = r"^[^\x00]*$"
IMAGE = r"^[!-~]+$"
FOLDER_IN_PODS = r"^/[^:\x00]*$"
FOLDER_OF_NODES = r"^/[^\x00]*$"
RELEASE = r"^[0-9]+\.[0-9]+\.[0-9]+$"
LABEL = r"^([a-z0-9.-]{1,253}/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?$"
LABEL_VALUE = r"^([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?$"
PATTERNS = {
    VARIABLE: "the name of a variable: letters, digits and _, no digit first",
    TEXT: "text without NUL characters",
    IMAGE: "the address of an image, without spaces",
    FOLDER_IN_PODS: "a path that begins with / and holds no colon",
    FOLDER_OF_NODES: "a path that begins with /",
    RELEASE: "three numbers such as 2.60.0",
    LABEL: "the name of a label, such as node.kubernetes.io/instance-type",
    LABEL_VALUE: "the value of a label: at most 63 letters, digits, -, _ and .",
}
"""What the patterns of keys want, in words."""


def _quantity(value: str | float) -> str:
    quantity(value)
    return str(value)


def _cores(value: str | float) -> str:
    amount = quantity(value)
    if not str(value).strip().endswith(("m", *"0123456789")) or not 0.001 <= amount <= MOST_CORES:
        raise ValueError(f"must be cores such as 2 or 500m, from 1m to {MOST_CORES}, got {value!r}")
    return str(value)


def _memory(value: str | float) -> str:
    if quantity(value) < LEAST_MEMORY:
        raise ValueError(f"must be memory such as 4Gi, at least 64Mi, got {value!r} ({quantity(value):g} bytes)")
    return str(value)


MOST_CORES = 10_000
LEAST_MEMORY = 64 * 2**20
Quantity = Annotated[str | int | float, AfterValidator(_quantity)]
Cores = Annotated[str | int | float, AfterValidator(_cores)]
Memory = Annotated[str | int | float, AfterValidator(_memory)]
LARGEST = 2**31 - 1
Name = Annotated[str, Field(pattern=NAME)]
Count = Annotated[int, Field(ge=0, le=LARGEST)]
Seconds = Annotated[int, Field(ge=1, le=LARGEST)]
Address = Annotated[str, AfterValidator(addresses.server)]
Text = Annotated[str, Field(pattern=TEXT)]
Variables = dict[Annotated[str, Field(pattern=VARIABLE)], Text]
Image = Annotated[str, Field(pattern=IMAGE), AfterValidator(well_formed)]
Labels = dict[Annotated[str, Field(pattern=LABEL)], Annotated[str, Field(pattern=LABEL_VALUE)]]
Price = Annotated[float, Field(ge=0.0)]


class Mlflow(Section):
    """The registry that jobs write to."""

    uri: Annotated[str, AfterValidator(addresses.registry)] | None = None
    """Tracking server as pods reach it; None: a database in `storage.path`."""
    token_secret: Name | None = None
    """Secret whose keys become variables, e.g. MLFLOW_TRACKING_TOKEN."""


class Profile(Section):
    """Where jobs run. A subclass sets `kind`, adds its keys, has `build` and `handle`, and overrides what differs."""

    kind: str

    is_here: ClassVar[bool] = False
    """Whether jobs run on this machine: with its folders, its interpreter and the files that a spec names."""
    files_folder: ClassVar[str] = FILES
    """Folder in which a program finds the files of its job."""
    readers: ClassVar[str] = "all who may see the jobs there"
    """Who can read a job's document; no password may be in it."""
    secret_source: ClassVar[str] = "as a variable of the machines there"
    """How programs get a password instead."""
    carrier: ClassVar[str] = "a job"
    """What carries a job's files, in messages about `largest_files`."""
    bucket_remedy: ClassVar[str] = "; it travels through a bucket, which profiles of this kind lack: write one file"
    """End of the message about code that is too large for a job's files where `bucket` is None."""

    def build(self, *, home: Path, offline: bool = False, warn: Warn = lambda error: None) -> Backend:
        """Return the backend; nothing is sent or made yet.

        Args:
            home: Where this machine keeps runs; of interest where `is_here`.
            offline: Plan without asking the backend.
            warn: Called with each failure that may pass, while a log is followed.
        """
        raise NotImplementedError(f"profiles of kind {self.kind} need a method build")

    def handle(self, name: str) -> Handle:
        """Return the handle of the job of a name; its scheme is the kind."""
        from graceful.launch.backend import Handle

        return Handle(scheme=self.kind, name=name)

    def checks(self, services: Services) -> Sequence[Check]:
        """Return the lines of `graceful doctor --on`; not called where `is_here`.

        Args:
            services: Checks of services beside it: a bucket, an MLflow server.
        """
        return ()

    @property
    def variables(self) -> Mapping[str, str]:
        """Return variables that a job gets in addition to this machine's; read where `is_here`."""
        return {}

    @property
    def largest_files(self) -> int | None:
        """Return the bytes that a job's document and files may have together; None: `build().plan` checks it."""
        return None

    @property
    def bucket(self) -> str | None:
        """Return s3://bucket/prefix for runs, through which folders of code travel, too; None: there is none."""
        return None

    @property
    def registry(self) -> str | None:
        """Return the MLflow server that jobs write to; None: a database in their home."""
        return None

    @property
    def kubernetes(self) -> KubeRay | None:
        """Return the profile if its jobs are objects of Kubernetes, for --context, --namespace and schedules."""
        return None
