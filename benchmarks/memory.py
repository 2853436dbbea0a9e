"""How much memory does one refresh take? The process tree is sampled while two Ray workers train with DeepSpeed.

python -m benchmarks.memory [EPOCHS]     prints a table, writes benchmarks/results/memory.json
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from contextlib import suppress

import psutil

from benchmarks.results import write
from graceful.gate import EXIT_HELD

SPEC = "jobs/glyphs/v1.yaml"
EVERY = 0.1
"""Seconds between samples: a shorter peak may be missed."""
MEBIBYTE = 2**20


def sample(root: psutil.Process) -> dict[str, int]:
    """Memory of a process and all below it. RSS counts shared pages once per process, PSS once."""
    found = {"processes": 0, "rss_mb": 0, "pss_mb": 0}
    with suppress(psutil.NoSuchProcess):
        for process in [root, *root.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                memory = process.memory_full_info()
                found["processes"] += 1
                found["rss_mb"] += memory.rss
                found["pss_mb"] += memory.pss
    return {name: number if name == "processes" else number // MEBIBYTE for name, number in found.items()}


def main(arguments: list[str]) -> int:
    """Print and write the peaks; 1 if the refresh ended in an error (held is none)."""
    epochs, start = int(arguments[0]) if arguments else 2, time.monotonic()
    options = ["refresh", SPEC, "--set", f"train.epochs={epochs}", "--quiet"]
    peaks: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as home:
        command = [sys.executable, "-m", "graceful.cli", *options]
        running = psutil.Popen(command, env={**os.environ, "GRACEFUL_HOME": home})
        while running.poll() is None:
            for name, number in sample(running).items():
                peaks[name] = max(number, peaks.get(name, 0))
            time.sleep(EVERY)
    row = {"command": f"graceful {' '.join(options)}", "exit_code": running.returncode, "every_s": EVERY}
    row |= {f"peak_{name}": number for name, number in peaks.items()}
    for name, value in row.items():
        print(f"{name:>16}  {value}")
    print("wrote", write("memory", [row], time.monotonic() - start).name)
    return int(running.returncode not in (0, EXIT_HELD))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
