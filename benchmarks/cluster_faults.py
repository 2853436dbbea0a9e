"""Does a run survive what happens on clusters? Ten faults on a real node, each while a run of two workers trains.

python -m benchmarks.cluster_faults [NAME ...]     needs the test bed (a node, S3, image builds) and root;
                                                   prints a table, writes benchmarks/results/cluster_faults.json
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from benchmarks.results import write
from tests.support.faults import FAULTS
from tests.support.node import started


def main(names: list[str]) -> int:
    """Print and write the table; 1 if a fault left anything but one version and the right champion."""
    start = time.monotonic()
    rows, good = [], []
    with tempfile.TemporaryDirectory() as folder, started(Path(folder)) as node:
        for name in names or FAULTS:
            begun = time.monotonic()
            ending = FAULTS[name].happen(node)
            good.append(FAULTS[name].good(ending))
            rows.append({**ending.row(name), "seconds": round(time.monotonic() - begun, 1)})
            print(rows[-1], flush=True)
    if not names:
        print("wrote", write("cluster_faults", rows, time.monotonic() - start).name)
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
