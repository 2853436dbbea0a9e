"""Write what a benchmark measured where a claim can point to it: benchmarks/results/NAME.json. Runs in the benchmark.

Benchmarks are started from the repository root as `python -m benchmarks.NAME`.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

FOLDER = Path(__file__).parent / "results"


def write(name: str, rows: Sequence[Mapping[str, object]], seconds: float) -> Path:
    """Record rows with the commit and the hardware they came from; returns the file, which belongs into a commit.

    Args:
        name: Name of the benchmark, the stem of the file.
        rows: JSON values, no NaN; seeds and intervals are columns like any other.
        seconds: Wall time of the whole benchmark.
    """
    document = {
        "commit": commit(),
        "hardware": hardware(),
        "seconds": round(seconds, 1),
        "rows": [dict(row) for row in rows],
    }
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{name}.json"
    path.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return path


def commit() -> str:
    """Abbreviated commit of the tree; `+` after it: with uncommitted changes to the package or the benchmarks."""
    head = _git("rev-parse", "--short=12", "HEAD")
    changed = _git("status", "--porcelain", "--", "graceful", "benchmarks/*.py", "jobs")
    return f"{head}+" if changed else head


def hardware() -> str:
    """Return what the numbers depend on: processor, usable cores, memory, accelerators."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parts = [_processor(), f"{cores} cores"]
    if hasattr(os, "sysconf"):
        parts.append(f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB")
    return ", ".join(parts + _accelerators())


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _accelerators() -> list[str]:
    found = []
    for info in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("Model:"):
                found.append(line.partition(":")[2].strip())
    return found


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(FOLDER.parent.parent), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else "unknown"
