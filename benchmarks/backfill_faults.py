"""What faults do to a backfill: killed at random, two writers, a full disk. Every id must stay once, in one space.

    python -m benchmarks.backfill_faults            # minutes, writes benchmarks/results/backfill_faults.json
    python -m benchmarks.backfill_faults --quick    # three runs of each fault, prints only

Two thousand vectors are backfilled in batches of 40 by real processes, which are ended with SIGKILL after a random time
of up to two seconds. The same process is started again until the backfill is done; then it is taken back, and the next
one begins. While it runs, another process searches without a pause with the queries of both models. After every run all
vectors are compared with what they must be:

    lost         ids that are in no space          wrong_space  vectors that are not those of the space they are in
    doubled      ids that are in two               unanswered   searches that failed, or did not find the item itself

All but `disk full` are measured on an index in a folder and on one in a bucket of a real S3 server, the tests' own.
`killed` ends the backfill, `killed writer` a process that adds, replaces and deletes, `two writers` runs two workers of
one backfill and a writer beside each other, `disk full` lets the backfill write until the disk is full (a file system
of its own where the machine allows one, else a limit on the size of files), and then goes on with space.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import resource
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch  # noqa: F401  # before processes are forked

from benchmarks import results
from graceful.errors import GracefulError, StorageError
from graceful.index import Index, Space, Vectors, backfill
from graceful.index.backfill_work import Settings
from graceful.index.log import MovedError
from graceful.storage import server
from tests.support import s3_server

COUNT, RUNS, QUERIES, SEED = 2000, {"killed": 100, "killed writer": 30, "two writers": 20, "disk full": 20}, 20, 0
OLD, NEW = Space.declared("old", 32), Space.declared("new", 24)
MATRIX = np.random.default_rng(5).normal(size=(32, 24)).astype(np.float32)


def vectors(count: int, *, prefix: str, seed: int) -> Vectors:
    """Return what the old model says of some items."""
    made = np.random.default_rng(seed).normal(size=(count, 32)).astype(np.float32)
    ids = np.asarray([f"{prefix}{number:05d}" for number in range(count)])
    return Vectors(ids=ids, vectors=made, payload={"label": ids})


ITEMS = vectors(COUNT, prefix="item", seed=SEED)
FRESH = vectors(400, prefix="fresh", seed=SEED + 1)


def mapped(made: Vectors) -> Vectors:
    """Return what the new model says of the same items."""
    return replace(made, vectors=made.vectors @ MATRIX)


def truth() -> dict[str, dict[str, Any]]:
    """Return by space and id the only vectors that are right."""
    known: dict[str, dict[str, Any]] = {"old": {}, "new": {}}
    for part in (ITEMS, FRESH):
        for space, made in (("old", part), ("new", mapped(part))):
            unit = made.checked(dimension=made.dimension, where=space)
            known[space] |= dict(zip(unit.ids.tolist(), unit.vectors, strict=True))
    return known


class Model:
    """The new model, at a pace at which a kill meets every step of a commit."""

    space = NEW

    def __call__(self, ids: Any) -> Vectors:
        """Return vectors of some ids."""
        made = mapped(Vectors.joined([ITEMS, FRESH], dimension=32))
        return made.take(np.isin(made.ids, ids))


# --- processes --------------------------------------------------------------------------------------------------------


def forked(work: Callable[[], None]) -> int:
    """Start a process and return its id; it ends with 0, or with 4 for an error of ours."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        server.reset()  # its sockets are the parent's
        work()
        code = 0
    except GracefulError:
        code = 4
    finally:
        os._exit(code)


def backfilling(address: str, shard: tuple[int, int] = (0, 1), seed: int = 0) -> Callable[[], None]:
    """Return a worker of a backfill."""
    return lambda: void(backfill.run(Index.open(address), Model(), Settings(batch=40, shard=shard, seed=seed)))


def void(_: object) -> None:
    """Return nothing."""


def writing(address: str, seed: int) -> Callable[[], None]:
    """Return a writer: adds fresh items in the space that the index takes, replaces and deletes some."""

    def work() -> None:
        draw, index = random.Random(seed), Index.open(address)
        for _ in range(8):
            space = index.head().writes
            made = (FRESH if space == "old" else mapped(FRESH)).take(np.asarray(draw.sample(range(400), 30)))
            with contextlib.suppress(GracefulError):  # the space may change between the look and the commit
                index.add(made, OLD if space == "old" else NEW, replacing=True)
            gone = made.ids[:10]
            with contextlib.suppress(GracefulError):
                index.delete(gone)

    return work


def searching(address: str, report: Path) -> Callable[[], None]:
    """Return a process that searches until it is ended, and counts what fails."""

    def work() -> None:
        stop: list[bool] = []
        signal.signal(signal.SIGTERM, lambda *_: stop.append(True))
        draw, asked, failed = random.Random(SEED), 0, 0
        index = Index.open(address)
        new = mapped(ITEMS)
        while not stop:
            rows = np.asarray(draw.sample(range(COUNT), QUERIES))
            asked += QUERIES
            try:
                head = index.head()
                queries = {"old": ITEMS.vectors[rows], "new": new.vectors[rows]}
                known = {name: matrix for name, matrix in queries.items() if name in head.spaces}
                found = index.search(known, k=1, manifest=head).ids[:, 0]
                failed += int((found != ITEMS.ids[rows]).sum())
            except GracefulError:
                failed += QUERIES
            time.sleep(0.05)
        report.write_text(json.dumps([asked, failed]))

    return work


def ended(child: int, *, after: float | None = None) -> int:
    """Wait for a process, or kill it after some seconds; returns its exit code, negative for a signal."""
    if after is not None:
        time.sleep(after)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# --- faults -----------------------------------------------------------------------------------------------------------


def compared(index: Index, *, fresh: bool) -> dict[str, int]:
    """Return what is wrong with an index now."""
    right, head = truth(), index.head()
    view = index.view(head)
    places: dict[str, int] = {}
    wrong = 0
    for space, count in head.counts.items():
        made = view.read(space)
        wrong += abs(len(made) - count)
        for name, vector in zip(made.ids.tolist(), made.vectors, strict=True):
            places[name] = places.get(name, 0) + 1
            wrong += int(not np.allclose(vector, right[space][name], atol=1e-6))
    items = set(ITEMS.ids.tolist())
    others = {name for name in places if name not in items}
    wrong += len(others) if not fresh else 0
    doubled = sum(count > 1 for count in places.values())
    return {
        "lost": len(items - set(places)),
        "doubled": doubled,
        "wrong_space": wrong + len(index.backend.verify(head)),
    }


def killed(address: str, draw: random.Random) -> None:
    """Kill a backfill; one that was done before is taken back first."""
    index = Index.open(address)
    state = index.head().backfill
    if state is not None and state["state"] == "moved":
        backfill.rollback(index)
    ended(forked(backfilling(address)), after=2 * draw.random())


def killed_writer(address: str, draw: random.Random) -> None:
    """Kill a process that adds, replaces and deletes."""
    ended(forked(writing(address, draw.randrange(10**6))), after=draw.random() / 2)


def two_writers(address: str, draw: random.Random) -> None:
    """Run two workers of a backfill and a writer to the end."""
    index = Index.open(address)
    if index.head().backfill is not None:
        backfill.rollback(index)
    works = [backfilling(address, (0, 2)), backfilling(address, (1, 2)), writing(address, draw.randrange(10**6))]
    for child in [forked(work) for work in works]:
        ended(child)


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """Yield whether the folder is a file system of its own of 64 MB."""
    folder.mkdir(exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    try:
        yield mounted.returncode == 0
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def disk_full(address: str, draw: random.Random) -> None:
    """Backfill on a disk that becomes full, then with space again."""
    index = Index.open(address)
    if index.head().backfill is not None:
        backfill.rollback(index)
    folder = Path(address)
    filler = folder / "filler"
    if os.stat(folder).st_dev != os.stat(folder.parent).st_dev:
        free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
        filler.write_bytes(b"0" * max(free - draw.randrange(20_000, 120_000), 0))

        def work() -> None:
            backfilling(address)()
    else:

        def work() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (draw.randrange(500, 9000), resource.RLIM_INFINITY))
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            backfilling(address)()

    code = ended(forked(work))
    assert code == 4, f"a full disk must end the backfill with an error of ours, got {code}"
    filler.unlink(missing_ok=True)


FAULTS: dict[str, Callable[[str, random.Random], None]] = {
    "killed": killed,
    "killed writer": killed_writer,
    "two writers": two_writers,
    "disk full": disk_full,
}


def measured(fault: str, place: str, runs: int) -> dict[str, Any]:
    """Return the row of one fault, on an index in a folder or in a bucket."""
    draw, row = random.Random(f"{SEED} {fault} exact"), {"lost": 0, "doubled": 0, "wrong_space": 0}
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        folder, address = Path(scratch) / "index", stack.enter_context(somewhere(place, Path(scratch)))
        own = stack.enter_context(small_disk(folder)) if fault == "disk full" else False
        index = Index.create(address, ITEMS, OLD)
        assert index.head().count == COUNT
        report = Path(scratch) / "searches.json"
        searcher = forked(searching(address, report))
        for _ in range(runs):
            with contextlib.suppress(MovedError, StorageError):
                FAULTS[fault](address, draw)
            for name, count in compared(index, fresh=fault in ("two writers", "killed writer")).items():
                row[name] += count
            if own:
                tidy(address)
        time.sleep(0.5)
        os.kill(searcher, signal.SIGTERM)
        ended(searcher)
        asked, failed = json.loads(report.read_text())
        last = Index.open(address)
        with contextlib.suppress(MovedError):
            backfill.run(last, Model(), Settings(batch=400))
        assert last.head().serving == "new"
    about = {"fault": fault, "place": place, "backend": "exact", "runs": runs, "vectors": COUNT, "seed": SEED}
    where = {"disk": "own file system" if own else "limit on files"} if fault == "disk full" else {}
    return {**about, **row, "unanswered": failed, "searches": asked, **where}


@contextlib.contextmanager
def somewhere(place: str, scratch: Path) -> Iterator[str]:
    """Yield the address of an index that does not exist yet."""
    if place == "folder":
        yield str(scratch / "index")
        return
    os.environ["GRACEFUL_HOME"] = str(scratch / "home")
    with s3_server.serving():
        server.client().create_bucket(Bucket="graceful-faults")
        yield "s3://graceful-faults/index"


def tidy(address: str) -> None:
    """Remove segments that no snapshot names, and of the others nothing is asked any more."""
    index = Index.open(address)
    head = index.head()
    kept = {part.file for part in head.parts}
    for path in (Path(address) / "segments").iterdir():
        if f"segments/{path.name}" not in kept:
            path.unlink()


def main() -> None:
    """Measure every fault that is not in the rows yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rows", type=Path, default=Path(tempfile.gettempdir()) / "backfill_faults.jsonl")
    arguments = parser.parse_args()
    path = arguments.rows
    if arguments.quick:
        path = Path(tempfile.mkdtemp()) / "rows.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    places = [("folder", fault) for fault in RUNS] + [("bucket", fault) for fault in RUNS if fault != "disk full"]
    for place, fault in places:
        if (place, fault) in {(row["place"], row["fault"]) for row in rows}:
            continue
        begun = time.perf_counter()
        row = measured(fault, place, 3 if arguments.quick else RUNS[fault])
        row["seconds"] = round(time.perf_counter() - begun, 1)
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        rows.append(row)
        print(row, flush=True)
    if not arguments.quick:
        print(results.write("backfill_faults", rows, sum(row["seconds"] for row in rows)))


if __name__ == "__main__":
    main()
