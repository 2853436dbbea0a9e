"""What shards cost: to walk them once, to open their index, to read samples in an order, against reading in sequence.

    python -m benchmarks.shards --peer PYTHON    # fifteen minutes, writes benchmarks/results/shards.json
    python -m benchmarks.shards --quick          # 5,000 samples, prints only

PYTHON is an interpreter in whose environment `pip install webdataset` was done; without it, the peer is a loop over
tarfile. 10^5 samples (a JPEG of 128 x 128 pixels and a class each, 10^5 / 2,500 shards) are written to a temporary
folder. `index` and `open` are measured in a process of their own, with its peak of resident memory. Rows with `order`
read the members of half of the samples on one thread, `blocks` and `full` as training would order them; rows `decode`
also make squares of 64 pixels of a twentieth of them, one after the other. graceful compares members with digests.
Rounds of graceful and of the peer alternate, files are in the page cache for both, and `ratio` is the median of the
ratios of a round, with the smallest and the largest.
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import os
import resource
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from PIL import Image

from benchmarks import results
from graceful import spec, tasks
from graceful.tasks.photos import Frame, read_photo
from graceful.tasks.shards.items import MemberReader, image_of
from graceful.training.block_order import BlockOrder

SIDE, SQUARE, EACH, DISTINCT = 128, 64, 2_500, 500
PEER = """
import io, sys, time
pattern, count, decode, kind = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "decode", sys.argv[4]
from PIL import Image, ImageOps

def webdataset():
    import webdataset as wds
    for sample in wds.WebDataset(pattern, shardshuffle=False, empty_check=False):
        yield sample["jpg"], sample["cls"]

def plain():
    import glob, tarfile
    for path in sorted(glob.glob(pattern)):
        image = None
        with tarfile.open(path, "r|") as archive:
            for info in archive:
                data = archive.extractfile(info).read()
                if image is None:
                    image = data
                else:
                    yield image, data
                    image = None

began, done = time.perf_counter(), 0
for image, label in webdataset() if kind == "webdataset" else plain():
    if decode:
        ImageOps.fit(Image.open(io.BytesIO(image)).convert("RGB"), (64, 64), method=Image.Resampling.BILINEAR)
    done += 1
    if done == count:
        break
print(done / (time.perf_counter() - began))
"""


def write_shards(folder: Path, count: int) -> None:
    """Write shards of pictures with a gradient and noise; some hundred different ones, in turn."""
    generator = np.random.default_rng(0)
    ramp = np.linspace(0, 200, SIDE)[:, None, None] * np.ones((1, SIDE, 3))
    pictures = []
    for _ in range(DISTINCT):
        pixels = ramp + generator.normal(size=(SIDE, SIDE, 3)) * 20 + generator.uniform(0, 40, size=3)
        file = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, format="JPEG", quality=85)
        pictures.append(file.getvalue())
    for start in range(0, count, EACH):
        with tarfile.open(folder / f"{start // EACH:06d}.tar", "w") as archive:
            for index in range(start, min(start + EACH, count)):
                for ending, data in (("jpg", pictures[index % DISTINCT]), ("cls", str(index % 10).encode())):
                    info = tarfile.TarInfo(f"{index:09d}.{ending}")
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))


def task_of(folder: Path, **keys: Any) -> Any:
    """The task of the shards in a folder."""
    section = {"kind": "shards", "files": str(folder / "*.tar"), "members": {"image": "jpg"}, "size": SQUARE, **keys}
    return tasks.build(spec.parse({"model": "m", "name": "v1", "task": section}).task)


def opened(folder: Path) -> None:
    """Open the training split; print its size, seconds and the peak of resident memory in MB, without the start."""

    importlib.import_module("graceful.tasks.shards.task")  # not what is measured
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    began = time.perf_counter()
    train = task_of(folder).samples("train")
    seconds = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps([len(train), seconds, after - before]))


def in_process(folder: Path) -> tuple[int, float, float]:
    """Return what `opened` measures in another process."""
    command = [sys.executable, "-m", "benchmarks.shards", "--opened", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    count, seconds, megabytes = json.loads(done.stdout)
    return count, seconds, megabytes


def own_rate(task: Any, positions: np.ndarray, *, decode: bool) -> float:
    """Return samples per second of reading the members of samples, on one thread."""
    reader, frame = MemberReader(task._index), Frame(size=SQUARE)
    began = time.perf_counter()
    for sample in positions.tolist():
        members = reader.members(sample, ("jpg", "cls"))
        if decode:
            read_photo(image_of("", where="", load=lambda data=members["jpg"]: data), frame)
    return len(positions) / (time.perf_counter() - began)


def peer_rate(python: str, folder: Path, count: int, *, decode: bool, kind: str) -> float:
    """Return samples per second of the peer, which reads in sequence in a process of its own."""
    files = sorted(folder.glob("*.tar"))
    pattern = str(folder / f"{{000000..{files[-1].stem}}}.tar") if kind == "webdataset" else str(folder / "*.tar")
    command = [python, "-c", PEER, pattern, str(count), "decode" if decode else "read", kind]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def orders(task: Any, count: int) -> dict[str, np.ndarray]:
    """Return numbers of samples in the three orders."""
    runs = task_of(Path(task._section.files[0]).parent, shuffle="blocks", split=0).samples("train").runs
    starts = np.arange(0, len(task._index) + runs_length(runs), runs_length(runs)).clip(max=len(task._index))
    every = type(runs)(starts=np.unique(starts), window=runs.window)
    return {
        "sequential": np.arange(count),
        "blocks": BlockOrder(every, key=(0, 0))(np.arange(count)),
        "full": np.random.default_rng(0).permutation(len(task._index))[:count],
    }


def runs_length(runs: Any) -> int:
    """Return the length of most runs."""
    return int(np.median(np.diff(runs.starts)))


def paired(own: Callable[[], float], peer: Callable[[], float], *, rounds: int) -> dict[str, Any]:
    """Return the medians of both and of the ratio, in rounds that alternate."""
    pairs = [(own(), peer()) for _ in range(rounds)]
    ratios = sorted(mine / theirs for mine, theirs in pairs)
    return {
        "samples_per_second": round(statistics.median(mine for mine, _ in pairs)),
        "peer_samples_per_second": round(statistics.median(theirs for _, theirs in pairs)),
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratios[0], 3), round(ratios[-1], 3)],
        "rounds": rounds,
    }


def measure(folder: Path, count: int, *, peer: str, rounds: int) -> list[dict[str, Any]]:
    """Return all rows."""
    megabytes = sum(path.stat().st_size for path in folder.glob("*.tar")) / 1e6
    base = {"samples": count, "megabytes": round(megabytes), "seed": 0}
    rows: list[dict[str, Any]] = []
    for what in ("index", "open"):
        _, seconds, memory = in_process(folder)
        rows.append({**base, "what": what, "seconds": round(seconds, 2), "rss_mb": round(memory)})
    task, kind = task_of(folder), "tarfile" if peer == sys.executable else "webdataset"
    for decode in (False, True):
        for order, positions in orders(task, count).items():
            some = positions[: count // 20 if decode else count // 2]
            row = paired(
                lambda some=some, decode=decode: own_rate(task, some, decode=decode),
                lambda some=some, decode=decode: peer_rate(peer, folder, len(some), decode=decode, kind=kind),
                rounds=rounds,
            )
            rows.append({**base, "what": "decode" if decode else "read", "order": order, "peer": kind, **row})
    return rows


def main(arguments: Sequence[str]) -> int:
    """Measure, print, and write the results unless `--quick`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shards")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--peer", default=sys.executable, metavar="PYTHON")
    parser.add_argument("--opened", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.opened:
        opened(options.opened)
        return 0
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "shards"
        folder.mkdir()
        os.environ["GRACEFUL_HOME"] = str(Path(scratch) / "home")
        count = 5_000 if options.quick else 100_000
        write_shards(folder, count)
        rows = measure(folder, count, peer=options.peer, rounds=1 if options.quick else 5)
    for row in rows:
        print(json.dumps(row))
    if not options.quick:
        print(results.write("shards", rows, time.monotonic() - began))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
