"""Input and result of the rules against mistakes in RayJobs. Pure functions. Runs on the client."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from graceful.launch.backend import Document, Severity

Violations = Iterator[tuple[str, str] | tuple[str, str, Severity]]
"""(field, what is wrong) and, where it is not the rule's own, the severity."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """Input of a rule: a RayJob, and what is known besides it.

    Attributes:
        document: The RayJob.
        client_ray: Version of Ray beside this command; None: none installed.
        production: Whether only what may run in production passes.
    """

    document: Document
    client_ray: str | None = None
    production: bool = False

    @property
    def spec(self) -> Mapping[str, Any]:
        """Return the RayJob's specification."""
        return self.document.get("spec") or {}

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Return the RayJob's name, labels and annotations."""
        return self.document.get("metadata") or {}

    @property
    def cluster(self) -> Mapping[str, Any]:
        """Return the RayCluster that the RayJob makes."""
        return self.spec.get("rayClusterSpec") or {}

    @property
    def groups(self) -> list[Mapping[str, Any]]:
        """Return the worker groups of the RayCluster."""
        return list(self.cluster.get("workerGroupSpecs") or ())

    def pods(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Yield (field, template) of head and worker groups."""
        yield (
            "spec.rayClusterSpec.headGroupSpec.template",
            (self.cluster.get("headGroupSpec") or {}).get("template", {}),
        )
        for number, group in enumerate(self.groups):
            yield f"spec.rayClusterSpec.workerGroupSpecs.{number}.template", group.get("template", {})

    def all_pods(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Yield (field, template) of every pod: head, worker groups, submitter."""
        yield from self.pods()
        yield "spec.submitterPodTemplate", self.spec.get("submitterPodTemplate") or {}

    def containers(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Yield (field, container) that Ray runs in: the first of each pod."""
        for where, template in self.pods():
            containers = (template.get("spec") or {}).get("containers") or ()
            if containers:
                yield f"{where}.spec.containers.0", containers[0]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A check of one mistake.

    Attributes:
        id: Stable; people look it up.
        severity: Unless a finding says otherwise.
        remedy: What to write.
        check: Yields what it found.
    """

    id: str
    severity: Severity
    remedy: str
    check: Callable[[Subject], Violations]


def rules_of(*rows: tuple[str, Severity, Callable[[Subject], Violations], str]) -> tuple[Rule, ...]:
    """Return rules, each written as (id, severity, check, remedy)."""
    return tuple(Rule(id=name, severity=severity, check=check, remedy=remedy) for name, severity, check, remedy in rows)


def ray_container(pod: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the container that Ray runs in."""
    containers = pod.get("containers") or [{}]
    container: Mapping[str, Any] = containers[0]
    return container


def variable(container: Mapping[str, Any], name: str) -> str | None:
    """Return the value of an environment variable; the last one wins, as in a pod."""
    return next((item.get("value") for item in reversed(container.get("env") or ()) if item["name"] == name), None)
