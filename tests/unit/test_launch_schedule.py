"""What a schedule sends to a cluster: golden documents, the chart's conventions, names that fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from graceful.errors import SpecError
from graceful.launch import plan, profile
from graceful.launch.kuberay import cronjob, manifests
from graceful.launch.kuberay.cronjob import Schedule
from graceful.launch.kuberay.profile import KubeRay
from graceful.schedules import cron
from tests.support.launch import cluster

ROOT = Path(__file__).parents[2]
TEMPLATE = (ROOT / "helm/graceful/templates/schedules.yaml").read_text(encoding="utf-8")
HELPERS = (ROOT / "helm/graceful/templates/_helpers.tpl").read_text(encoding="utf-8")
Golden = Callable[[str, str], None]
SCHEDULE = Schedule(
    name="nightly",
    cron="0 3 * * *",
    time_zone="Europe/Berlin",
    model="glyphs",
    document={"model": "glyphs", "name": "v1", "if_new_data": True},
    account="rel-graceful-submitter",
)


def pod(cronjob: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = cronjob["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    return found


def containers(cronjob: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod(cronjob)["initContainers"], *pod(cronjob)["containers"]]


@pytest.mark.parametrize("name", ["kind", "gpu-spot"])
def test_golden_schedules(name: str, golden: Golden) -> None:
    chosen = profile.load(name, folder=ROOT / "cluster")
    assert isinstance(chosen, KubeRay)
    golden(f"launch/schedule-{name}.yaml", plan.as_yaml(*cronjob.render(SCHEDULE, chosen)))


def test_a_pod_submits_under_the_name_of_its_firing_and_waits_for_that_run() -> None:
    _, made = cronjob.render(SCHEDULE, cluster())
    submit, wait = containers(made)
    assert submit["args"][:2] == ["submit", "/etc/graceful/job/spec.yaml"]
    assert {"--yes", "--set=name=$(GRACEFUL_FIRING)"} <= set(submit["args"])
    assert wait["args"][:2] == ["status", "glyphs-$(GRACEFUL_FIRING)"]
    for container in (submit, wait):
        variables = {item["name"]: item for item in container["env"]}
        path = variables["GRACEFUL_FIRING"]["valueFrom"]["fieldRef"]["fieldPath"]
        assert path == "metadata.labels['batch.kubernetes.io/job-name']"
        assert path in HELPERS


def test_it_follows_the_conventions_of_the_chart() -> None:
    _, made = cronjob.render(SCHEDULE, cluster())
    template = made["spec"]["jobTemplate"]["spec"]["template"]
    for labels in (made["metadata"]["labels"], made["spec"]["jobTemplate"]["metadata"]["labels"]):
        assert labels["graceful.dev/schedule"] == "nightly"
    assert template["metadata"]["labels"]["graceful.dev/role"] == "schedule"
    for word in ("graceful.dev/schedule: {{ $name }}", '"graceful.dev/role" "schedule"', "$(GRACEFUL_FIRING)"):
        assert word in TEMPLATE
    rules = made["spec"]["jobTemplate"]["spec"]["podFailurePolicy"]["rules"]
    assert rules[1]["onExitCodes"] == {"operator": "In", "values": [1, 2, 3, 5]}
    assert "onExitCodes: {operator: In, values: [1, 2, 3, 5]}" in HELPERS


def test_only_the_submitting_pod_has_a_token_and_it_is_hardened() -> None:
    _, made = cronjob.render(SCHEDULE, cluster(user=1234, pull_secrets=["registry"]))
    found = pod(made)
    assert found["automountServiceAccountToken"] is True
    assert found["serviceAccountName"] == "rel-graceful-submitter"
    assert found["securityContext"]["runAsUser"] == 1234
    assert found["imagePullSecrets"] == [{"name": "registry"}]
    for container in containers(made):
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert {"/tmp", "/home/ray"} <= {mount["mountPath"] for mount in container["volumeMounts"]}
        assert "envFrom" not in container


def test_what_a_pod_reads_is_named_by_its_content() -> None:
    config, made = cronjob.render(replace(SCHEDULE, files={"task.py": "x = 1\n"}), cluster(context="kind"))
    assert config["immutable"] is True
    assert cronjob.config_of(made["spec"]["jobTemplate"]["spec"]["template"]) == config["metadata"]["name"]
    assert yaml.safe_load(config["data"]["spec.yaml"]) == SCHEDULE.document
    assert config["data"]["task.py"] == "x = 1\n"
    again = profile.parse(yaml.safe_load(config["data"]["profile.yaml"]))
    assert again == cluster()  # in a pod, the context is the pod's own
    other, _ = cronjob.render(SCHEDULE, cluster(context="kind"))
    assert other["metadata"]["name"] != config["metadata"]["name"]
    later, _ = cronjob.render(replace(SCHEDULE, files={"task.py": "x = 1\n"}, cron="@daily"), cluster(context="kind"))
    assert later["metadata"]["name"] == config["metadata"]["name"]


def test_pausing_is_no_part_of_what_is_applied() -> None:
    _, made = cronjob.render(SCHEDULE, cluster())
    assert "suspend" not in made["spec"]


def test_too_long_a_name_and_too_large_a_spec_are_refused() -> None:
    with pytest.raises(SpecError, match="53 characters, a CronJob has at most 52"):
        cronjob.render(replace(SCHEDULE, name="n" * 53), cluster())
    with pytest.raises(SpecError, match=rf"a ConfigMap at most {manifests.LARGEST}"):
        cronjob.render(replace(SCHEDULE, files={"task.py": "x" * manifests.LARGEST}), cluster())


def test_firings_are_named_as_kubernetes_names_them() -> None:
    moment = datetime(2025, 12, 3, 9, 45, 59, tzinfo=UTC)
    assert cron.firing_name("nightly", moment) == f"nightly-{29412585}"
