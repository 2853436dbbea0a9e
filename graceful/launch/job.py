"""A job, the interface between programs and backends: a command with an environment and a document. Client."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

FILES = "/etc/graceful"
"""Folder at which a cluster mounts a job's document and files."""


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one worker needs at least; None: as much as the backend gives by default.

    Attributes:
        cpu: Cores.
        memory: Bytes.
        gpu: Accelerators.
    """

    cpu: float | None = None
    memory: int | None = None
    gpu: int | None = None


@dataclass(frozen=True, kw_only=True)
class JobSpec:
    """Everything a backend needs to know in order to run a program.

    Attributes:
        name: For people: messages and process lists.
        command: Program and arguments; never a shell line.
        env: Variables added to those that the backend has anyway; no secrets, which come from the backend.
        document: Text that the program reads: from its standard input on this machine (None: it inherits ours), from
            the file named by GRACEFUL_RUN_SPEC on a cluster.
        files: Texts by file name that lie beside the document on a cluster, in the folder FILES.
        run_id: The run that is computed; the same id is the same job, however often it is submitted.
        image: Container image; None: that of the backend.
        workers: Processes that train; 0: the driver does it alone.
        resources: The resources of one worker.
        queue: Where it waits for its turn; None: that of the backend, if it has one.
        labels: Facts recorded with the job: digest of the spec, commit, user.
        retries: How often a failed job is started again; None: the backend's default.
        deadline: Seconds after which an attempt is stopped; None: the backend's default.
    """

    name: str
    command: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    document: str | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    run_id: str = ""
    image: str | None = None
    workers: int = 0
    resources: Resources = Resources()
    queue: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    retries: int | None = None
    deadline: float | None = None
