"""From an empty namespace to a second version on a real node, with the time of each step.

A team installs the chart, submits a first version, and a schedule refreshes it. The test asserts on what comes back,
the benchmark writes the times down.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tests.support.node import ROOT, Node, Team

T = TypeVar("T")


@dataclass(kw_only=True)
class Story:
    """What happened.

    Attributes:
        seconds: By step, in order.
        checkpoints: Keys below the run's checkpoints while it trained.
        kept: Keys in the bucket at the end, relative to the team's prefix.
        pods: Security contexts of all containers of the first run.
        versions: What `graceful lineage -o json` says at the end.
        log: The first run's log.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    checkpoints: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    pods: list[dict[str, Any]] = field(default_factory=list)
    versions: list[dict[str, Any]] = field(default_factory=list)
    log: str = ""

    def step(self, name: str, do: Callable[[], T]) -> T:
        """Do something and note how long it took."""
        begun = time.monotonic()
        try:
            return do()
        finally:
            self.seconds[name] = round(time.monotonic() - begun, 1)


def tell(node: Node, *, name: str) -> Story:
    """Live through the story in a new namespace."""
    story = Story(seconds=dict(node.seconds))
    begun = time.monotonic()
    with node.team(name) as team:
        story.seconds["chart installed"] = round(time.monotonic() - begun, 1)
        story.step("first version submitted", lambda: team.graceful("submit", _job("v1"), "--yes"))
        story.step("pods ready, training", lambda: _training(team, story))
        story.step("first version trained, judged, registered", lambda: _succeeded(team, "glyphs-v1"))
        story.log = team.graceful("logs", "glyphs-v1").stdout
        schedule = {"cron": "* * * * *", "spec": _job("v2").read_text()}
        story.step("schedule installed", lambda: team.install(profile={}, schedules={"refresh": schedule}))
        run = story.step("CronJob fired, job submitted", lambda: _fired(team))
        team.install(profile={}, schedules={"refresh": {**schedule, "suspend": True}})
        story.step("second version trained against the champion", lambda: _succeeded(team, run))
        story.versions = json.loads(node.graceful("lineage", "glyphs", "-o", "json").stdout)
        story.kept = node.keys(team.storage)
    return story


def _job(version: str) -> Any:
    return ROOT / "jobs" / "glyphs" / f"{version}.yaml"


def _training(team: Team, story: Story) -> None:
    """Until the first checkpoint lies in the bucket; looks at the pods meanwhile."""
    story.checkpoints = team.wait_for_checkpoint("glyphs-v1")
    for role in ("head", "rank", "submitter"):
        story.pods += [pod["spec"] for pod in team.pods(role, "glyphs-v1")]


def _succeeded(team: Team, run: str) -> None:
    found = team.finish(run)
    assert found["phase"] == "SUCCEEDED", f"{found}\n{team.graceful('logs', run, check=False).stdout}\n{team.picture()}"


def _fired(team: Team) -> str:
    """Until the schedule has sent a run; its id."""
    end = time.monotonic() + 180
    while True:
        found = json.loads(team.graceful("list", "-o", "json").stdout)
        sent = [one["run_id"] for one in found if one["run_id"] != "glyphs-v1"]
        if sent:
            return str(sent[0])
        assert time.monotonic() < end, team.picture()
        time.sleep(1.0)
