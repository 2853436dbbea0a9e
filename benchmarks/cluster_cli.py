"""How long do the commands that follow runs take on a real API server? One run's status, a list of 500, a plan.

python -m benchmarks.cluster_cli     needs the current kube context (a cluster with KubeRay's CRDs, whose operator does
                                     not watch namespaces graceful-cli-*); prints a table, writes cluster_cli.json
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.results import write
from graceful.launch.kubernetes.kube import Kube
from tests.support.kuberay_sequences import life_cycles
from tests.support.replay import create, replay, write_status

JOBS = 500
RUNS = 7
NAMESPACE = f"graceful-cli-{int(time.time())}"
SPEC = Path("jobs/glyphs/v2.yaml")
IMAGE = f"localhost/graceful@sha256:{'0' * 64}"
PROFILE = f"{{kind: kuberay, namespace: {NAMESPACE}, image: '{IMAGE}', storage: {{claim: runs}}}}\n"
BOUNDS = {"plan": 1.5, "status": 1.0, "list": 2.0}
"""Seconds that the fastest run of each may take: a busy machine makes the others slower, not the command."""


def measure(name: str, jobs: int, arguments: list[str]) -> dict[str, object]:
    """Wall and CPU seconds of some runs of one command, after one that fills the caches."""
    command = [sys.executable, "-m", "graceful.cli", *arguments]
    subprocess.run(command, capture_output=True, check=False)
    wall, cpu = [], []
    for _ in range(RUNS):
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wall.append(time.perf_counter() - start)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
        if done.returncode:
            raise SystemExit(f"{' '.join(arguments)}: exit code {done.returncode}: {done.stderr}")
    return {
        "command": name,
        "jobs": jobs,
        "runs": RUNS,
        "seconds": round(min(wall), 3),
        "median_seconds": round(statistics.median(wall), 3),
        "cpu_seconds": round(statistics.median(cpu), 3),
    }


def filled(kube: Kube) -> None:
    """One run with pods and events, and many jobs in every state."""
    statuses = [status for cycle in life_cycles() for status in cycle.statuses if status]
    create(kube, "glyphs-v1", case=life_cycles()[0].case)
    replay(kube, life_cycles()[0], name="glyphs-v1")
    for number in range(JOBS - 1):
        create(kube, f"job-{number}")
        write_status(kube, f"job-{number}", statuses[number % len(statuses)])


def main() -> int:
    """Print and write the table; 1 if a bound does not hold."""
    begun = time.monotonic()
    kube = Kube.connect(namespace=NAMESPACE)
    kube.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    filled(kube)
    with tempfile.TemporaryDirectory() as folder:
        profile = Path(folder, "bench.yaml")
        profile.write_text(PROFILE, encoding="utf-8")
        rows = [
            measure("plan", JOBS, ["plan", str(SPEC), "--on", str(profile)]),
            measure("status", JOBS, ["status", "glyphs-v1", "-n", NAMESPACE]),
            measure("list", JOBS, ["list", "-n", NAMESPACE]),
        ]
    kube.delete("Namespace", NAMESPACE)
    print("  ".join(rows[0]))
    for row in rows:
        print("  ".join(f"{value!s:>{len(key)}}" for key, value in row.items()))
    print("wrote", write("cluster_cli", rows, time.monotonic() - begun).name)
    return int(any(float(str(row["seconds"])) > BOUNDS[str(row["command"])] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
