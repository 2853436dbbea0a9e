"""What goes wrong on clusters, done to a real one while a run trains; each leaves one version and the right champion.

Most strike a run that has written its first checkpoint; the others keep it from starting. What `graceful status` said
is kept until the run is over.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

from tests.support.node import MACHINES, ROOT, Node, Team

TASK = ROOT / "tests/support/slow_task.py"
OUTAGE_SECONDS = 30.0
_STARTED: list[subprocess.Popen[bytes]] = []
"""Servers that were started again; the test bed ends them by their pid files."""
EPOCHS = 12
"""About two seconds each."""


@dataclass(kw_only=True)
class Ending:
    """How a run ended after a fault.

    Attributes:
        final_state: The last phase.
        causes: Every cause that `status` named, in order.
        versions: How many the registry holds.
        champion: Name of the version that serves, if any.
        facts: What else was seen.
    """

    final_state: str = ""
    causes: list[str] = field(default_factory=list)
    versions: int = 0
    champion: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    def row(self, name: str, fault: Fault) -> dict[str, Any]:
        """For the result file; the cause shown is the one that names the fault."""
        cause = next((cause for cause in self.causes if fault.word in cause), self.causes[-1] if self.causes else "")
        return {
            "fault": name,
            "final_state": self.final_state,
            "cause_shown": cause,
            "versions": self.versions,
            "champion_correct": self.champion == fault.champion,
            **({"facts": self.facts} if self.facts else {}),
        }


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One kind of trouble.

    Attributes:
        happen: A whole scenario: lets it happen and follows the run to its end.
        word: What `status` must say of it; empty where nothing of the run is touched, so that there is nothing to say.
        final_state: In which the run must end.
        versions: How many there must be at the end.
        champion: Which one must serve.
    """

    happen: Callable[[Node], Ending]
    word: str
    final_state: str = "SUCCEEDED"
    versions: int = 1
    champion: str | None = "v1"

    def good(self, ending: Ending) -> bool:
        """Return whether versions, champion and end are right and the cause names the fault."""
        named = not self.word or any(self.word in cause for cause in ending.causes)
        facts = (ending.final_state, ending.versions, ending.champion)
        return named and facts == (self.final_state, self.versions, self.champion)


Strike = Callable[[Team, str], list[str]]
"""Does something to a run that trains; returns what `status` said meanwhile."""


def spec(
    model: str, *, name: str = "v1", seconds: float = 0.15, gigabytes: int = 0, epochs: int = EPOCHS
) -> dict[str, Any]:
    """Return a run of two workers: 200 training points, 13 steps an epoch, a checkpoint each."""
    return {
        "model": model,
        "name": name,
        "task": {"kind": "python", "file": str(TASK), "options": {"seconds": seconds, "gigabytes": gigabytes}},
        "train": {"epochs": epochs, "batch_size": 16, "num_workers": 2},
        "evaluate": {"retrieval": False},
        "gate": {"constraints": [{"metric": "error_rate", "bound": 0.4}]},
    }


# --- while it trains --------------------------------------------------------------------------------------------------


def struck(node: Node, *strikes: Strike) -> Ending:
    """Submit, wait for a checkpoint, strike once or several times, follow to the end."""
    model = f"m{uuid4().hex[:6]}"
    with node.team(model) as team:
        run = team.submit(spec(model, epochs=EPOCHS * (1 + len(strikes)) // 2))
        team.wait_for_checkpoint(run)
        seen = [cause for strike in strikes for cause in strike(team, run)]
        return followed(team, run, model, causes=seen)


def followed(team: Team, run: str, model: str, *, causes: list[str] | None = None) -> Ending:
    ending = Ending(causes=causes or [])

    def over(found: Mapping[str, Any]) -> bool:
        if found["cause"] and found["cause"] not in ending.causes:
            ending.causes.append(found["cause"])
        ending.final_state = found["phase"]
        return found["exit_code"] is not None

    team.wait(run, over, seconds=420)
    return counted(team.node, model, ending)


def counted(node: Node, model: str, ending: Ending) -> Ending:
    found = node.graceful("lineage", model, "-o", "json", check=False)
    versions = json.loads(found.stdout) if found.returncode == 0 else []
    ending.versions = len(versions)
    ending.champion = next((one["name"] for one in versions if "champion" in one["aliases"]), None)
    return ending


def _deleted(role: str) -> Strike:
    def strike(team: Team, run: str) -> list[str]:
        (pod, *_) = team.pods(role, run)
        name = pod["metadata"]["name"]
        team.node.run("kubectl", "-n", team.name, "delete", "pod", name, "--grace-period=0", "--force")
        word = f"{role.replace('rank', 'worker')} restarted"
        return [team.wait(run, lambda found: word in found["cause"], seconds=180)["cause"]]

    return strike


def _operator_restarted(team: Team, run: str) -> list[str]:
    team.node.run("kubectl", "-n", "kuberay-system", "delete", "pod", "--all", "--grace-period=0", "--force")
    return []


def _api_server_restarted(team: Team, run: str) -> list[str]:
    with down(team.node.pid("kube-apiserver")):
        time.sleep(5.0)
        said = team.graceful("status", run, check=False)
        assert said.returncode == 4, said
    end = time.monotonic() + 90
    while team.node.run("kubectl", "get", "--raw", "/readyz", check=False).returncode:
        assert time.monotonic() < end, "the API server does not come back"
        time.sleep(0.5)
    return [said.stderr.strip()]


def _s3_down(team: Team, run: str) -> list[str]:
    with down(team.node.pid("s3")):
        end = time.monotonic() + OUTAGE_SECONDS
        word = FAULTS["S3 down for 30 s"].word
        seen = team.wait(run, lambda found: word in found["cause"], seconds=OUTAGE_SECONDS)
        time.sleep(max(0.0, end - time.monotonic()))
    return [seen["cause"]]


@contextmanager
def down(pid_file: Path) -> Iterator[None]:
    """Kill a server of the test bed, and start it again as it was."""
    pid = int(pid_file.read_text())
    words = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
    variables = dict(
        part.split(b"=", 1) for part in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") if b"=" in part
    )
    folder = os.readlink(f"/proc/{pid}/cwd")
    log = os.readlink(f"/proc/{pid}/fd/1")
    if os.getpgid(pid) == pid:  # with the processes that it has started
        os.killpg(pid, signal.SIGKILL)
    else:
        os.kill(pid, signal.SIGKILL)
    try:
        yield
    finally:
        with Path(log).open("ab") as out:
            again = subprocess.Popen(
                words,
                env=variables,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        pid_file.write_text(str(again.pid))
        _STARTED.append(again)


def _one(name: str, node: Node) -> Ending:
    return struck(node, STRIKES[name])


# --- before it trains -------------------------------------------------------------------------------------------------


def _no_such_image(node: Node) -> Ending:
    return _hopeless(
        node, image="localhost/graceful:no-such-tag", deadlines={"start": 30, "keep": 1}, retries={"job": 0}
    )


def _out_of_memory(node: Node) -> Ending:
    return _hopeless(node, gigabytes=6, retries={"job": 0})


def _hopeless(node: Node, *, gigabytes: int = 0, **profile: Any) -> Ending:
    """Try to make a second version on a cluster, where it fails; the first, made here, must stay champion."""
    model = f"m{uuid4().hex[:6]}"
    with node.team(model, profile=profile) as team:
        node.refresh(
            spec(model) | {"train": {"epochs": 3, "batch_size": 16, "num_workers": 0, "engine": {"kind": "torch"}}}
        )
        run = team.submit(spec(model, name="v2", gigabytes=gigabytes))
        return followed(team, run, model)


def _over_quota(node: Node) -> Ending:
    """Run where the namespace has room for head and submitter but not for workers, then give it room."""
    model = f"m{uuid4().hex[:6]}"
    with node.team(model, quota={"create": True, "hard": {"limits.memory": "7Gi"}}) as team:
        run = team.submit(spec(model))
        seen = team.wait(run, lambda found: FAULTS["quota exceeded"].word in found["cause"], seconds=180)
        team.kube.patch("ResourceQuota", "graceful", {"spec": {"hard": {"limits.memory": "40Gi"}}})
        return followed(team, run, model, causes=[seen["cause"]])


def _preempted(node: Node) -> Ending:
    """Run in a queue with room for one job, and submit a more important job."""
    model, other = f"m{uuid4().hex[:6]}", f"m{uuid4().hex[:6]}"
    for document in _queue_documents(model):
        node.run("kubectl", "apply", "--server-side", "-f", "-", stdin=json.dumps(document))
    queue = {"name": "team", "clusterQueue": model}
    low = {group: {**MACHINES[group], "priority_class": f"{model}-low"} for group in MACHINES}
    high = {group: {**MACHINES[group], "priority_class": f"{model}-high"} for group in MACHINES}
    with node.team(model, profile=low, queue=queue) as team:
        run = team.submit(spec(model))
        team.wait_for_checkpoint(run)
        team.install(profile=high, queue=queue)
        urgent = team.submit(spec(other, seconds=0.01))
        seen = team.wait(run, lambda found: FAULTS["Kueue preemption"].word in found["cause"], seconds=120)
        team.finish(urgent)
        return followed(team, run, model, causes=[seen["cause"]])


def _queue_documents(name: str) -> Iterator[dict[str, Any]]:
    """Yield one flavour, a queue for one job of ours (head, two workers, submitter), two priorities."""
    kueue = "kueue.x-k8s.io/v1beta2"
    quotas = [{"name": "cpu", "nominalQuota": "450m"}, {"name": "memory", "nominalQuota": "12Gi"}]
    for priority, value in (("low", 1), ("high", 1000)):
        meta = {"name": f"{name}-{priority}"}
        yield {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": meta, "value": value}
    yield {"apiVersion": kueue, "kind": "ResourceFlavor", "metadata": {"name": name}}
    group = {"coveredResources": ["cpu", "memory"], "flavors": [{"name": name, "resources": quotas}]}
    rules = {"namespaceSelector": {}, "resourceGroups": [group], "preemption": {"withinClusterQueue": "LowerPriority"}}
    yield {"apiVersion": kueue, "kind": "ClusterQueue", "metadata": {"name": name}, "spec": rules}


STRIKES: Mapping[str, Strike] = {
    "worker pod deleted": _deleted("rank"),
    "head pod deleted": _deleted("head"),
    "submitter deleted": _deleted("submitter"),
    "operator restarted": _operator_restarted,
    "API server restarted": _api_server_restarted,
    "S3 down for 30 s": _s3_down,
}
FAULTS: Mapping[str, Fault] = {
    "worker pod deleted": Fault(happen=partial(_one, "worker pod deleted"), word="worker restarted"),
    "head pod deleted": Fault(happen=partial(_one, "head pod deleted"), word="head restarted"),
    "submitter deleted": Fault(happen=partial(_one, "submitter deleted"), word="submitter restarted"),
    "operator restarted": Fault(happen=partial(_one, "operator restarted"), word=""),
    "API server restarted": Fault(happen=partial(_one, "API server restarted"), word="no answer from"),
    "S3 down for 30 s": Fault(happen=partial(_one, "S3 down for 30 s"), word="not reachable"),
    "Kueue preemption": Fault(happen=_preempted, word="preempted"),
    "image that does not exist": Fault(happen=_no_such_image, word="image pull", final_state="FAILED"),
    "container out of memory": Fault(happen=_out_of_memory, word="out of memory", final_state="FAILED"),
    "quota exceeded": Fault(happen=_over_quota, word="over quota"),
}
