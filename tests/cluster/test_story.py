"""From an empty namespace to a second version on a real node: chart, image, pods, a schedule, an edge."""

from __future__ import annotations

import pytest

from tests.support.node import Node
from tests.support.story import Story, tell

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def story(node: Node) -> Story:
    return tell(node, name="story")


def test_a_team_ships_a_first_version_and_a_schedule_refreshes_it(story: Story) -> None:
    first, second = story.versions
    assert (first["name"], first["verdict"]) == ("v1", "passed")
    assert second["verdict"] in ("passed", "held")
    assert [edge["name"] for edge in second["edges"]] == ["v1"]
    assert "champion" in (second if second["verdict"] == "passed" else first)["aliases"]


def test_two_workers_trained_with_deepspeed_and_said_so(story: Story) -> None:
    assert any(key.endswith("manifest-00001.json") for key in story.checkpoints), "the second rank wrote its shard"
    assert {"event=start", "engine=deepspeed", "world_size=2"} <= set(story.log.split())


def test_everything_that_outlives_pods_is_in_the_bucket(story: Story) -> None:
    assert {"runs/glyphs-v1/report.html", "runs/glyphs-v1/result.json"} <= set(story.kept)
    assert any(key.startswith("targets/") and key.endswith("logits.npy") for key in story.kept), "the cache is shared"
    assert not any("/ray/" in key for key in story.kept), "checkpoints of finished runs are gone"


def test_pods_were_restricted_and_had_no_token(story: Story) -> None:
    assert len(story.pods) >= 4
    for pod in story.pods:
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        for container in (*pod["containers"], *pod.get("initContainers", ())):
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] is True
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"]["drop"] == ["ALL"]
