"""How long does `graceful --help` take over bare Python? CPU seconds, in pairs, so that a busy machine hits both alike.

python -m benchmarks.cli_startup        prints a table, writes benchmarks/results/cli_startup.json
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import time

from benchmarks.results import write

RUNS = 20
BOUND = 0.100
"""Seconds of CPU over bare Python that --help may cost."""
COMMANDS = {
    "graceful --help": [sys.executable, "-m", "graceful.cli", "--help"],
    "graceful schema": [sys.executable, "-m", "graceful.cli", "schema"],
}
BARE = [sys.executable, "-c", "pass"]


def cpu(command: list[str]) -> float:
    """Return the CPU seconds of one process, user and system."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def measure(name: str, command: list[str]) -> dict[str, object]:
    """Return the differences of RUNS pairs, after one run that fills the caches."""
    cpu(command)
    over = sorted(cpu(command) - cpu(BARE) for _ in range(RUNS))
    return {
        "command": name,
        "runs": RUNS,
        "minimum_ms": round(1000 * over[0]),
        "median_ms": round(1000 * statistics.median(over)),
        "maximum_ms": round(1000 * over[-1]),
    }


def main() -> int:
    """Print and write the table; 1 if the median of --help exceeds its bound."""
    start = time.monotonic()
    rows = [measure(name, command) for name, command in COMMANDS.items()]
    print("  ".join(rows[0]))
    for row in rows:
        print("  ".join(f"{value!s:>{len(key)}}" for key, value in row.items()))
    print(f"bound for --help: {1000 * BOUND:.0f} ms; CPU time over {' '.join(['python', *BARE[1:]])}")
    print("wrote", write("cli_startup", rows, time.monotonic() - start).name)
    return int(float(str(rows[0]["median_ms"])) > 1000 * BOUND)


if __name__ == "__main__":
    sys.exit(main())
