"""How much memory does one refresh take? The process tree is sampled while it runs.

Two Ray workers train with DeepSpeed on glyphs. Two versions learn from photos of 12 megapixels, in batches of 128 and
with 1,024 to evaluate: the first decodes them whole, the second reduced, and it runs the first beside it.

python -m benchmarks.memory [EPOCHS]     prints a table, writes benchmarks/results/memory.json; 1 if a refresh ended in
an error or one of photos took more than 2 GB
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from benchmarks.results import write
from graceful.errors import EXIT_HELD

SPEC = "jobs/glyphs/v1.yaml"
EVERY = 0.1
"""Seconds between samples: a shorter peak may be missed."""
MEBIBYTE = 2**20
SIDES = (4000, 3000)
"""Of a photo: 12 megapixels, 36 MB decoded."""
COUNTS = {"train": 128, "validation": 32, "constraint": 32, "test": 1024}
FILES = 8
"""Photos that differ; the others are hard links to them."""
BOUND_MB = 2000
"""Peak of the resident memory of all processes of a refresh from photos."""


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


def refreshed(command: str, options: Sequence[str], *, home: Path) -> dict[str, object]:
    """Return one row: the peaks while a refresh runs."""
    peaks: dict[str, int] = {}
    start = time.monotonic()
    line = [sys.executable, "-m", "graceful.cli", *options]
    running = psutil.Popen(line, env={**os.environ, "GRACEFUL_HOME": str(home)})
    while running.poll() is None:
        for name, number in sample(running).items():
            peaks[name] = max(number, peaks.get(name, 0))
        time.sleep(EVERY)
    row: dict[str, object] = {"command": command, "exit_code": running.returncode, "every_s": EVERY}
    row["seconds"] = round(time.monotonic() - start, 1)
    row |= {f"peak_{name}": number for name, number in peaks.items()}
    for name, value in row.items():
        print(f"{name:>16}  {value}")
    return row


def photos(root: Path) -> Path:
    """Return a folder of two classes in split folders."""
    random = np.random.default_rng(0)
    originals = [root / f"{number}.jpg" for number in range(FILES)]
    root.mkdir(exist_ok=True)
    for path in originals:
        coarse = Image.fromarray(random.integers(0, 256, (30, 40, 3), np.uint8))
        coarse.resize(SIDES, Image.Resampling.BICUBIC).save(path, quality=85)
    for split, count in COUNTS.items():
        for number in range(count):
            path = root / "photos" / split / ("ant", "bee")[number % 2] / f"{number:04d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.hardlink_to(originals[number % FILES])
    return root / "photos"


def photo_rows(home: Path) -> list[dict[str, object]]:
    """Return a version that decodes photos whole, and one that decodes them reduced beside it."""
    root, rows = photos(home / "data"), []
    for name, decode in (("v1", "full"), ("v2", "reduced")):
        document = {
            "model": "photos",
            "name": name,
            "task": {"kind": "image_folder", "root": str(root), "decode": decode},
            "train": {"epochs": 1, "batch_size": 128, "num_workers": 0, "engine": {"kind": "torch"}},
            "compatibility": {"losses": [{"kind": "focal_distillation", "weight": 0.3}]},
            "evaluate": {"batch_size": 1024},
        }
        spec = home / f"{name}.yaml"
        spec.write_text(json.dumps(document), encoding="utf-8")
        what = f"graceful refresh: photos of 12 megapixels, {name} decodes them {decode}, batch 128, evaluates 1,024"
        rows.append(refreshed(what, ["refresh", str(spec), "--quiet"], home=home))
    return rows


def main(arguments: list[str]) -> int:
    """Print and write the peaks; 1 if a refresh ended in an error (held is none) or took more than it may."""
    epochs, start = int(arguments[0]) if arguments else 2, time.monotonic()
    options = ["refresh", SPEC, "--set", f"train.epochs={epochs}", "--quiet"]
    with tempfile.TemporaryDirectory() as home, tempfile.TemporaryDirectory() as other:
        of_photos = photo_rows(Path(other))
        rows = [refreshed(f"graceful {' '.join(options)}", options, home=Path(home)), *of_photos]
    print("wrote", write("memory", rows, time.monotonic() - start).name)
    ended = all(row["exit_code"] in (0, EXIT_HELD) for row in rows)
    return int(not ended or any(int(str(row["peak_rss_mb"])) > BOUND_MB for row in of_photos))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
