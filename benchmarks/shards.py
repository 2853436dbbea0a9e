"""What shards cost: to walk them once, to open their index, to read samples in an order, against reading in sequence.

    python -m benchmarks.shards --peer PYTHON    # fifteen minutes, writes benchmarks/results/shards.json
    python -m benchmarks.shards --quick          # 5,000 samples, prints only

PYTHON is an interpreter in whose environment `pip install webdataset` was done; without it, the peer is a loop over
tarfile. 10^5 samples (a JPEG of 128 x 128 pixels and a class each, 10^5 / 2,500 shards) are written to a temporary
folder. `index` and `open` are measured in a process of their own, with its peak of resident memory. Rows `read` read
the members of half of the samples, `blocks` and `full` as training would order them, and compare them with digests;
both sides have one thread, files are in the page cache, and rates are per second of CPU time, for another load of the
machine would disturb the wall clock. Rounds alternate; `ratio` is the median of the ratios of a round, with the
smallest and the largest. Rows `bucket` read the training half of 20,000 samples once (of a full permutation, 500) from
an S3 server of this machine through an empty cache of blocks that holds a third of them, and count requests and bytes.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import io
import json
import os
import resource
import shutil
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
from graceful.storage.server import client
from graceful.tasks.shards import blocks
from graceful.tasks.shards.items import MemberReader
from graceful.training.block_order import BlockOrder
from tests.support.s3_server import environment, serving

SIDE, EACH, DISTINCT = 128, 2_500, 500
PEER = """
import sys, time
pattern, count, kind = sys.argv[1], int(sys.argv[2]), sys.argv[3]

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

samples = webdataset() if kind == "webdataset" else plain()
next(samples)
began, done = time.process_time(), 0
for image, label in samples:
    done += 1
    if done == count:
        break
print(done / (time.process_time() - began))
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
    """Return the task of the shards in a folder."""
    section = {"kind": "shards", "files": str(folder / "*.tar"), "members": {"image": "jpg"}, **keys}
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


def own_rate(task: Any, positions: np.ndarray) -> float:
    """Return samples per second of CPU time of reading the members of samples, on one thread."""
    reader = MemberReader(task._division.index)
    reader.members(0, ("jpg", "cls"))
    began = time.process_time()
    for sample in positions.tolist():
        reader.members(sample, ("jpg", "cls"))
    return len(positions) / (time.process_time() - began)


def peer_rate(python: str, folder: Path, count: int, *, kind: str) -> float:
    """Return the same of the peer, which reads in sequence in a process of its own."""
    files = sorted(folder.glob("*.tar"))
    pattern = str(folder / f"{{000000..{files[-1].stem}}}.tar") if kind == "webdataset" else str(folder / "*.tar")
    command = [python, "-c", PEER, pattern, str(count), kind]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def bucket_rows(folder: Path, count: int) -> list[dict[str, Any]]:
    """Return what a bucket is asked for in each order."""
    rows = []
    with serving(), environment({"GRACEFUL_SHARD_CACHE_GB": "0.06"}):
        client().create_bucket(Bucket="shards")
        files = sorted(folder.glob("*.tar"))[: count // EACH]
        for path in files:
            client().upload_file(str(path), "shards", path.name)
        section = {"files": "s3://shards/*.tar", "shuffle": {"kind": "blocks", "run": 450, "window": 4}}
        train = task_of(folder, **section).samples("train")
        cache = blocks.shared_cache()
        everything = BlockOrder(dataclasses.replace(train.runs, fetch_ahead=None), key=(0, 0))(np.arange(len(train)))
        for order, places in (
            ("blocks", everything),
            ("full", np.random.default_rng(0).permutation(len(train))[: count // 40]),
        ):
            shutil.rmtree(cache.folder, ignore_errors=True)
            before = cache.fetched
            for start in range(0, len(places), 64):
                train.read(places[start : start + 64])
            requests = cache.fetched - before
            rows.append(
                {
                    "what": "bucket",
                    "order": order,
                    "samples": len(places),
                    "megabytes": round(sum(path.stat().st_size for path in files) / 1e6),
                    "cache_megabytes": 60,
                    "requests_per_sample": round(requests / len(places), 4),
                    "megabytes_per_sample": round(requests * blocks.BLOCK / 1e6 / len(places), 4),
                    "seed": 0,
                }
            )
    return rows


def orders(task: Any, count: int) -> dict[str, np.ndarray]:
    """Return numbers of samples in the three orders."""
    index, folder = task._division.index, Path(task._section.files[0]).parent
    runs = task_of(folder, shuffle="blocks").samples("train").runs
    length = int(np.median(np.diff(runs.starts)))
    starts = np.arange(0, len(index) + length, length).clip(max=len(index))
    every = type(runs)(starts=np.unique(starts), window=runs.window)
    return {
        "sequential": np.arange(count),
        "blocks": BlockOrder(every, key=(0, 0))(np.arange(count)),
        "full": np.random.default_rng(0).permutation(len(index))[:count],
    }


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
    for order, positions in orders(task, count).items():
        some = positions[: count // 2]
        row = paired(
            lambda some=some: own_rate(task, some),
            lambda some=some: peer_rate(peer, folder, len(some), kind=kind),
            rounds=rounds,
        )
        rows.append({**base, "what": "read", "order": order, "peer": kind, **row})
    rows += bucket_rows(folder, min(count, 20_000))
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
