"""Judge RayJobs without a cluster: KubeRay's schema, its CEL rules, and what its operator refuses. Client.

The schema is that of KubeRay 1.7.0's custom resource (Apache-2.0), descriptions left out; a test compares it with the
original. Kubernetes fills in defaults before it validates, so do we; a key that the schema does not know would be
dropped silently by the server, so it is an error here.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import resources
from typing import Any

from graceful.launch import names
from graceful.launch.backend import Document, Finding, Severity

SCHEMA = "rayjob-1.7.0.schema.json.gz"
MOST_GROUPS = 17
"""Worker groups that fit one Kueue workload beside the head."""
LONGEST = 60
"""Characters of a wrong value that a message repeats."""
_TYPES: dict[str, tuple[type, ...]] = {
    "object": (Mapping,),
    "array": (list, tuple),
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
}
Violations = Iterator[tuple[str, str]]


def validate(document: Document) -> tuple[Finding, ...]:
    """Findings about one RayJob; other kinds are left to the server."""
    if document.get("kind") != "RayJob":
        return ()
    spec = document.get("spec") or {}
    problems = [("schema", *problem) for problem in _walk(spec, schema()["properties"]["spec"], "spec")]
    if not problems:  # the operator never sees what the schema refuses
        problems = [("operator", *problem) for problem in _refused(spec, document.get("metadata") or {})]
    return tuple(
        Finding(
            rule=rule,
            severity=Severity.ERROR,
            where=f"RayJob.{where}",
            message=message,
            remedy="correct the profile or the job" if rule == "schema" else "the operator would refuse the job",
        )
        for rule, where, message in problems
    )


@cache
def schema() -> dict[str, Any]:
    """The OpenAPI schema of a RayJob of ray.io/v1."""
    packed = resources.files("graceful.launch").joinpath(SCHEMA).read_bytes()
    openapi: dict[str, Any] = json.loads(gzip.decompress(packed))
    return openapi


def prune(definition: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of version v1 of a CustomResourceDefinition, without descriptions."""
    version = next(version for version in definition["spec"]["versions"] if version["name"] == "v1")
    pruned: dict[str, Any] = _without_descriptions(version["schema"]["openAPIV3Schema"])
    return pruned


def _without_descriptions(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {
            key: _without_descriptions(part)
            for key, part in node.items()
            if key != "description" or isinstance(part, Mapping)
        }
    return [_without_descriptions(part) for part in node] if isinstance(node, list) else node


def _walk(value: Any, rules: Mapping[str, Any], path: str) -> Violations:
    """What one value and everything below it violates."""
    if value is None:
        if not rules.get("nullable"):
            yield path, "must not be empty; leave the key out"
        return
    wrong = _wrong_type(value, rules)
    if wrong:
        yield path, wrong
        return
    yield from ((path, problem) for problem in _wrong_value(value, rules))
    if isinstance(value, Mapping):
        yield from _walk_keys(value, rules, path)
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from _walk(item, rules.get("items") or {}, f"{path}.{number}")


def _walk_keys(value: Mapping[str, Any], rules: Mapping[str, Any], path: str) -> Violations:
    known, others = rules.get("properties") or {}, rules.get("additionalProperties")
    for key in rules.get("required") or ():
        if key not in value and "default" not in known.get(key, {}):
            yield f"{path}.{key}", "required and missing"
    for key, part in value.items():
        if key in known:
            yield from _walk(part, known[key], f"{path}.{key}")
        elif isinstance(others, Mapping):
            yield from _walk(part, others, f"{path}.{key}")
        elif known and not (others or rules.get("x-kubernetes-preserve-unknown-fields")):
            yield f"{path}.{key}", f"unknown field{_nearest(key, known)}"


def _wrong_type(value: Any, rules: Mapping[str, Any]) -> str:
    if rules.get("x-kubernetes-int-or-string"):
        allowed: tuple[type, ...] = (int, str)
        wanted = "a whole number or a text"
    else:
        wanted = str(rules.get("type", ""))
        allowed = _TYPES.get(wanted, (object,))
    if isinstance(value, allowed) and not (isinstance(value, bool) and bool not in allowed and object not in allowed):
        return ""
    return f"must be {wanted}, got {_shown(value)}"


def _wrong_value(value: Any, rules: Mapping[str, Any]) -> Iterator[str]:
    if "enum" in rules and value not in rules["enum"]:
        yield f"must be one of {', '.join(map(str, rules['enum']))}, got {_shown(value)}"
    if isinstance(value, int | float) and not isinstance(value, bool):
        if value < rules.get("minimum", value):
            yield f"must be at least {rules['minimum']}, got {value}"
        if value > rules.get("maximum", value):
            yield f"must be at most {rules['maximum']}, got {value}"
    if isinstance(value, str):
        if "pattern" in rules and not re.search(rules["pattern"], value):
            yield f"must match {rules['pattern']}, got {_shown(value)}"
        yield from _wrong_size(len(value), rules, "Length")
    if isinstance(value, list | tuple):
        yield from _wrong_size(len(value), rules, "Items")


def _wrong_size(size: int, rules: Mapping[str, Any], of: str) -> Iterator[str]:
    if not rules.get(f"min{of}", 0) <= size <= rules.get(f"max{of}", size):
        yield f"must have {rules.get(f'min{of}', 0)} to {rules.get(f'max{of}', 'any')} {of.lower()}, got {size}"


def _nearest(key: str, known: Mapping[str, Any]) -> str:
    import difflib

    near = difflib.get_close_matches(key, known, n=1)
    return f", did you mean {near[0]}?" if near else ""


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _refused(spec: Mapping[str, Any], metadata: Mapping[str, Any]) -> Violations:
    """CEL rules of the schema and checks of the operator, which answers with ValidationFailed after admission."""
    yield from _refused_job(spec)
    yield from _refused_deletion(spec)
    cluster = spec.get("rayClusterSpec") or {}
    groups = cluster.get("workerGroupSpecs") or ()
    queued = names.QUEUE in (metadata.get("labels") or {})
    if queued and not spec.get("shutdownAfterJobFinishes"):
        yield "spec.shutdownAfterJobFinishes", "must be true in a Kueue queue"
    if queued and len(groups) > MOST_GROUPS:
        yield "spec.rayClusterSpec.workerGroupSpecs", f"at most {MOST_GROUPS} in a Kueue queue, got {len(groups)}"
    group_names: set[str] = set()
    autoscaling = bool(cluster.get("enableInTreeAutoscaling"))
    for number, group in enumerate(groups):
        where = f"spec.rayClusterSpec.workerGroupSpecs.{number}"
        if group.get("groupName") in group_names:
            yield f"{where}.groupName", f"{group['groupName']!r} stands twice"
        group_names.add(str(group.get("groupName")))
        yield from ((f"{where}{field}", problem) for field, problem in _refused_group(group, autoscaling=autoscaling))
    yield from _refused_parameters(cluster.get("headGroupSpec") or {}, "spec.rayClusterSpec.headGroupSpec")


def _refused_job(spec: Mapping[str, Any]) -> Violations:
    mode, selector = spec.get("submissionMode", "K8sJobMode"), spec.get("clusterSelector")
    if not selector and not spec.get("rayClusterSpec"):
        yield "spec.rayClusterSpec", "required unless clusterSelector names a cluster"
    if selector and spec.get("backoffLimit"):
        yield "spec.backoffLimit", "must be 0 with clusterSelector"
    if selector and spec.get("suspend"):
        yield "spec.suspend", "not possible with clusterSelector"
    if spec.get("suspend") and not spec.get("shutdownAfterJobFinishes"):
        yield "spec.suspend", "needs shutdownAfterJobFinishes: true"
    if mode != "InteractiveMode" and not spec.get("entrypoint"):
        yield "spec.entrypoint", "must not be empty"
    if mode == "InteractiveMode" and spec.get("backoffLimit"):
        yield "spec.backoffLimit", "must be 0 in InteractiveMode"
    if mode == "SidecarMode" and (spec.get("submitterPodTemplate") or spec.get("submitterConfig")):
        yield "spec.submitterPodTemplate", "not possible in SidecarMode"
    for key in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        if spec.get(key) is not None and spec[key] <= 0:
            yield f"spec.{key}", f"must be above 0, got {spec[key]}"
    for key in ("ttlSecondsAfterFinished", "backoffLimit"):
        if (spec.get(key) or 0) < 0:
            yield f"spec.{key}", f"must not be negative, got {spec[key]}"


def _refused_deletion(spec: Mapping[str, Any]) -> Violations:
    strategy, where = spec.get("deletionStrategy"), "spec.deletionStrategy"
    if not strategy:
        return
    rules = strategy.get("deletionRules")
    both = "onSuccess" in strategy and "onFailure" in strategy
    if rules is not None and ("onSuccess" in strategy or "onFailure" in strategy):
        yield where, "deletionRules exclude onSuccess and onFailure"
    if rules is None and not both:
        yield where, "needs onSuccess and onFailure, or deletionRules"
    if rules and spec.get("shutdownAfterJobFinishes"):
        yield where, "deletionRules exclude shutdownAfterJobFinishes"
    for number, rule in enumerate(rules or ()):
        condition = rule.get("condition") or {}
        if ("jobStatus" in condition) == ("jobDeploymentStatus" in condition):
            yield f"{where}.deletionRules.{number}.condition", "needs one of jobStatus and jobDeploymentStatus"


def _refused_group(group: Mapping[str, Any], *, autoscaling: bool) -> Violations:
    smallest, largest = group.get("minReplicas"), group.get("maxReplicas")
    if not autoscaling and (smallest is None or largest is None):
        yield ".minReplicas", "minReplicas and maxReplicas are both needed without autoscaling"
    if smallest is not None and largest is not None and smallest > largest:
        yield ".minReplicas", f"{smallest} is above maxReplicas {largest}"
    if group.get("idleTimeoutSeconds") is not None and not autoscaling:
        yield ".idleTimeoutSeconds", "needs autoscaling"
    yield from _refused_parameters(group, "")


def _refused_parameters(group: Mapping[str, Any], where: str) -> Violations:
    parameters = group.get("rayStartParams") or {}
    if "labels" in parameters:
        yield f"{where}.rayStartParams.labels", "not possible; use the group's labels"
    doubled = [key for key in parameters if key in ("num-cpus", "num-gpus", "memory", "resources")]
    if doubled and group.get("resources"):
        yield f"{where}.rayStartParams.{doubled[0]}", "stands beside the group's resources; keep one"
