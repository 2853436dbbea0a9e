"""Validate RayJobs without a cluster: KubeRay's schema, its CEL rules, and what its operator refuses. Client.

The schema is that of KubeRay 1.7.0's custom resource (Apache-2.0), descriptions left out; a test compares it with the
original. Kubernetes fills in defaults before it validates, so do we; a key that the schema does not know would be
dropped silently by the server, so it is an error here.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
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
Violations = Iterator[tuple[str, str]]
_TYPE_KEYWORDS = ("type", "anyOf")
"""`anyOf` stands in the schema only where a whole number or a text is allowed; a test checks that."""
_MESSAGES = {
    "type": "must be {allowed}, got {value}",
    "anyOf": "must be a whole number or a text, got {value}",
    "enum": "must be one of {allowed}, got {value}",
    "pattern": "must match {allowed}, got {value}",
    "minimum": "must be at least {allowed}, got {value}",
    "maximum": "must be at most {allowed}, got {value}",
    "minLength": "must have at least {allowed} characters, got {size}",
    "maxLength": "must have at most {allowed} characters, got {size}",
    "minItems": "must have at least {allowed} items, got {size}",
    "maxItems": "must have at most {allowed} items, got {size}",
}


def validate(document: Document) -> tuple[Finding, ...]:
    """Return the findings about one RayJob; other kinds are left to the server."""
    if document.get("kind") != "RayJob":
        return ()
    spec = document.get("spec") or {}
    problems = [("schema", *problem) for problem in violations(spec, schema()["properties"]["spec"])]
    if not problems:  # the API server refuses violations of the schema before the operator sees them
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
    """Return the OpenAPI schema of a RayJob of ray.io/v1."""
    packed = resources.files("graceful.launch.kuberay").joinpath(SCHEMA).read_bytes()
    openapi: dict[str, Any] = json.loads(gzip.decompress(packed))
    return openapi


def prune(definition: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of version v1 of a CustomResourceDefinition, without descriptions."""
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


def violations(spec: Any, rules: Mapping[str, Any]) -> Violations:
    """Yield path and message of everything in `spec` that a schema refuses; of a value of a wrong type nothing else."""
    errors = list(_validator()(rules).iter_errors(spec))
    wrong_type = {tuple(error.absolute_path) for error in errors if error.validator in _TYPE_KEYWORDS}
    for error in errors:
        path = tuple(error.absolute_path)
        if error.validator in _TYPE_KEYWORDS or path not in wrong_type:
            yield ".".join(map(str, ("spec", *path))), _message(error)


@cache
def _validator() -> Any:
    """Return a validator class: draft 4, on which OpenAPI 3.0 is built, and what Kubernetes adds to it."""
    from jsonschema import Draft4Validator, ValidationError
    from jsonschema.validators import extend

    def check_type(validator: Any, expected: str, value: Any, rules: Mapping[str, Any]) -> Iterator[Any]:
        if not (value is None and rules.get("nullable")):
            yield from Draft4Validator.VALIDATORS["type"](validator, expected, value, rules) or ()

    def check_required(validator: Any, keys: Sequence[str], value: Any, rules: Mapping[str, Any]) -> Iterator[Any]:
        for key in keys if validator.is_type(value, "object") else ():
            if key not in value and "default" not in rules.get("properties", {}).get(key, {}):
                yield ValidationError("required and missing", path=[key])

    def check_properties(
        validator: Any, properties: Mapping[str, Any], value: Any, rules: Mapping[str, Any]
    ) -> Iterator[Any]:
        yield from Draft4Validator.VALIDATORS["properties"](validator, properties, value, rules) or ()
        open_ended = "additionalProperties" in rules or rules.get("x-kubernetes-preserve-unknown-fields")
        for key in value if validator.is_type(value, "object") and not open_ended else ():
            if key not in properties:
                yield ValidationError(f"unknown field{_nearest(key, properties)}", path=[key])

    checks = {"type": check_type, "required": check_required, "properties": check_properties}
    types = Draft4Validator.TYPE_CHECKER.redefine_many(
        {
            "object": lambda _, value: isinstance(value, Mapping),
            "array": lambda _, value: isinstance(value, list | tuple),
        }
    )
    return extend(Draft4Validator, checks, type_checker=types)


def _message(error: Any) -> str:
    """Return what is wrong with a value, on one line."""
    if error.validator in _TYPE_KEYWORDS and error.instance is None:
        return "must not be empty; leave the key out"
    template = _MESSAGES.get(error.validator)
    if template is None:
        return str(error.message)
    allowed = error.validator_value
    shown = repr(error.instance)
    return template.format(
        allowed=", ".join(map(str, allowed)) if isinstance(allowed, list) else allowed,
        value=shown if len(shown) <= LONGEST else f"{shown[:LONGEST]}...",
        size=len(error.instance) if hasattr(error.instance, "__len__") else 0,
    )


def _nearest(key: str, properties: Mapping[str, Any]) -> str:
    import difflib

    matches = difflib.get_close_matches(key, properties, n=1)
    return f", did you mean {matches[0]}?" if matches else ""


def _refused(spec: Mapping[str, Any], metadata: Mapping[str, Any]) -> Violations:
    """Yield violations of CEL rules and of checks that the operator makes after admission (ValidationFailed)."""
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
