"""What an index of 10^4 to 10^6 vectors of 128 numbers costs: build, open, query, memory, recall of the search.

    python -m benchmarks.index_scale            # an hour or two, writes benchmarks/results/index_scale.json
    python -m benchmarks.index_scale --quick    # 10^4 vectors, prints only

The vectors have 24 latent numbers, mapped to 128 by a random matrix with noise, about as learned embeddings lie, and
queries are drawn like them. Each backend and size is measured in processes of its own: `build` writes the vectors and
makes the structure that is searched, `open` is what a new process takes until its first answer, `query p50` and
`query p95` are single queries for ten results, `add 1 %` is one commit of new vectors and the first answer after it.
`recall` is the share of the ten nearest that the search finds, against exact search in the same vectors; what the
vectors are worth is another question. `cpu_seconds` is processor time, which other work on the machine disturbs least,
`rss_mb` the most memory that the process had. Rows that were measured are kept in --rows, so that an interrupted run
goes on where it was.
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
from pathlib import Path
from typing import Any

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
}


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
    """Return wall time and the processor time of this process."""
    return time.perf_counter(), time.process_time()


def memory() -> int:
    """Return the most memory this process had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def measured(name: str, count: int, folder: Path, step: str) -> list[dict[str, Any]]:
    """Measure one step in this process."""
    import torch  # noqa: F401  # imports are not counted

    from graceful.index import Index, Space

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

    queries = made(QUERIES, seed=SEED + 1)
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
    for number in range(QUERIES):
        begun = clocks()
        hits = view.search(unit[number : number + 1], space="scale", k=10)
        seconds.append([now - then for now, then in zip(clocks(), begun, strict=True)])
        shared.append(hits.ids[0].tolist())
    truth = view.search(unit, space="scale", k=10, exact=True).ids.tolist()
    recall = float(np.mean([len(set(a) & set(b)) / 10 for a, b in zip(shared, truth, strict=True)]))
    for share in (50, 95):
        noted(f"query p{share}", *np.percentile(seconds, share, axis=0).tolist(), round(recall, 4))
    added = vectors(max(count // 100, 1), seed=SEED + 3, prefix="n")
    begun = clocks()
    index.add(added, space)
    index.search({"scale": queries[:1]}, k=10)
    note("add 1 %", begun)
    assert index.head().count == head.count + len(added.ids)
    return rows


def index_queries(queries: Any) -> Any:
    """Return queries of unit length."""
    return (queries / np.linalg.norm(queries, axis=1, keepdims=True)).astype(np.float32)


def main() -> None:
    """Measure everything that is not in the rows yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rows", type=Path, default=Path(tempfile.gettempdir()) / "index_scale.jsonl")
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
    for count in COUNTS[:1] if arguments.quick else COUNTS:
        for name, (backend, options) in BACKENDS.items():
            known = (backend, options.get("index", "flat"), count)
            if known in {(row["backend"], row["index"], row["vectors"]) for row in rows}:
                continue
            with tempfile.TemporaryDirectory() as folder:
                found = []
                for step in ("build", "query"):
                    command = [sys.executable, "-m", "benchmarks.index_scale", "--one", name, str(count), folder, step]
                    done = subprocess.run(command, check=True, capture_output=True, text=True)
                    found += json.loads(done.stdout)
            with path.open("a") as file:
                file.writelines(json.dumps(row) + "\n" for row in found)
            rows += found
            for row in found:
                print(row, flush=True)
    if not arguments.quick:
        print(results.write("index_scale", rows, sum(row["seconds"] for row in rows)))


if __name__ == "__main__":
    main()
