"""Everything that a profile can say, applied in a restricted namespace of a real node and seen in its running pods."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.node import Node
from tests.support.whole_pod import DEVICE, GPU, RACK, TAINT, Seen, live

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(3600)]
ROLES = ("head", "rank", "submitter")


@pytest.fixture(scope="module")
def seen(node: Node) -> Seen:
    return live(node)


def test_the_plan_draws_the_pod_and_finds_no_fault(seen: Seen) -> None:
    assert "2 ranks in 1 pod, each rank with 1 cores, 1.5 GiB, 1 accelerator; /dev/shm 600Mi in each pod" in seen.plan
    assert f"pod 0: ranks 0-1, 2 {GPU}" in seen.plan
    assert "no node of" not in seen.plan


@pytest.mark.parametrize("role", ROLES)
def test_what_all_pods_were_told_is_in_each(seen: Seen, role: str) -> None:
    pod = seen.pods[role]
    assert pod["metadata"]["labels"]["cost-center"] == "vision"
    assert pod["metadata"]["annotations"]["example.com/owner"] == "vision"
    assert pod["spec"]["priority"] == 7
    assert any(item.items() >= TAINT.items() for item in pod["spec"]["tolerations"])
    assert pod["spec"]["securityContext"]["runAsUser"] == 1234
    env = {item["name"]: item.get("value", "") for item in pod["spec"]["containers"][0]["env"]}
    assert env["SSL_CERT_FILE"] == "/etc/graceful-ca/ca.crt"
    assert env["HTTP_PROXY"].startswith("http://")
    assert env["NO_PROXY"].startswith("localhost,")


def test_the_worker_has_what_its_section_and_its_overrides_say(seen: Seen) -> None:
    worker: dict[str, Any] = seen.pods["rank"]["spec"]
    container = next(one for one in worker["containers"] if one["name"] == "ray-worker")
    assert container["resources"]["limits"].items() >= {GPU: "2", DEVICE: "1"}.items()
    assert {"name": "runs", "emptyDir": {"sizeLimit": "2Gi"}} in worker["volumes"]
    assert worker["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert worker["topologySpreadConstraints"][0]["topologyKey"] == RACK
    assert worker["terminationGracePeriodSeconds"] == 130
    assert {"warm", "beside"} <= {one["name"] for one in worker["initContainers"]}


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("shm", "600"),
        ("scratch", "warmed\nbeside"),
        ("extra", "mounted"),
        ("word", "from the profile"),
        ("trusted", "trusted"),
    ],
)
def test_processes_of_the_worker_find_it_so(seen: Seen, name: str, told: str) -> None:
    assert seen.words[name] == told


def test_the_user_has_the_groups_of_the_profile_and_other_certificates_are_not_trusted(seen: Seen) -> None:
    user, groups = seen.words["ids"].splitlines()
    assert user == "1234"
    assert "2345" in groups.split()
    assert "CERTIFICATE_VERIFY_FAILED" in seen.words["distrusted"]


def test_kueue_took_the_priority_of_the_job_and_placed_its_pods_by_topology(seen: Seen) -> None:
    workload = seen.workload["spec"]
    assert workload["priority"] == 77
    required = [one.get("topologyRequest", {}).get("required") for one in workload["podSets"]]
    assert RACK in required
    placed = {
        one["name"]: one.get("topologyAssignment") for one in seen.workload["status"]["admission"]["podSetAssignments"]
    }
    assert placed["workers"]
