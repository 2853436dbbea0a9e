"""Each rule finds what it is for, and a job that we render has none of it."""

from __future__ import annotations

from typing import Any

import pytest

from graceful.launch import names
from graceful.launch.backend import Severity
from graceful.launch.kuberay import lint, manifests
from tests.support.launch import changed, cluster, job

CLEAN = manifests.rayjob(job(), cluster())
CLUSTER = "spec/rayClusterSpec"
HEAD = f"{CLUSTER}/headGroupSpec/template"
GROUP = f"{CLUSTER}/workerGroupSpecs/0"
RANK = f"{GROUP}/template"
CONTAINER = "spec/containers/0"
GRACE = "spec/terminationGracePeriodSeconds"
RULES_AND_CASES: list[tuple[str, list[tuple[str, Any]]]] = [
    ("no-shutdown", [("spec/shutdownAfterJobFinishes", None), ("spec/ttlSecondsAfterFinished", None)]),
    ("ttl-without-shutdown", [("spec/shutdownAfterJobFinishes", False), ("spec/deletionStrategy", {"onSuccess": {}})]),
    ("ray-version", [(f"{CLUSTER}/rayVersion", "2.59.0")]),
    ("ray-version", [(f"{CLUSTER}/rayVersion", None)]),
    ("ray-version", [(f"{HEAD}/{CONTAINER}/image", "rayproject/ray:2.59.1-py311")]),
    ("memory", [(f"{RANK}/{CONTAINER}/resources/limits/memory", None)]),
    ("memory", [(f"{HEAD}/{CONTAINER}/resources/limits/memory", "2Gi")]),
    ("submitter-template", [("spec/submitterPodTemplate", None)]),
    ("submitter-template", [(f"spec/submitterPodTemplate/{CONTAINER}/securityContext", None)]),
    ("submitter-template", [(f"spec/submitterPodTemplate/{CONTAINER}/resources", None)]),
    ("local-working-dir", [("spec/runtimeEnvYAML", "working_dir: ./here\n")]),
    ("local-working-dir", [("spec/runtimeEnvYAML", '{"working_dir": "/home/me"}')]),
    ("deletion-rules", [("spec/deletionStrategy", {"deletionRules": [{"policy": "DeleteCluster"}]})]),
    ("head-on-spot", [(f"{HEAD}/spec/nodeSelector", {"karpenter.sh/capacity-type": "spot"})]),
    ("head-on-spot", [(f"{HEAD}/spec/tolerations", [{"key": "cloud.google.com/gke-spot", "operator": "Exists"}])]),
    ("head-on-spot", [(f"{HEAD}/metadata/labels/{names.SPOT.replace('/', '~')}", "true")]),
    ("requests-without-limits", [(f"{RANK}/{CONTAINER}/resources/requests/nvidia.com~gpu", "1")]),
    ("requests-without-limits", [(f"{RANK}/{CONTAINER}/resources/limits/cpu", None)]),
    ("autoscaler-context", [(f"{CLUSTER}/enableInTreeAutoscaling", True)]),
    ("name", [("metadata/name", "m" * 48)]),
    ("name", [("metadata/name", "1st")]),
    ("pod-labels", [(f"{RANK}/metadata/labels/{names.RUN_ID.replace('/', '~')}", None)]),
    ("secret-in-sight", [("spec/entrypoint", "python run.py --password=hunter2")]),
    ("secret-in-sight", [("spec/runtimeEnvYAML", "env_vars: {API_TOKEN: hunter2}")]),
    ("secret-in-sight", [("spec/metadata", {"token": "hunter2"})]),
    ("secret-in-sight", [(f"{RANK}/{CONTAINER}/env/0", {"name": "AWS_SECRET_ACCESS_KEY", "value": "hunter2"})]),
    ("secret-in-sight", [("metadata/annotations/uri", "https://ann:hunter2@example.com")]),
    ("elastic-deepspeed", [(f"{GROUP}/maxReplicas", 4)]),
    ("ray-probes-hang", [(f"{CLUSTER}/rayVersion", "2.37.0")]),
    ("weak-security", [(f"{RANK}/spec/hostNetwork", True)]),
    ("weak-security", [(f"{RANK}/spec/volumes/0/hostPath", {"path": "/"})]),
    ("weak-security", [(f"{RANK}/{CONTAINER}/securityContext/capabilities/add", ["IPC_LOCK"])]),
    ("weak-security", [(f"{HEAD}/{CONTAINER}/securityContext/privileged", True)]),
    ("weak-security", [(f"{HEAD}/{CONTAINER}/securityContext/runAsUser", 0)]),
    ("weak-security", [(f"spec/submitterPodTemplate/{CONTAINER}/securityContext/allowPrivilegeEscalation", True)]),
    ("weak-security", [(f"{RANK}/spec/securityContext/seccompProfile/type", "Unconfined")]),
    (
        "topology-without-queue",
        [(f"{RANK}/metadata/annotations/kueue.x-k8s.io~podset-required-topology", "kubernetes.io~hostname")],
    ),
    ("mesh-sidecar", [("spec/submitterPodTemplate/metadata/labels/sidecar.istio.io~inject", "true")]),
    ("grace-period", [(f"{RANK}/{GRACE}", 100)]),
    ("grace-period", [(f"{HEAD}/{GRACE}", 5)]),
]


def mutated(changes: list[tuple[str, Any]]) -> dict[str, Any]:
    document = CLEAN
    for path, value in changes:
        *parents, last = path.split("/")
        document = slashed(document, [*parents, last], value)
    return document


def slashed(document: dict[str, Any], parts: list[str], value: Any) -> dict[str, Any]:
    """As `changed`, with ~ for a slash inside a key."""
    head, *rest = parts
    if not rest:
        return changed(document, head, value) if "~" not in head else replaced(document, head.replace("~", "/"), value)
    if head.isdecimal():
        items = list(document)
        items[int(head)] = slashed(items[int(head)], rest, value)
        return items  # type: ignore[return-value]  # a list inside a document
    return {**document, head: slashed(document.get(head, {}), rest, value)}


def replaced(document: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    kept = {name: part for name, part in document.items() if name != key}
    return kept if value is None else {**kept, key: value}


def rules(document: dict[str, Any], **options: Any) -> set[str]:
    return {finding.rule for finding in lint.lint(document, **options)}


def test_what_we_render_has_no_finding() -> None:
    assert lint.lint(CLEAN, client_ray="2.60.0", production=True) == ()


@pytest.mark.parametrize(("rule", "changes"), RULES_AND_CASES)
def test_a_rule_finds_what_it_is_for_and_names_place_and_remedy(rule: str, changes: list[tuple[str, Any]]) -> None:
    found = [finding for finding in lint.lint(mutated(changes), client_ray="2.60.0") if finding.rule == rule]
    assert found
    assert all(finding.where.startswith("RayJob.") and finding.message and finding.remedy for finding in found)
    assert all("hunter2" not in finding.line() for finding in found)


def test_every_rule_has_a_case_here() -> None:
    covered = {rule for rule, _ in RULES_AND_CASES} | {"mutable-image", "retry-without-checkpoints", "runs-not-shared"}
    assert covered == {rule.id for rule in lint.RULES}
    assert len({rule.id for rule in lint.RULES}) == len(lint.RULES)


@pytest.mark.parametrize("image", ["graceful:latest", "graceful:1.2", "graceful"])
def test_a_tag_is_refused_in_production_only(image: str) -> None:
    document = manifests.rayjob(job(image=image), cluster())
    assert "mutable-image" not in rules(document)
    (finding, *_) = [found for found in lint.lint(document, production=True) if found.rule == "mutable-image"]
    assert finding.severity is Severity.ERROR


def test_without_a_volume_retries_start_from_nothing_and_workers_share_nothing() -> None:
    bare = cluster(storage={})
    assert rules(manifests.rayjob(job(), bare)) == {"retry-without-checkpoints", "runs-not-shared"}
    assert rules(manifests.rayjob(job(workers=0), bare)) == {"retry-without-checkpoints"}
    assert rules(manifests.rayjob(job(workers=0, retries=0), bare)) == set()


def test_a_bucket_is_as_durable_as_a_volume() -> None:
    document = manifests.rayjob(job(), cluster(storage={"uri": "s3://bucket/runs"}))
    assert rules(document) == set()


def test_another_ray_here_is_a_warning_and_another_in_the_image_an_error() -> None:
    (here,) = lint.lint(CLEAN, client_ray="2.59.0")
    assert here.severity is Severity.WARNING
    document = manifests.rayjob(job(image="rayproject/ray:2.59.0"), cluster())
    assert {finding.severity for finding in lint.lint(document, client_ray="2.60.0")} == {Severity.ERROR}


def test_production_turns_regrets_into_errors() -> None:
    document = mutated([(f"{RANK}/{GRACE}", 10)])
    assert [finding.severity for finding in lint.lint(document)] == [Severity.WARNING]
    assert [finding.severity for finding in lint.lint(document, production=True)] == [Severity.ERROR]


def test_errors_come_first() -> None:
    document = mutated([(f"{RANK}/{GRACE}", 10), ("metadata/name", "1st")])
    assert [finding.severity for finding in lint.lint(document)] == [Severity.ERROR, Severity.WARNING]


def test_deletion_rules_and_a_queue_exclude_each_other() -> None:
    rules_and_queue = [
        ("spec/deletionStrategy", {"deletionRules": [{}]}),
        ("spec/ttlSecondsAfterFinished", None),
        (f"metadata/labels/{names.QUEUE.replace('/', '~')}", "team-a"),
    ]
    assert "deletion-rules" in rules(mutated(rules_and_queue))
    assert "deletion-rules" not in rules(mutated(rules_and_queue[:2]))


def test_a_raycronjob_is_warned_about_and_its_template_is_linted() -> None:
    template = {**CLEAN["spec"], "shutdownAfterJobFinishes": False}
    document = {"kind": "RayCronJob", "metadata": {"name": "nightly"}, "spec": {"jobTemplate": template}}
    assert {"ray-cron-job", "no-shutdown"} <= rules(document)


def test_other_kinds_have_no_rules() -> None:
    assert lint.lint({"kind": "ConfigMap", "metadata": {"name": "x"}}) == ()
