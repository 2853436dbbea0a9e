"""Does a run survive what happens on clusters? 22 faults on a real node, each while a run of two workers trains.

python -m benchmarks.cluster_faults [NAME ...]     needs the test bed (a node, S3, image builds) and root; prints rows
                                                   and puts them into benchmarks/results/cluster_faults.json: a row
                                                   says at which commit it was measured
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.results import FOLDER, commit, write
from tests.support.administration import ADMINISTRATION
from tests.support.faults import FAULTS
from tests.support.node import Node, started

ALL = {**FAULTS, **ADMINISTRATION}


def main(names: list[str]) -> int:
    """Print and record the rows; 1 if a fault left anything but the versions and the champion that it should."""
    with tempfile.TemporaryDirectory() as folder, started(Path(folder)) as node:
        good = [measure(node, name) for name in names or ALL]
    return 0 if all(good) else 1


def measure(node: Node, name: str) -> bool:
    """Let one fault happen, record its row at once, and return whether it ended well."""
    begun = time.monotonic()
    try:
        ending = ALL[name].happen(node)
    except AssertionError as e:  # the node, which took minutes to start, serves the others
        print(f"{name}: {e}", flush=True)
        return False
    seconds = round(time.monotonic() - begun, 1)
    row = {**ending.row(name, ALL[name]), "seconds": seconds, "commit": commit()}
    print(row, flush=True)
    recorded = json.loads((FOLDER / "cluster_faults.json").read_text(encoding="utf-8"))
    rows = {one["fault"]: {"commit": recorded["commit"], **one} for one in recorded["rows"]} | {name: row}
    ordered = [rows[fault] for fault in ALL if fault in rows]
    write("cluster_faults", ordered, sum(one["seconds"] for one in ordered))
    return ALL[name].good(ending)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
