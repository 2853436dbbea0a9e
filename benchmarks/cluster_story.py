"""Time from an empty namespace to a second version on a real node, step by step.

python -m benchmarks.cluster_story     needs the test bed (a node, S3, image builds) and root;
                                       prints a table, writes benchmarks/results/cluster_story.json
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from benchmarks.results import write
from tests.support.node import started
from tests.support.story import tell


def main() -> int:
    """Print and write the table."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, started(Path(folder)) as node:
        story = tell(node, name="story")
    rows = [{"step": step, "seconds": seconds} for step, seconds in story.seconds.items()]
    for row in rows:
        print(f"{row['seconds']:>8} s  {row['step']}")
    print("wrote", write("cluster_story", rows, time.monotonic() - start).name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
