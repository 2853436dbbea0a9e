"""Whether any node of a cluster could ever hold a pod: taints, labels, sizes. Pure functions. Client."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from graceful.launch.backend import Document
from graceful.launch.resources import quantity

BLOCKING = ("NoSchedule", "NoExecute")
PASSING_TAINTS = ("node.kubernetes.io/", "node.cloudprovider.kubernetes.io/", "ToBeDeletedByClusterAutoscaler")
"""Prefixes of the taints that come and go with the state of a node."""


def misfit(pod: Mapping[str, Any], nodes: Sequence[Document]) -> str:
    """Return why no node could hold a pod, even an empty one; empty if one could.

    Args:
        pod: Its specification.
        nodes: All of the cluster.
    """
    reasons = [_reason(pod, node) for node in nodes]
    if not reasons:
        return "the cluster has no nodes"
    if not all(reasons):
        return ""
    counted = ", ".join(f"{count} {text}" for text, count in Counter(reasons).most_common())
    return f"no node of {len(nodes)} could hold it: {counted}"


def _reason(pod: Mapping[str, Any], node: Document) -> str:
    labels = node["metadata"].get("labels") or {}
    lacking = [f"{key}={value}" for key, value in (pod.get("nodeSelector") or {}).items() if labels.get(key) != value]
    if lacking:
        return f"without label {', '.join(lacking)}"
    if not _has_affinity(pod, labels, node["metadata"]["name"]):
        return "outside the node affinity"
    taint = _taint(pod, node)
    return f"with taint {taint}" if taint else _too_small(pod, node)


def _has_affinity(pod: Mapping[str, Any], labels: Mapping[str, str], name: str) -> bool:
    affinity = (pod.get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}
    terms = required.get("nodeSelectorTerms") or ()
    return not terms or any(
        all(_matches(expression, labels) for expression in term.get("matchExpressions") or ())
        and all(_matches(field, {"metadata.name": name}) for field in term.get("matchFields") or ())
        for term in terms
    )


def _matches(expression: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    value, values, operator = labels.get(expression["key"]), expression.get("values") or [""], expression["operator"]
    if operator in ("In", "NotIn"):
        return bool((value in values) == (operator == "In"))
    if operator in ("Exists", "DoesNotExist"):
        return bool((value is not None) == (operator == "Exists"))
    try:
        number, bound = int(value or ""), int(values[0])
    except ValueError:
        return False
    return number > bound if operator == "Gt" else number < bound


def _taint(pod: Mapping[str, Any], node: Document) -> str:
    tolerations = pod.get("tolerations") or ()
    for taint in node["spec"].get("taints") or ():
        blocks = taint["effect"] in BLOCKING and not taint["key"].startswith(PASSING_TAINTS)
        if blocks and not any(_tolerates(toleration, taint) for toleration in tolerations):
            return f"{taint['key']}={taint.get('value', '')}:{taint['effect']}"
    return ""


def _tolerates(toleration: Mapping[str, Any], taint: Mapping[str, Any]) -> bool:
    if toleration.get("effect") not in (None, "", taint["effect"]):
        return False
    if toleration.get("key") not in (None, "", taint["key"]):
        return False
    return toleration.get("operator") == "Exists" or (toleration.get("value") or "") == (taint.get("value") or "")


def _too_small(pod: Mapping[str, Any], node: Document) -> str:
    allocatable = (node.get("status") or {}).get("allocatable") or {}
    for resource, amount in _requests(pod.get("containers") or ()).items():
        if amount > quantity(allocatable.get(resource, "0")):
            return f"with {allocatable.get(resource, 'no')} {resource}, below what it requests"
    return ""


def _requests(containers: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for container in containers:
        resources = container.get("resources") or {}
        for resource, amount in {**(resources.get("limits") or {}), **(resources.get("requests") or {})}.items():
            total[resource] = total.get(resource, 0.0) + quantity(amount)
    return total
