"""What administrators and outages do to a real cluster, each while a run of ours is there; scenarios as in `faults`."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any
from uuid import uuid4

import yaml

from tests.support.faults import Ending, Fault, counted, down, followed, spec
from tests.support.node import CONTEXT, MACHINES, Node, Team
from tests.support.scraping import scraped

OUTAGE_SECONDS = 60.0
SMALL, LARGE = "3Gi", "7Gi"
"""Memory of a pod with two ranks, of which each hoards a gigabyte: too little, and enough."""
TAINT = {"key": "dedicated", "value": "ml", "effect": "NoSchedule"}


@contextmanager
def _team(node: Node, **profile: Any) -> Iterator[tuple[Team, str]]:
    """A namespace with the chart, and the name of its model."""
    model = f"m{uuid4().hex[:6]}"
    with node.team(model, profile=profile) as team:
        yield team, model


def _registry_down_at_start(node: Node) -> Ending:
    with _team(node) as (team, model):
        with down(node.pid("mlflow")):
            end = time.monotonic() + OUTAGE_SECONDS
            run = team.submit(spec(model))
            seen = team.wait(run, lambda found: "waiting up to" in found["cause"], seconds=240)
            time.sleep(max(0.0, end - time.monotonic()))
        return followed(team, run, model, causes=[seen["cause"]])


def _registry_down_in_training(node: Node) -> Ending:
    with _team(node) as (team, model):
        run = team.submit(spec(model))
        team.wait_for_checkpoint(run)
        with down(node.pid("mlflow")):
            time.sleep(OUTAGE_SECONDS)
        return followed(team, run, model)


def _registry_down_at_registration(node: Node) -> Ending:
    with _team(node) as (team, model):
        run = team.submit(spec(model, epochs=4))
        team.wait_for_checkpoint(run)
        end = time.monotonic() + 300
        while "stage=evaluate" not in team.graceful("logs", run).stdout:
            assert time.monotonic() < end, team.picture()
        with down(node.pid("mlflow")):
            seen = team.wait(run, lambda found: "waiting up to" in found["cause"], seconds=OUTAGE_SECONDS)
            time.sleep(OUTAGE_SECONDS)
        return followed(team, run, model, causes=[seen["cause"]])


def _memory_repaired(node: Node) -> Ending:
    """Two ranks in one pod run out of memory; a larger profile and a resume repair it."""

    def worker(memory: str) -> dict[str, Any]:
        return {"worker": {"cpu": "2", "reserved_cpu": "100m", "memory": memory, "ranks": 2}, "retries": {"job": 0}}

    with _team(node, **worker(SMALL)) as (team, model):
        run = team.submit(spec(model, gigabytes=1, epochs=4))
        failed = team.finish(run)
        team.install(profile=worker(LARGE))
        team.graceful("resume", run, "--yes")
        team.wait_for_checkpoint(run)
        pods = team.pods("rank", run)
        shown = _in_pod(team, pods[0], "df -h --output=size,target /dev/shm | tail -1").split()
        ending = followed(team, run, model, causes=[failed["cause"]])
        first = team.graceful("logs", run, "--attempt", "1").stdout
        ending.facts = {
            "rank pods": len(pods),
            "/dev/shm": shown[0],
            "first state": failed["phase"],
            "log of the first attempt kept": "out of memory" in first,
        }
        return ending


def _in_pod(team: Team, pod: Mapping[str, Any], command: str) -> str:
    words = ("kubectl", "-n", team.name, "exec", pod["metadata"]["name"], "-c", "ray-worker", "--", "sh", "-c", command)
    return team.node.run(*words).stdout


_FIND_RANKS = """
import os, signal
ranks = []
for pid in filter(str.isdecimal, os.listdir("/proc")):
    try:
        name = open(f"/proc/{pid}/cmdline").read()
    except OSError:
        continue
    if name.startswith("ray::") and "RayTrainWorker" in name:
        ranks.append(int(pid))
"""


def _rank_killed(node: Node) -> Ending:
    """Two ranks share a pod, and one of them dies; what the run says about itself is scraped meanwhile."""
    worker = {"cpu": "2", "reserved_cpu": "100m", "memory": "4Gi", "ranks": 2, "shm": "600Mi"}
    with _team(node, worker=worker, deadlines={"start": 600, "keep": 60}) as (team, model):
        run = team.submit(spec(model))
        team.wait_for_checkpoint(run, seconds=900)
        (rank,), (head,) = team.pods("rank", run), team.pods("head", run)
        count = _in_pod(team, rank, f"python -c '{_FIND_RANKS}print(len(ranks))'").strip()
        shared = _in_pod(team, rank, "df -m --output=size /dev/shm | tail -1").strip()
        with scraped([rank, head]) as metrics, _follower(team, run) as follower:
            _in_pod(team, rank, f"python -c '{_FIND_RANKS}os.kill(max(ranks), signal.SIGKILL)'")
            follower()
        ending = followed(team, run, model)
        events = team.kube.list("Event", fields=f"involvedObject.name={run}").items
        ending.facts = {
            "ranks in the pod": int(count),
            "/dev/shm in MiB": int(shared),
            "gauges scraped": sorted(metrics),
            "event of the verdict": any(event["reason"] == "GatePassed" for event in events),
        }
        return ending


def _stopped(node: Node) -> Ending:
    """How long machines of a stopped run stay, and that it resumes."""
    with _team(node) as (team, model):
        run = team.submit(spec(model))
        team.wait_for_checkpoint(run)
        begun = time.monotonic()
        team.graceful("stop", run)
        freed: dict[str, float] = {}
        while len(freed) < 2:
            for role in ("head", "rank"):
                selector = f"graceful.dev/role={role},graceful.dev/run-id={run}"
                if role not in freed and not team.kube.list("Pod", selector=selector).items:
                    freed[role] = round(time.monotonic() - begun, 1)
            assert time.monotonic() < begun + 240, team.picture()
            time.sleep(0.5)
        stopped = team.status(run)
        team.graceful("resume", run, "--yes")
        ending = followed(team, run, model, causes=[stopped["cause"]])
        ending.facts = {f"{role} freed after seconds": seconds for role, seconds in freed.items()}
        return ending


def _resized(node: Node) -> Ending:
    """A run of two processes is stopped, goes on with one, is stopped again, and goes on with two."""
    with _team(node) as (team, model):
        run = team.submit(spec(model, epochs=60))
        found = team.wait_for_checkpoint(run)
        ranks = [len(team.pods("rank", run))]
        for workers in (1, 2):
            team.graceful("stop", run)
            team.graceful("resume", run, "--yes", "--workers", str(workers))
            found = team.wait_for_checkpoint(run, besides=found)
            ranks.append(len(team.pods("rank", run)))
        ending = followed(team, run, model)
        ending.facts = {"processes": ranks}
        return ending


def _namespace_deleted(node: Node) -> Ending:
    with _team(node) as (team, model):
        run = team.submit(spec(model, epochs=60))
        team.wait_for_checkpoint(run)
        with _follower(team, run) as follower:
            team.node.kube("default").delete("Namespace", team.name)
            said = follower()
        ending = counted(node, model, Ending(final_state=said[0], causes=[said[1]]))
        ending.facts = {"exit code of the follower": int(said[2])}
        return ending


@contextmanager
def _follower(team: Team, run: str, *, env: Mapping[str, str] | None = None) -> Iterator[Callable[[], list[str]]]:
    """`graceful status --wait` beside us; what is yielded waits for its end: phase, last words, exit code."""
    command = [sys.executable, "-m", "graceful.cli", "status", run, "--wait", "--on", str(team.profile), "-o", "yaml"]
    process = subprocess.Popen(
        command, env=dict(env or team.node.env), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )

    def end() -> list[str]:
        out, errors = process.communicate(timeout=900)
        found = yaml.safe_load(out) or {}
        last = errors.strip().splitlines()[-1:] or [""]
        return [found.get("phase", ""), found.get("cause") or last[0], str(process.returncode)]

    try:
        time.sleep(10.0)
        yield end
    finally:
        process.kill()
        process.wait()


def _account_deleted(node: Node) -> Ending:
    """A person follows with the token of an account that is deleted meanwhile; the run does not notice."""
    with _team(node) as (team, model):
        kubectl = partial(node.run, "kubectl", "-n", team.name)
        kubectl("create", "serviceaccount", "guest")
        kubectl("create", "rolebinding", "guest", "--role=graceful-submitter", f"--serviceaccount={team.name}:guest")
        token = kubectl("create", "token", "guest").stdout.strip()
        path = node.folder / f"{model}-kubeconfig.yaml"
        config = yaml.safe_load(node.run("kubectl", "config", "view", "--raw", "-o", "yaml").stdout)
        config["users"] = [{"name": one["name"], "user": {"token": token}} for one in config["users"]]
        path.write_text(yaml.safe_dump(config))
        run = team.submit(spec(model))
        team.wait_for_checkpoint(run)
        with _follower(team, run, env={**node.env, "KUBECONFIG": str(path)}) as follower:
            kubectl("delete", "serviceaccount", "guest")
            said = follower()
        ending = followed(team, run, model, causes=[said[1]])
        ending.facts = {"exit code of the follower": int(said[2])}
        return ending


def _tainted(node: Node) -> Ending:
    """Nodes get a taint that the profile does not tolerate; then it does, for head, workers and submitter."""
    tolerant = {group: {**MACHINES[group], "tolerations": [TAINT]} for group in MACHINES}
    taint = f"{TAINT['key']}={TAINT['value']}:{TAINT['effect']}"
    node.run("kubectl", "taint", "nodes", "--all", taint)
    try:
        with _team(node) as (team, model):
            path = node.folder / f"{model}-spec.yaml"
            path.write_text(yaml.safe_dump(spec(model, epochs=4)))
            planned = team.graceful("plan", path).stdout
            run = team.submit(spec(model, epochs=4))
            seen = team.wait(run, lambda found: "untolerated taint" in found["cause"], seconds=120)
            team.graceful("stop", run)
            team.install(profile=tolerant)
            team.graceful("resume", run, "--yes")
            ending = followed(team, run, model, causes=[seen["cause"]])
            ending.facts = {"plan warned": "no node of 1 could hold it" in planned}
            return ending
    finally:
        node.run("kubectl", "taint", "nodes", "--all", f"{TAINT['key']}-")


def _drained(node: Node) -> Ending:
    """The pods of the run are evicted from their node, which takes none until it is back."""
    with _team(node) as (team, model):
        run = team.submit(spec(model))
        team.wait_for_checkpoint(run)
        begun = time.monotonic()
        selector = f"--pod-selector=graceful.dev/run-id={run}"
        try:
            node.run("kubectl", "drain", CONTEXT, selector, "--delete-emptydir-data", "--force", "--timeout=200s")
        finally:
            node.run("kubectl", "uncordon", CONTEXT)
        seconds = round(time.monotonic() - begun, 1)
        ending = followed(team, run, model)
        ending.facts = {"drained after seconds": seconds}
        return ending


def _two_people(node: Node) -> Ending:
    with _team(node) as (team, model):
        path = node.folder / f"{model}-spec.yaml"
        path.write_text(yaml.safe_dump(spec(model, epochs=4)))
        command = [sys.executable, "-m", "graceful.cli", "submit", str(path), "--yes", "--on", str(team.profile)]
        both = [
            subprocess.Popen(command, env=dict(node.env), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            for _ in range(2)
        ]
        handles = {one.communicate(timeout=120)[0].strip() for one in both}
        codes = [one.returncode for one in both]
        ending = followed(team, f"{model}-v1", model)
        ending.facts = {"handles": len(handles), "exit codes": codes}
        return ending


ADMINISTRATION: Mapping[str, Fault] = {
    "out of memory, repaired by a larger profile": Fault(happen=_memory_repaired, word="out of memory"),
    "one of two ranks in a pod killed": Fault(happen=_rank_killed, word=""),
    "stopped and resumed": Fault(happen=_stopped, word="stopped while RUNNING"),
    "two processes, then one, then two": Fault(happen=_resized, word=""),
    "MLflow down for 60 s at the start": Fault(happen=_registry_down_at_start, word="waiting up to"),
    "MLflow down for 60 s at registration": Fault(happen=_registry_down_at_registration, word="waiting up to"),
    "MLflow down for 60 s in training": Fault(happen=_registry_down_in_training, word=""),
    "nodes with a taint": Fault(happen=_tainted, word="untolerated taint"),
    "node drained": Fault(happen=_drained, word="restarted"),
    "namespace deleted": Fault(
        happen=_namespace_deleted,
        word="deleted while it was followed",
        final_state="STOPPED",
        versions=0,
        champion=None,
    ),
    "account deleted while it follows": Fault(happen=_account_deleted, word="not known to the API server"),
    "two people, one run id": Fault(happen=_two_people, word=""),
}
