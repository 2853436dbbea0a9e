"""Backfills in a bucket as jobs of KubeRay: one loses its machine in the middle, one is fired by a schedule."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.node import Node, Team

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(3600)]
COUNT = 400
INDEX = f"""
import sys
from pathlib import Path
import numpy as np
from graceful.index import Index, Space, Vectors, files
from graceful.index.places import at
address, folder = sys.argv[1:]
ids = np.asarray([f"x{{number:04d}}" for number in range({COUNT})])
made = np.random.default_rng(0).normal(size=({COUNT}, 12)).astype(np.float32)
Index.create(f"{{address}}/index", Vectors(ids=ids, vectors=made), Space.declared("old", 12))
file = Path(folder) / "new.npz"
files.write(file, Vectors(ids=ids, vectors=made[:, :8]), Space.declared("new", 8))
at(address).write("new.npz", file.read_bytes())
"""
LOOK = """
import json, sys
from graceful.index import Index
index = Index.open(sys.argv[1])
head = index.head()
view = index.view(head)
ids = [name for space in head.spaces for name in view.ids(space).tolist()]
print(json.dumps({"counts": dict(head.counts), "serving": head.serving, "ids": len(ids), "different": len(set(ids)),
                  "problems": index.backend.verify(head)}))
"""


@pytest.fixture(scope="module")
def team(node: Node) -> Iterator[Team]:
    with node.team("backfills") as team:
        yield team


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """An index of old vectors in the team's bucket, and the file of the new ones beside it."""

    node: Node
    address: str

    @property
    def index(self) -> str:
        return f"{self.address}/index"

    @property
    def vectors(self) -> str:
        return f"{self.address}/new.npz"

    def look(self) -> dict[str, Any]:
        """Return what the index holds."""
        found: dict[str, Any] = json.loads(self.node.python(LOOK, self.index))
        return found


def gallery(node: Node, address: str, folder: Path) -> Gallery:
    node.python(INDEX, address, folder)
    return Gallery(node=node, address=address)


MOVED = {"counts": {"old": 0, "new": COUNT}, "serving": "new", "ids": COUNT, "different": COUNT, "problems": []}
"""Every id once, in the new space, which answers."""


def test_a_backfill_survives_the_loss_of_its_machine(node: Node, team: Team, tmp_path: Path) -> None:
    own = gallery(node, f"{team.storage}/search", tmp_path)
    command = ("backfill", "run", own.index, "--vectors", own.vectors, "--batch", "10")
    sent = json.loads(team.graceful(*command, "--rate", "5", "--yes", "-o", "json").stdout)
    run = sent["run_id"]
    team.wait(run, lambda found: found["phase"] == "RUNNING", seconds=300)
    end = time.monotonic() + 300
    while not 20 <= own.look()["counts"].get("new", 0) < COUNT:
        assert time.monotonic() < end, team.picture()
        time.sleep(1.0)
    (head,) = team.pods("head", run)
    node.run("kubectl", "-n", team.name, "delete", "pod", head["metadata"]["name"], "--grace-period=0", "--force")
    ended = team.finish(run, seconds=900)
    assert (ended["phase"], ended["exit_code"]) == ("SUCCEEDED", 0), ended
    assert ended["attempt"] == 2, ended
    assert own.look() == MOVED
    again = json.loads(team.graceful(*command, "--rate", "5", "--yes", "-o", "json").stdout)
    assert again == sent, "the same command finds the same job"
    assert "stage=backfill" in team.graceful("logs", run, "--attempt", "1").stdout, "its log outlives its machine"


def last_firing(team: Team) -> dict[str, Any]:
    (row,) = json.loads(team.graceful("schedule", "list", "-o", "json").stdout)
    found: dict[str, Any] = row["last"]
    return found


def test_a_schedule_fires_a_backfill(node: Node, team: Team, tmp_path: Path) -> None:
    own = gallery(node, f"{team.storage}/nightly", tmp_path)
    asked = ("backfill", "schedule", "nightly", own.index, "--vectors", own.vectors, "--cron", "0 3 1 1 *")
    assert "create: CronJob nightly" in team.graceful(*asked).stdout
    fired = json.loads(team.graceful("schedule", "run-now", "nightly", "-o", "json").stdout)
    end = time.monotonic() + 600
    while (last := json.loads(team.graceful("schedule", "list", "-o", "json").stdout)[0]["last"])[
        "outcome"
    ] == "running":
        assert time.monotonic() < end, f"{last}\n{team.picture()}"
        time.sleep(2.0)
    assert (last["firing"], last["outcome"]) == (fired["firing"], "passed"), f"{last}\n{team.picture()}"
    assert own.look() == MOVED
