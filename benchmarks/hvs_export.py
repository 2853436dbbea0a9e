"""What files of a query model and of its gallery model cost and lose: fp32 and int8 ONNX, PT2, and the network itself.

    python -m benchmarks.hvs_export            # seed 0, writes benchmarks/results/hvs_export.json

Models and data are those of `benchmarks.hvs_pairs` (--home reuses what that trained). mAP and R@1 are of queries by the
file on the index of the gallery model's network, over the 45 unseen characters; for the gallery model itself on its
own index. `difference` is the mAP minus that of the network, paired by query, with its 95 % interval over typefaces.
Latency is of one sample on one core, 500 calls; on a machine that others use, its p95 says more about them than about
the file.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from benchmarks import results, runs
from benchmarks.hvs_pairs import BUDGETS, EPOCHS, GALLERY, TREATMENTS
from benchmarks.hvs_splits import embedded, scores, splits
from graceful.chain import Predecessor
from graceful.metrics import retrieval
from graceful.metrics.intervals import Evidence, paired_difference
from graceful.models import cost
from graceful.programs.exporting import files
from graceful.tasks.base import Task

FORMATS: tuple[tuple[files.Format, bool], ...] = (("onnx", False), ("onnx", True), ("pt2", False))
SEED = 0


def trained(home: Path, budget: str | None) -> tuple[Predecessor, Task]:
    """Return the gallery model, or the compatible query model of a budget, as `hvs_pairs` trains them."""
    base: dict[str, Any] = {"kind": "glyphs", "characters": "all"}
    train = {"epochs": EPOCHS, "batch_size": 128}
    section = {**base, "network": GALLERY}
    spec = runs.refresh_spec("gallery", task=section, seed=SEED, train=train)
    task = runs.task_of(section)
    folder, _ = runs.trained(spec, folder=home / f"gallery-{SEED}", task=task)
    if budget is None:
        return runs.load(folder), task
    section = {**base, "network": BUDGETS[budget][0]}
    compatibility = {"losses": TREATMENTS["compatible"]}
    spec = runs.refresh_spec(
        f"compatible-{budget}", task=section, seed=SEED + 1000, train=train, compatibility=compatibility
    )
    task = runs.task_of(section)
    found, _ = runs.trained(spec, folder=home / f"compatible-{budget}-{SEED}", ancestors=[folder], task=task)
    return runs.load(found), task


def measure(name: str, version: Predecessor, task: Task, index: retrieval.Embeddings) -> list[dict[str, Any]]:
    """Return one row for the network and one for each file."""
    data = {"unseen": {"query": splits(task)["unseen"]["query"]}}
    train, test = task.samples("train"), task.samples("test")
    batches = [version.learner.collate(train.read(np.arange(at, at + 32)), None) for at in range(0, 256, 32)]
    single = version.learner.collate(test.read(np.zeros(1, dtype=np.int64)), None)
    arrays = {path: tensor.numpy() for path, tensor in files.named(single).items()}
    before = retrieval.rank(embedded(version, data)["unseen"]["query"], index)
    with torch.no_grad():
        spent = cost.latency(lambda: version.network.embed(single), calls=500)
    row = {"model": name, "macs": cost.macs(version.network.embed, single), "seed": SEED}
    size = sum(tensor.numel() * tensor.element_size() for tensor in version.network.state_dict().values())
    rows = [{**row, "format": "torch", "bytes": size, "p50_ms": spent.p50_ms, "p95_ms": spent.p95_ms, **scores(before)}]
    module = files.Inference(version.network, version.learner, tuple(files.named(batches[0])))
    with tempfile.TemporaryDirectory() as scratch:
        for form, int8 in FORMATS:
            plain = path = Path(scratch) / f"{name}.{form}"
            files.write(plain, module, batches[0], form=form, provenance={"version_digest": version.digest})
            if int8:
                path = plain.with_suffix(".int8.onnx")
                files.quantise(plain, path, batches)
            runner, _ = files.opened(path, form)
            spent = cost.latency(lambda run=runner: run(arrays), calls=500)  # type: ignore[misc]
            learner: Any = files.FileLearner(version.learner, runner)
            after = retrieval.rank(embedded(replace(version, learner=learner), data)["unseen"]["query"], index)
            judged = after.judged
            assert after.groups is not None
            lost = paired_difference(
                after.average_precision[judged],
                before.average_precision[judged],
                Evidence.of(after.groups[judged], draws=1000, seed=0),
            )
            measured = {"bytes": path.stat().st_size, "p50_ms": spent.p50_ms, "p95_ms": spent.p95_ms, **scores(after)}
            differs = {"difference": lost.value, "lower": lost.lower, "upper": lost.upper}
            rows.append({**row, "format": f"{form}{'-int8' if int8 else ''}", **measured, **differs})
    return rows


def main() -> None:
    """Measure in this process and print the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, help="models of hvs_pairs, its --rows without the suffix")
    parser.add_argument("--budgets", default=",".join(BUDGETS), help="query models, separated by commas")
    options = parser.parse_args()
    begun, rows = time.perf_counter(), list[dict[str, Any]]()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        home = options.home or Path(scratch)
        gallery, task = trained(home, None)
        index = embedded(gallery, {"unseen": splits(task)["unseen"]})["unseen"]["gallery"]
        rows += measure("gallery", gallery, task, index)
        for budget in options.budgets.split(","):
            version, task = trained(home, budget)
            rows += measure(f"query-{budget}", version, task, index)
    for row in rows:
        print({key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()})
    print(results.write("hvs_export", rows, seconds=time.perf_counter() - begun))


if __name__ == "__main__":
    main()
