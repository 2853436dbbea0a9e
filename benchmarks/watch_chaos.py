"""Does following a job survive what happens to watches? 200 recorded life-cycles through a proxy that injects faults.

python -m benchmarks.watch_chaos [LIFE_CYCLES]     needs the current kube context (a cluster with KubeRay's CRDs, whose
                                                   operator does not watch namespaces graceful-chaos-*);
                                                   prints a table, writes benchmarks/results/watch_chaos.json
"""

from __future__ import annotations

import sys
import time

from benchmarks.results import write
from graceful.launch.kubernetes.kube import Kube
from tests.support.apiserver_proxy import Fault, Weather
from tests.support.watch_chaos import run_life_cycles

LIFE_CYCLES = 200
NAMESPACE = f"graceful-chaos-{int(time.time())}"
CHANCE = 0.2
"""That a request, or one part of a stream, meets a fault."""
WEATHERS: dict[str, tuple[Fault, ...]] = {**{fault.value: (fault,) for fault in Fault}, "all of them": tuple(Fault)}


def main(arguments: list[str]) -> int:
    """Print and write the table; 1 if anything hung, came twice or ended wrongly."""
    total = int(arguments[0]) if arguments else LIFE_CYCLES
    start = time.monotonic()
    kube = Kube.connect(namespace=NAMESPACE)
    kube.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    rows = []
    for number, (name, faults) in enumerate(WEATHERS.items()):
        share = total * (number + 1) // len(WEATHERS) - total * number // len(WEATHERS)
        begun = time.monotonic()
        weather = Weather(faults=faults, chance=CHANCE, seed=number)
        row = run_life_cycles(kube, weather, count=share, prefix=f"c{number}")
        rows.append({"fault": name, **row, "seed": number, "seconds": round(time.monotonic() - begun, 1)})
        print(rows[-1], flush=True)
    kube.delete("Namespace", NAMESPACE)
    print("wrote", write("watch_chaos", rows, time.monotonic() - start).name)
    return int(any(row["hangs"] or row["duplicates"] or row["wrong_states"] for row in rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
