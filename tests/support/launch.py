"""A small job and a small cluster, as values; and a server that only remembers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from graceful.launch import profile
from graceful.launch.job import JobSpec
from graceful.launch.kuberay.profile import KubeRay
from graceful.launch.kubernetes.kube import Listing
from graceful.launch.refusals import ConflictError, NotFoundError
from graceful.patience import Patience

NAMED = ("Secret", "ServiceAccount", "PersistentVolumeClaim", "PriorityClass", "StorageClass", "LocalQueue")
CLUSTER: dict[str, Any] = {
    "kind": "kuberay",
    "namespace": "team-a",
    "image": "registry.example.com/graceful@sha256:" + "0" * 64,
    "storage": {"claim": "graceful-runs"},
}
COMMAND = ("python", "-m", "graceful.programs", "refresh")


def cluster(**changes: Any) -> KubeRay:
    found = profile.parse({**CLUSTER, **changes})
    assert isinstance(found, KubeRay)
    return found


def job(**changes: Any) -> JobSpec:
    given: dict[str, Any] = {
        "name": "refresh glyphs-v2",
        "run_id": "glyphs-v2",
        "command": COMMAND,
        "document": '{"model": "glyphs"}',
        "workers": 2,
        "labels": {"config-hash": "c0ffee", "engine": "deepspeed"},
        **changes,
    }
    return JobSpec(**given)


def changed(document: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Return a copy with one value replaced; a number selects an item, None removes the key."""
    copied = copy.deepcopy(document)
    *parents, last = (int(part) if part.isdecimal() else part for part in path.split("/"))
    node: Any = copied
    for part in parents:
        node = node[part] if isinstance(part, int) else node.setdefault(part, {})
    if value is None:
        node.pop(last, None)
    else:
        node[last] = value
    return copied


@dataclass
class Server:
    """Keeps objects by kind and name; what profiles name is there.

    Of a server only what planning rests on: names are unique, dry runs keep nothing.

    `before` is called with each verb and document and may raise.
    """

    objects: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    before: Callable[[str, str], None] = lambda verb, kind: None
    namespace: str = "team-a"
    patience: Patience = field(default_factory=lambda: Patience(sleep=lambda seconds: None))

    def get(self, kind: str, name: str, *, namespace: str | None = None) -> dict[str, Any]:
        self._called("get", kind)
        if kind in NAMED:
            return {"kind": kind, "metadata": {"name": name}}
        if (kind, name) not in self.objects:
            raise NotFoundError(f"get {kind} {name}: not found")
        return copy.deepcopy(self.objects[kind, name])

    def create(self, document: dict[str, Any], *, dry_run: bool = False) -> dict[str, Any]:
        key = (document["kind"], document["metadata"].get("name", ""))
        self._called("try" if dry_run else "create", key[0])
        if key in self.objects:
            raise ConflictError(f"create {key}: exists")
        made = copy.deepcopy(document)
        made["metadata"]["uid"] = f"uid-{len(self.calls)}"
        if not dry_run:
            self.objects[key] = made
        return copy.deepcopy(made)

    def apply(self, document: dict[str, Any], *, dry_run: bool = False, force: bool = False) -> dict[str, Any]:
        assert dry_run
        self._called("try", document["kind"])
        return copy.deepcopy(document)

    def list(self, kind: str) -> Listing:
        self._called("get", kind)
        node = {"metadata": {"name": "n"}, "spec": {}, "status": {"allocatable": {"cpu": "64", "memory": "1Ti"}}}
        return Listing(items=(node,), resource_version="1")

    def serves(self, group: str) -> bool:
        return True

    def patch(self, kind: str, name: str, body: dict[str, Any], *, namespace: str | None = None) -> dict[str, Any]:
        self._called("patch", kind)
        self.objects[kind, name]["metadata"] |= body["metadata"]
        return self.objects[kind, name]

    def delete(self, kind: str, name: str, *, namespace: str | None = None) -> None:
        self._called("delete", kind)
        del self.objects[kind, name]

    def _called(self, verb: str, kind: str) -> None:
        self.calls.append(f"{verb} {kind}")
        self.before(verb, kind)
