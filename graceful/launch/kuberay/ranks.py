"""The number of training processes (ranks) in a pod, and their shares of its resources. Pure functions. Client.

A pod of eight accelerators holds eight ranks, which talk over NVLink. So that Ray puts exactly as many into each pod,
the pod offers so many of a resource of Ray with the name "rank", and each rank takes one.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graceful.launch.backend import Finding, Severity
from graceful.launch.resources import GIB, cores, is_accelerator, quantity, written

if TYPE_CHECKING:
    from graceful.launch.job import JobSpec
    from graceful.launch.kuberay.machines import Worker

RESOURCE = "rank"
"""Resource of Ray that counts places for ranks."""
SHARED_MEMORY_SHARE = 0.25
_SLICE = re.compile(r"nvidia\.com/(mig-.*|gpu\.shared)")
MOST_PODS_DRAWN = 8


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """How the ranks of a job fill pods.

    Attributes:
        total: Ranks of the job.
        per_pod: Of one pod.
        worker: The pod.
    """

    total: int
    per_pod: int
    worker: Worker

    @classmethod
    def of(cls, job: JobSpec, worker: Worker) -> Ranks:
        """Return how many ranks of a job a pod holds: never more than the job has."""
        wanted = worker.ranks or worker.gpu or 1
        return cls(total=job.workers, per_pod=max(min(wanted, job.workers), 1), worker=worker)

    @property
    def pods(self) -> int:
        """Return how many pods the ranks fill; the last may have room left, which `faults` refuses."""
        return -(-self.total // self.per_pod)

    @property
    def cpus(self) -> float:
        """Return the CPUs of Ray that a rank takes: whole ones, or its part of the pod's where it has less than one."""
        of_pod = math.ceil(quantity(self.worker.cpu))  # as KubeRay tells Ray
        return of_pod // self.per_pod or math.floor(1e4 * of_pod / self.per_pod) / 1e4

    @property
    def offered(self) -> dict[str, str]:
        """Return what a pod offers besides what KubeRay reads from its limits: places, and GPUs of other names."""
        gpu = self.worker.gpu
        unknown = {"GPU": str(gpu)} if gpu and not is_accelerator(self.worker.gpu_resource) else {}
        return {RESOURCE: str(self.per_pod), **unknown}

    @property
    def variable(self) -> str:
        """Return what the driver reads: Ray's resources of one rank, besides its GPU."""
        return json.dumps({"CPU": self.cpus, RESOURCE: 1})

    @property
    def shared_memory(self) -> str | None:
        """Return the size of /dev/shm; None: what the container runtime gives."""
        if self.worker.shm is not None:
            return str(self.worker.shm)
        if self.per_pod == 1:
            return None
        return written(int(quantity(self.worker.memory) * SHARED_MEMORY_SHARE) // 2**20 * 2**20)

    def faults(self) -> Iterator[Finding]:
        """Yield what is wrong with it."""
        if self.total % self.per_pod:
            whole = self.total - self.total % self.per_pod
            yield _finding(
                "uneven-ranks",
                Severity.ERROR,
                "train.num_workers",
                f"{self.total} processes do not fill pods of {self.per_pod}",
                f"write {whole} or {whole + self.per_pod}, or another profile.worker.ranks",
            )
        gpus = self.worker.gpu
        if gpus and self.per_pod > gpus:
            yield _finding(
                "shared-gpu",
                Severity.ERROR,
                "profile.worker.ranks",
                f"{self.per_pod} processes in a pod of {gpus} accelerators; each needs one of its own",
                f"write {gpus} or less",
            )
        elif gpus > self.per_pod:
            yield _finding(
                "idle-gpu",
                Severity.WARNING,
                "profile.worker.gpu",
                f"{self.per_pod} processes in a pod of {gpus} accelerators, of which {gpus - self.per_pod} stay idle",
                f"set train.num_workers to a multiple of {gpus}, or worker.gpu to {self.per_pod}",
            )
        if gpus > 1 and _SLICE.fullmatch(self.worker.gpu_resource):
            yield _finding(
                "several-slices",
                Severity.ERROR,
                "profile.worker.gpu",
                f"{gpus} slices of GPUs in a pod; CUDA shows a process one of them alone",
                "write gpu: 1, so that each pod has one slice and one process",
            )
        if self.shared_memory is not None and quantity(self.shared_memory) >= quantity(self.worker.memory):
            yield _finding(
                "shared-memory",
                Severity.ERROR,
                "profile.worker.shm",
                f"{self.shared_memory} of {self.worker.memory}: what lies in /dev/shm counts as memory of the pod",
                "write less than worker.memory",
            )

    def drawn(self) -> Iterator[str]:
        """Yield lines that show which ranks are in which pod, and what each gets."""
        if not self.total:
            return
        memory = int(quantity(self.worker.memory)) // self.per_pod
        gpu = ", 1 accelerator" if self.worker.gpu else ""
        each = f"{cores(quantity(self.worker.cpu) / self.per_pod)} cores, {memory / GIB:.3g} GiB{gpu}"
        devices = f", {self.worker.gpu} {self.worker.gpu_resource}" if self.worker.gpu else ""
        shared = f"; /dev/shm {self.shared_memory} in each pod" if self.shared_memory else ""
        yield f"{_counted(self.total, 'rank')} in {_counted(self.pods, 'pod')}, each rank with {each}{shared}"
        for pod in range(min(self.pods, MOST_PODS_DRAWN)):
            first, last = pod * self.per_pod, min((pod + 1) * self.per_pod, self.total) - 1
            ranks = f"rank {first}" if first == last else f"ranks {first}-{last}"
            yield f"  pod {pod}: {ranks}{devices}"
        if self.pods > MOST_PODS_DRAWN:
            yield f"  ... to pod {self.pods - 1}"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _finding(rule: str, severity: Severity, where: str, message: str, remedy: str) -> Finding:
    return Finding(rule=rule, severity=severity, where=where, message=message, remedy=remedy)
