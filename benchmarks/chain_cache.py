"""What caching a predecessor's outputs costs: bytes, seconds, error, by format, classes and samples.

    python -m benchmarks.chain_cache            # two minutes, writes benchmarks/results/chain_cache.json
    python -m benchmarks.chain_cache --quick    # small caches, prints only

`glyphs`: outputs of a trained network, 47 classes. The others: a random linear layer on heavy-tailed features stands in
for a network, so that the seconds are those of the cache itself. `max_error` is the largest absolute error of a
probability after a softmax at temperature 2, over all samples and classes; `gradient_error_at_T` is the root mean
square error of the distillation gradient at temperature T, relative to the root mean square of the gradient itself for
another network of the same kind. All compare with fp32 outputs computed live.

Rows with `workers` are of keyed caches (8 views) of the trained network, built in this process (1) or by Ray workers;
their seconds are wall-clock, the start of Ray and of its workers included: with tiny networks it is most of them,
which is why a refresh asks workers only for more than a minute of work.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import results, runs
from graceful import spec, targets
from graceful.chain import Predecessor, freeze
from graceful.learners import Classifier
from graceful.storage import Mirror
from graceful.targets import layouts
from graceful.targets.blocks import Compute
from graceful.tasks.base import Samples
from graceful.training import ray_outputs

GLYPHS = {"kind": "glyphs", "network": {"size": "s2", "embedding": 64, "head": "cosine"}}
FEATURES, SIZE = 64, 128


class Drawn(nn.Module):
    """A random layer from features to logits: an embedding of 128 numbers, logits with a few large ones."""

    def __init__(self, classes: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.body = nn.Parameter(torch.randn(FEATURES, SIZE, generator=generator) / FEATURES**0.5)
        self.head = nn.Parameter(torch.randn(SIZE, classes, generator=generator) * 4 / SIZE**0.5)

    def embed(self, x: Tensor) -> Tensor:
        """Map [B, features] to [B, d]."""
        return x @ self.body

    def classify(self, embedding: Tensor) -> Tensor:
        """Map [B, d] to [B, C]."""
        return embedding @ self.head


def drawn(classes: int, count: int, *, seed: int = 0) -> tuple[Predecessor, Predecessor, Samples]:
    """Return two random versions and samples for them."""
    names = tuple(f"c{index:06d}" for index in range(classes))
    random = np.random.default_rng(seed)
    items = random.standard_t(4, (count, FEATURES)).astype(np.float32)
    ids = [f"s{index:08d}" for index in range(count)]
    samples = Samples.of(items, random.integers(0, classes, count), classes=names, ids=ids)

    def version(number: int) -> Predecessor:
        return Predecessor(
            name=f"v{number}",
            model_id=f"drawn-v{number}",
            digest=f"{number:064d}",
            classes=names,
            embedding_size=SIZE,
            network=freeze(Drawn(classes, number)),
            learner=Classifier(lambda raw, views: torch.from_numpy(np.ascontiguousarray(raw))),
            transform_digest="none",
        )

    return version(1), version(2), samples


def glyphs(epochs: int) -> tuple[Predecessor, Predecessor, Samples]:
    """Return two trained versions of the shipped task."""
    task = runs.task_of(GLYPHS)
    with tempfile.TemporaryDirectory() as scratch:
        found = []
        for seed in (0, 1):
            wanted = runs.refresh_spec(f"v{seed}", task=GLYPHS, seed=seed, train={"epochs": epochs})
            folder, _ = runs.trained(wanted, folder=Path(scratch) / f"v{seed}", task=task)
            found.append(dataclasses.replace(runs.load(folder), training_ids=None))
    return found[0], found[1], task.samples("train")


def measure(old: Predecessor, other: Predecessor, samples: Samples, tops: Sequence[int | None]) -> list[dict[str, Any]]:
    """Return one row for each format."""
    rows = []
    everything = np.arange(len(samples), dtype=np.int64)
    for top in tops:
        with tempfile.TemporaryDirectory() as scratch:
            begun = time.process_time()
            cache = targets.build(old, samples, views=None, root=scratch, top=top)
            seconds = time.process_time() - begun
            size = sum(path.stat().st_size for path in cache.folder.iterdir())
            begun = time.process_time()
            targets.Cache.open(cache.folder)
            opening = time.process_time() - begun
            errors = [_errors(old, other, samples, cache, part) for part in np.array_split(everything, _parts(samples))]
            row = {
                "format": "all" if top is None else f"top {top}",
                "classes": len(old.classes),
                "embedding": old.embedding_size,
                "samples": len(samples),
                "bytes_per_sample": round(size / len(samples), 2),
                "bytes_without_ids": layouts.bytes_per_sample(
                    classes=len(old.classes), size=old.embedding_size, top=top
                ),
                "seconds": round(seconds, 3),
                "microseconds_per_sample": round(1e6 * seconds / len(samples), 2),
                "seconds_to_open": round(opening, 3),
                "max_error": max(error[0] for error in errors),
                **{
                    f"gradient_error_at_{tau}": (sum(e[i] for e in errors) / sum(e[i + 1] for e in errors)) ** 0.5
                    for tau, i in ((2, 1), (100, 3))
                },
            }
            rows.append(row)
            print(row, flush=True)
    return rows


def by_workers(epochs: int, *, views: int, counts: Sequence[int]) -> list[dict[str, Any]]:
    """Return one row for each number of workers; 1: this process."""
    rows, task = [], runs.task_of(GLYPHS)
    samples = task.samples("train")
    with tempfile.TemporaryDirectory() as scratch:
        wanted = runs.refresh_spec("v0", task=GLYPHS, seed=0, train={"epochs": epochs})
        folder, _ = runs.trained(wanted, folder=Path(scratch) / "v0", task=task)
        old = runs.load(folder)
        for count in counts:
            document = runs.refresh_spec("v1", task=GLYPHS, seed=0, train={"num_workers": count, "batch_size": 120})
            begun = time.perf_counter()
            cache = targets.build(
                old,
                samples,
                views=targets.key_views(samples.ids, seed=0, count=views),
                root=Path(scratch) / f"by-{count}",
                compute=None if count == 1 else _asking_workers(document, folder, old, samples),
            )
            seconds = time.perf_counter() - begun
            size = sum(path.stat().st_size for path in cache.folder.iterdir())
            row = {
                "format": f"all, {views} views",
                "workers": count,
                "classes": len(old.classes),
                "embedding": old.embedding_size,
                "samples": len(samples),
                "bytes_per_sample": round(size / len(samples), 2),
                "seconds": round(seconds, 3),
                "rows_per_second": round(views * len(samples) / seconds),
                "max_error": None,
            }
            rows.append(row)
            print(row, flush=True)
    return rows


def _asking_workers(document: spec.RefreshSpec, folder: Path, old: Predecessor, samples: Samples) -> Compute:
    """From the third block on, however little work it is."""
    ray_outputs.WORTH_IT = -math.inf
    recipe = ray_outputs.Recipe(spec=document, folder=folder, data=samples.digest, mirror=Mirror.NONE)
    return ray_outputs.parallel(recipe, ray_outputs.Here(predecessor=old, samples=samples, views=1))


def _parts(samples: Samples) -> int:
    return max(len(samples) // 2000, 1)


def _errors(
    old: Predecessor, other: Predecessor, samples: Samples, cache: targets.Cache, rows: np.ndarray
) -> tuple[float, ...]:
    """Return the largest error of a probability at 2; squares of the gradient's error and of the gradient at 2 and at
    100."""
    live, cached = old(samples.read(rows)).logits.double(), cache.rows(rows).logits.double()
    pull = other(samples.read(rows)).logits.double()
    error = float((live.div(2).softmax(1) - cached.div(2).softmax(1)).abs().max())
    squares = []
    for temperature in (2, 100):
        exact, kept, new = (logits.div(temperature).softmax(1) for logits in (live, cached, pull))
        squares += [float((exact - kept).square().sum()), float((new - exact).square().sum())]
    return error, *squares


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small caches, nothing written")
    options = parser.parse_args()
    torch.set_num_threads(1)
    start = time.perf_counter()
    rows = measure(*glyphs(1 if options.quick else 4), (None, 8, 16, 32))
    for classes, count in (
        ((100, 1000), (1000, 1000)) if options.quick else ((100, 20_000), (1000, 5000), (1000, 20_000))
    ):
        rows += measure(*drawn(classes, count), (None, 8, 32, 128))
    rows += by_workers(1, views=8, counts=(1, 2))
    if not options.quick:
        print(results.write("chain_cache", rows, seconds=time.perf_counter() - start))


if __name__ == "__main__":
    main()
