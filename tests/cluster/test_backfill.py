"""A backfill of an index in the bucket as a job of KubeRay: its machine is lost in the middle, the next one goes on."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.support.node import Node

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


def test_a_backfill_survives_the_loss_of_its_machine(node: Node, tmp_path: Path) -> None:
    with node.team("backfills") as team:
        address = f"{team.storage}/search"
        node.python(INDEX, address, tmp_path)

        def look() -> dict[str, object]:
            return dict(json.loads(node.python(LOOK, f"{address}/index")))

        command = ("backfill", "run", f"{address}/index", "--vectors", f"{address}/new.npz", "--batch", "10")
        sent = json.loads(team.graceful(*command, "--rate", "5", "--yes", "-o", "json").stdout)
        run = sent["run_id"]
        team.wait(run, lambda found: found["phase"] == "RUNNING", seconds=300)
        end = time.monotonic() + 300
        while not 20 <= look()["counts"].get("new", 0) < COUNT:  # type: ignore[attr-defined]
            assert time.monotonic() < end, team.picture()
            time.sleep(1.0)
        (head,) = team.pods("head", run)
        node.run("kubectl", "-n", team.name, "delete", "pod", head["metadata"]["name"], "--grace-period=0", "--force")
        ended = team.finish(run, seconds=900)
        assert (ended["phase"], ended["exit_code"]) == ("SUCCEEDED", 0), ended
        assert ended["attempt"] == 2, ended
        found = look()
        assert found == {
            "counts": {"old": 0, "new": COUNT},
            "serving": "new",
            "ids": COUNT,
            "different": COUNT,
            "problems": [],
        }
        again = json.loads(team.graceful(*command, "--rate", "5", "--yes", "-o", "json").stdout)
        assert again == sent, "the same command finds the same job"
        assert "stage=backfill" in team.graceful("logs", run, "--attempt", "1").stdout, "its log outlives its machine"
