"""Can new queries search old galleries? Retrieval of unseen characters on glyphs, by compatibility treatment.

    python -m benchmarks.glyphs_retrieval           # 5 seeds, writes benchmarks/results/glyphs_retrieval.json
    python -m benchmarks.glyphs_retrieval --quick   # 1 seed, prints only

The old version knows 55 characters from 40 % of the training families, the new one all 110 from all of them; queries
and galleries show characters that neither was trained on, in disjoint test typefaces. Weights are the spec's defaults.
Treatments that begin with `head` start at the head of the old version (`train.start: head`): its rows of the 55
characters that both know, in a network of another size and seed.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from benchmarks import results, runs
from graceful.chain import Predecessor
from graceful.metrics import retrieval
from graceful.metrics.compatibility import compare_retrieval
from graceful.programs.outputs.model_outputs import run_on_split
from graceful.tasks.base import Split, Task

HEAD = {"embedding": 32, "head": "cosine", "scale": 16.0}
OLD = {"kind": "glyphs", "characters": "all", "classes": 55, "fonts": 0.4, "network": {"size": "xs", **HEAD}}
NEW = {"kind": "glyphs", "characters": "all", "network": {"size": "s2", **HEAD}}
SEEDS = (0, 1, 2, 3, 4)
INFLUENCE = {"kind": "influence", "weight": 1.0}
REGRESSION = {"kind": "embedding_regression", "weight": 5.0}
TREATMENTS: dict[str, dict[str, Any]] = {
    "none": {},
    "influence": {"losses": [{**INFLUENCE, "prototypes": False}]},
    "influence+prototypes": {"losses": [INFLUENCE]},
    "regression": {"losses": [REGRESSION]},
    "influence+prototypes+regression": {"losses": [INFLUENCE, REGRESSION]},
}
TREATMENTS |= {"head": {}, **{f"head+{name}": section for name, section in TREATMENTS.items() if name != "none"}}


def measure(seed: int) -> list[dict[str, Any]]:
    """Train the old version and each treatment with one seed; one row each."""
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        old_task, new_task = runs.task_of(OLD), runs.task_of(NEW)
        spec = runs.refresh_spec("old", task=OLD, seed=seed)
        old_folder, _ = runs.trained(spec, folder=folder / "old", task=old_task)
        old = embeddings(runs.load(old_folder), new_task)
        paragon = math.nan
        for treatment, compatibility in TREATMENTS.items():
            name = f"new-{len(rows)}"
            train = {"start": "head"} if treatment.startswith("head") else {}
            spec = runs.refresh_spec(name, task=NEW, seed=seed + 10_000, train=train, compatibility=compatibility)
            new_folder, _ = runs.trained(spec, folder=folder / name, ancestors=[old_folder], task=new_task)
            new = embeddings(runs.load(new_folder), new_task)
            self_test = retrieval.self_test(new["query"], new["gallery"], draws=100)
            cross = compare_retrieval(new["query"], new["gallery"], old["query"], old["gallery"], draws=100)
            value = {key: 100 * float(found.value or 0.0) for key, found in {**self_test, **cross}.items()}
            if treatment == "none":
                paragon = value["self_test_recall_at_1"]
            gain = value["cross_test_recall_at_1"] - value["old_old_recall_at_1"]
            rows.append(
                {
                    "treatment": treatment,
                    "seed": seed,
                    "self_test": value["self_test_recall_at_1"],
                    "cross_test": value["cross_test_recall_at_1"],
                    "old_old": value["old_old_recall_at_1"],
                    "map_self_test": value["self_test_map"],
                    "map_cross_test": value["cross_test_map"],
                    "map_old_old": value["old_old_map"],
                    "update_gain": gain / (paragon - value["old_old_recall_at_1"]),
                }
            )
    return rows


def embeddings(
    version: Predecessor, task: Task, splits: Sequence[Split] = ("query", "gallery")
) -> dict[str, retrieval.Embeddings]:
    """Query and gallery embeddings of one version, or those of other splits."""
    found = {}
    for split in splits:
        samples = task.samples(split)
        found[split] = retrieval.Embeddings(
            ids=samples.ids,
            labels=np.asarray(samples.classes)[samples.labels],
            vectors=run_on_split(version, samples, 2048).embeddings,
            groups=samples.groups,
        )
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """Return the means over seeds; cross minus old/old with its 95 % t interval, and in how many seeds it is above
    0."""
    lines = [
        f"{'treatment':<38}{'self R@1':>9}{'cross R@1':>10}{'old/old':>9}{'cross - old/old':>18}{'met':>5}"
        f"{'mAP self':>10}{'cross':>7}{'old/old':>9}{'cross - old/old':>18}{'met':>5}{'gain':>7}"
    ]
    for treatment in TREATMENTS:
        own = [row for row in rows if row["treatment"] == treatment]
        mean = {key: statistics.fmean(row[key] for row in own) for key in own[0] if key not in ("treatment", "seed")}
        parts = [f"{treatment:<38}"]
        for prefix, wide in (("", 0), ("map_", 1)):
            differences = [row[f"{prefix}cross_test"] - row[f"{prefix}old_old"] for row in own]
            middle, half = runs.mean_interval(differences)
            parts.append(f"{mean[f'{prefix}self_test']:{9 + wide}.1f}{mean[f'{prefix}cross_test']:{10 - 3 * wide}.1f}")
            parts.append(f"{mean[f'{prefix}old_old']:9.1f}{middle:+11.2f} +-{half:4.2f}")
            parts.append(f"{sum(difference > 0 for difference in differences):3d}/{len(own)}")
        lines.append("".join(parts) + f"{mean['update_gain']:7.2f}")
    return "\n".join(lines)


def main() -> None:
    """Measure all seeds in parallel processes and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, nothing written")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    options = parser.parse_args()
    start = time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(options.workers, maxtasksperchild=1) as pool:
        parts = pool.map(measure, SEEDS[:1] if options.quick else SEEDS, chunksize=1)
    rows = [row for part in parts for row in part]
    print(table(rows))
    if not options.quick:
        print(results.write("glyphs_retrieval", rows, seconds=time.perf_counter() - start))


if __name__ == "__main__":
    main()
