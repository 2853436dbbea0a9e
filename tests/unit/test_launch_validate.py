"""What the schema, its CEL rules or the operator would refuse is found without a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from graceful.launch import names
from graceful.launch.kuberay import manifests, validate
from tests.support.launch import changed, cluster, job

CLEAN = manifests.rayjob(job(), cluster())
CLUSTER = "spec/rayClusterSpec"
GROUP = f"{CLUSTER}/workerGroupSpecs/0"
CRDS = Path(__file__).parents[3] / "shared" / "crds" / "ray.io_rayjobs.yaml"


def found(*changes: tuple[str, Any]) -> list[str]:
    document = CLEAN
    for path, value in changes:
        document = changed(document, path, value)
    return [f"{finding.where}: {finding.message}" for finding in validate.validate(document)]


@pytest.mark.parametrize("workers", [0, 1, 8])
def test_what_we_render_is_valid(workers: int) -> None:
    chosen = cluster(
        queue="team-a", worker={"gpu": 1, "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}]}
    )
    assert validate.validate(manifests.rayjob(job(workers=workers), chosen)) == ()


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("spec/shutdownAfterJobFinish", True, "unknown field, did you mean shutdownAfterJobFinishes?"),
        ("spec/submitterConfig/backofLimit", 1, "unknown field, did you mean backoffLimit?"),
        (f"{GROUP}/template/spec/containers/0/imagee", "x", "unknown field, did you mean image?"),
        (f"{GROUP}/template/spec/containers/0/name", None, "required and missing"),
        (f"{GROUP}/groupName", None, "required and missing"),
        (f"{CLUSTER}/headGroupSpec", None, "required and missing"),
        ("spec/backoffLimit", "2", "must be integer, got '2'"),
        ("spec/backoffLimit", True, "must be integer, got True"),
        ("spec/shutdownAfterJobFinishes", "yes", "must be boolean, got 'yes'"),
        (f"{CLUSTER}/authOptions/mode", "tokn", "must be one of"),
        (f"{GROUP}/template/spec/containers", {}, "must be array, got {}"),
        (f"{GROUP}/template/spec/containers/0/resources/limits/memory", 1.5, "must be a whole number or a text"),
        (f"{GROUP}/rayStartParams", {"num-cpus": 1}, "must be string, got 1"),
    ],
)
def test_the_schema_finds_wrong_keys_types_and_values_at_every_depth(path: str, value: Any, told: str) -> None:
    (line,) = found((path, value))
    assert told in line
    assert line.startswith("RayJob.spec")


@pytest.mark.parametrize(
    ("rules", "value", "told"),
    [
        ({"nullable": True, "type": "string"}, None, []),
        ({"type": "object", "properties": {"a": {}}}, {"b": 1}, [("spec.b", "unknown field")]),
        ({"type": "object", "properties": {"a": {}}, "x-kubernetes-preserve-unknown-fields": True}, {"b": 1}, []),
        ({"type": "object", "properties": {"a": {}}, "additionalProperties": {}}, {"b": 1}, []),
        ({"required": ["a"], "properties": {"a": {"default": 1}}}, {}, []),
        ({"type": "array", "minItems": 1}, [], [("spec", "must have at least 1 items, got 0")]),
        ({"type": "integer", "enum": [1]}, "x", [("spec", "must be integer, got 'x'")]),
    ],
)
def test_keywords_of_kubernetes_are_understood(rules: dict[str, Any], value: Any, told: list[tuple[str, str]]) -> None:
    assert list(validate.violations(value, rules)) == told


def test_alternatives_in_the_schema_are_whole_numbers_or_texts() -> None:
    def check(node: Any) -> None:
        if isinstance(node, dict):
            assert not node.keys() & {"allOf", "oneOf", "not"}
            assert ("anyOf" in node) == (node.get("x-kubernetes-int-or-string") is True)
            for part in node.values():
                check(part)

    check(validate.schema()["properties"]["spec"])


def test_nothing_is_not_a_value() -> None:
    document = {**CLEAN, "spec": {**CLEAN["spec"], "entrypoint": None}}
    assert any("must not be empty" in finding.message for finding in validate.validate(document))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ([("spec/entrypoint", "")], "spec.entrypoint: must not be empty"),
        ([("spec/clusterSelector", {"a": "b"})], "spec.backoffLimit: must be 0 with clusterSelector"),
        ([("spec/rayClusterSpec", None)], "required unless clusterSelector"),
        ([("spec/suspend", True), ("spec/shutdownAfterJobFinishes", False)], "spec.suspend: needs shutdown"),
        ([("spec/submissionMode", "SidecarMode")], "not possible in SidecarMode"),
        ([("spec/submissionMode", "InteractiveMode")], "must be 0 in InteractiveMode"),
        ([("spec/activeDeadlineSeconds", 0)], "spec.activeDeadlineSeconds: must be above 0"),
        ([("spec/backoffLimit", -1)], "must not be negative"),
        ([(f"{GROUP}/minReplicas", 3)], "3 is above maxReplicas 2"),
        ([(f"{GROUP}/minReplicas", None)], "both needed without autoscaling"),
        ([(f"{GROUP}/idleTimeoutSeconds", 60)], "needs autoscaling"),
        ([(f"{GROUP}/rayStartParams", {"labels": "a=b"})], "not possible; use the group's labels"),
        ([(f"{GROUP}/rayStartParams", {"num-cpus": "1"}), (f"{GROUP}/resources", {"CPU": "1"})], "keep one"),
        ([("spec/deletionStrategy", {"onSuccess": {"policy": "DeleteCluster"}})], "needs onSuccess and onFailure"),
    ],
)
def test_what_the_operator_would_refuse_is_found(changes: list[tuple[str, Any]], told: str) -> None:
    assert any(told in line for line in found(*changes))


def test_group_names_are_unique() -> None:
    groups = CLEAN["spec"]["rayClusterSpec"]["workerGroupSpecs"] * 2
    assert any("'workers' stands twice" in line for line in found((f"{CLUSTER}/workerGroupSpecs", groups)))


def test_a_queue_takes_seventeen_groups_and_wants_machines_back() -> None:
    (group,) = CLEAN["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    queued = ("metadata/labels", {**CLEAN["metadata"]["labels"], names.QUEUE: "team-a"})
    for count, wrong in ((17, False), (18, True)):
        groups = [{**group, "groupName": f"g{number}"} for number in range(count)]
        lines = found(queued, (f"{CLUSTER}/workerGroupSpecs", groups))
        assert any("at most 17" in line for line in lines) == wrong
    assert any(
        "must be true in a Kueue queue" in line for line in found(queued, ("spec/shutdownAfterJobFinishes", False))
    )


def test_other_kinds_are_left_to_the_server() -> None:
    assert validate.validate({"kind": "ConfigMap", "nonsense": 1}) == ()


@pytest.mark.skipif(not CRDS.exists(), reason=f"no {CRDS.name} beside this repository to compare with")
def test_the_bundled_schema_is_kuberays() -> None:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    original = yaml.load(CRDS.read_text(encoding="utf-8"), Loader=loader)
    assert validate.schema() == validate.prune(original)
