"""The examples under jobs/ that have v1 and v2: error, negative flips and retrieval by treatment.

    python jobs/glosses/prepare.py                   # or jobs/packages/prepare.py
    python -m benchmarks.examples glosses            # 3 seeds, writes benchmarks/results/example_glosses.json
    python -m benchmarks.examples glosses --quick    # 1 seed without choosing weights, prints only

Versions and rows stay in a folder (--folder), so that a run that was interrupted goes on where it was. Delete the
folder to measure again.

v1 is trained as its spec says; v2 with each treatment in place of its spec's losses. The weight of a treatment is the
one with the lowest negative flip rate on the validation split among those whose validation error is at most 0.5 points
above the untreated one, or else the one with the lowest error, with a seed that the report never uses. Everything is
reported on the test split. Retrieval, where the spec has it, ranks the test split against itself without the query;
cross-test: queries of v2, gallery of v1. CPU seconds are those of training with the outputs of predecessors that it
needed.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import os
import shutil
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from benchmarks import results, runs
from graceful import spec, tasks
from graceful.chain import Predecessor
from graceful.metrics import retrieval
from graceful.metrics.compatibility import compare_retrieval
from graceful.programs.outputs.model_outputs import run_on_split
from graceful.tasks.base import Split, Task

JOBS = Path(__file__).parents[1] / "jobs"
SEEDS, SELECTION_SEED = (0, 1, 2), 100
ALLOWED_ERROR = 0.5
INLINE = ("train.num_workers=0", "train.engine={kind: torch}")
SEARCHES = ("self_test", "cross_test", "old_old")
INFLUENCE = {"kind": "influence", "weight": 1.0}


def _distillation(weight: float) -> dict[str, Any]:
    return {
        "kind": "focal_distillation",
        "focus": "all",
        "beta": 0.0,
        "temperature": 2.0,
        "allow_low_temperature": True,
        "weight": weight,
    }


TREATMENTS: Mapping[str, Mapping[str, list[dict[str, Any]]]] = {
    "untreated": {"-": []},
    "distillation": {f"{w:g}": [_distillation(w)] for w in (0.3, 1.0, 3.0)},
    "BCT": {"1": [INFLUENCE]},
    "BCT + distillation": {f"1 + {w:g}": [INFLUENCE, _distillation(w)] for w in (1.0, 3.0)},
}
"""Treatment -> weights, as they are shown -> losses of v2."""

Plan = Mapping[str, tuple[str, ...]]
"""Treatment -> the weights to train with."""


def trained_once(wanted: spec.RefreshSpec, folder: Path, ancestors: Sequence[Path] = ()) -> tuple[Path, float]:
    """Train a version, or return the one that an earlier call left in the folder: its bundle and its CPU seconds."""
    done = folder / "done.json"
    if not done.exists():
        shutil.rmtree(folder, ignore_errors=True)
        bundle, seconds = runs.trained(wanted, folder=folder, ancestors=ancestors, task=tasks.build(wanted.task))
        done.write_text(json.dumps([str(bundle), seconds]), encoding="utf-8")
    bundle, seconds = json.loads(done.read_text(encoding="utf-8"))
    return Path(bundle), float(seconds)


def first_version(example: str, seed: int, folder: Path) -> tuple[Path, float]:
    """Train v1 with one seed."""
    wanted = spec.load(JOBS / example / "v1.yaml", [*INLINE, f"train.seed={seed}"])
    return trained_once(wanted, folder / f"v1-{seed}")


def measure(example: str, folder: Path, *case: Any) -> dict[str, Any]:
    """Train v2 against v1 of a seed, and measure it on one split; a case is (seed, split, treatment, weight)."""
    seed, split, treatment, weight = case
    old_folder, old_seconds = first_version(example, seed, folder)
    losses = f"compatibility.losses={TREATMENTS[treatment][weight]}"
    wanted = spec.load(JOBS / example / "v2.yaml", [*INLINE, f"train.seed={seed + 10_000}", losses])
    label = f"v2-{seed}-{treatment}-{weight}".replace(" ", "")
    new_folder, seconds = trained_once(wanted, folder / label, [old_folder])
    measured = folder / f"{label}-{split}.json"
    if not measured.exists():
        task, new, old = tasks.build(wanted.task), runs.load(new_folder), runs.load(old_folder)
        row = {"example": example, "treatment": treatment, "weight": weight, "seed": seed, "split": split}
        flips = runs.flips(new, old, task=task, split=split)
        cpu_seconds = {"cpu_seconds": seconds, "v1_cpu_seconds": old_seconds}
        found = searched(new, old, task, split) if wanted.evaluate.retrieval else {}
        measured.write_text(json.dumps({**row, **flips, **found, **cpu_seconds}), encoding="utf-8")
        print(f"{treatment} {weight}, seed {seed}: {split} error {flips['error']:.2f} %", flush=True)
    return dict(json.loads(measured.read_text(encoding="utf-8")))


def searched(new: Predecessor, old: Predecessor, task: Task, split: Split) -> dict[str, float]:
    """Return the recall at 1 in percent: v2 in its own gallery, v2's queries in v1's gallery, v1 in its own."""
    samples = task.samples(split)
    embeddings = [
        retrieval.Embeddings(
            ids=samples.ids,
            labels=np.asarray(samples.classes)[samples.labels],
            vectors=run_on_split(version, samples, 256).embeddings,
            groups=samples.groups,
        )
        for version in (new, old)
    ]
    measured = {
        **retrieval.self_test(embeddings[0], embeddings[0], draws=20),
        **compare_retrieval(embeddings[0], embeddings[0], embeddings[1], embeddings[1], draws=20),
    }
    names = {
        "self_test": "self_test_recall_at_1",
        "cross_test": "cross_test_recall_at_1",
        "old_old": "old_old_recall_at_1",
    }
    return {short: 100 * float(measured[name].value or 0.0) for short, name in names.items()}


def choose(rows: list[dict[str, Any]]) -> dict[str, tuple[str, ...]]:
    """Pick each treatment's weight from its rows of the validation split."""
    (untreated,) = (row["error"] for row in rows if row["treatment"] == "untreated")
    chosen = {}
    for treatment in TREATMENTS:
        own = [row for row in rows if row["treatment"] == treatment]
        allowed = [row for row in own if row["error"] <= untreated + ALLOWED_ERROR]
        best = min(allowed, key=lambda row: row["nfr"]) if allowed else min(own, key=lambda row: row["error"])
        chosen[treatment] = (best["weight"],)
    return chosen


def table(rows: list[dict[str, Any]]) -> str:
    """Return the means over seeds, and paired differences to the untreated v2 with their 95 % t interval."""
    untreated = {row["seed"]: row for row in rows if row["treatment"] == "untreated"}
    lines = [
        f"v1: error {statistics.fmean(row['old_error'] for row in rows):.2f} %,"
        f" {statistics.fmean(row['v1_cpu_seconds'] for row in rows) / 60:.1f} CPU minutes",
        f"{'treatment':<20}{'weight':>8}{'error':>8}{'NFR':>7}{'d error':>16}{'d NFR':>16}{'CPU min':>9}"
        f"{'self R@1':>9}{'cross':>9}{'old/old':>9}",
    ]
    for treatment in TREATMENTS:
        own = [row for row in rows if row["treatment"] == treatment]
        if not own:
            continue
        mean = {key: statistics.fmean(row[key] for row in own) for key in ("error", "nfr", "cpu_seconds")}
        searches = "".join(f"{statistics.fmean(row[key] for row in own):9.1f}" for key in SEARCHES if key in own[0])
        error, nfr = (
            runs.mean_interval([row[key] - untreated[row["seed"]][key] for row in own]) for key in ("error", "nfr")
        )
        lines.append(
            f"{treatment:<20}{own[0]['weight']:>8}{mean['error']:8.2f}{mean['nfr']:7.2f}"
            f"{error[0]:+9.2f} +-{error[1]:4.2f}{nfr[0]:+9.2f} +-{nfr[1]:4.2f}"
            f"{mean['cpu_seconds'] / 60:9.2f}{searches}"
        )
    return "\n".join(lines)


def measure_all(
    example: str, folder: Path, *, seeds: Sequence[int], split: Split, plan: Plan, workers: int
) -> list[dict[str, Any]]:
    """Measure every seed, treatment and weight of a plan, in several processes; v1 of each seed is trained first."""
    cases = [(seed, split, treatment, weight) for seed in seeds for treatment in plan for weight in plan[treatment]]
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        pool.starmap(first_version, [(example, seed, folder) for seed in seeds], chunksize=1)
        return pool.starmap(measure, [(example, folder, *case) for case in cases], chunksize=1)


def main() -> None:
    """Choose weights on the validation split, then measure on the test split."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("example", choices=sorted(path.parent.name for path in JOBS.glob("*/v2.yaml")))
    parser.add_argument("--quick", action="store_true", help="one seed, first weights, nothing written")
    parser.add_argument("--workers", type=int, default=2, help="processes (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="where versions and rows stay (default: build/example-EXAMPLE)")
    options = parser.parse_args()
    started = time.monotonic()
    folder = (options.folder or Path("build") / f"example-{options.example}").resolve()
    measure_plan = functools.partial(measure_all, options.example, folder, workers=options.workers)
    every: Plan = {treatment: tuple(weights) for treatment, weights in TREATMENTS.items()}
    if options.quick:
        first = {treatment: weights[:1] for treatment, weights in every.items()}
        print(table(measure_plan(seeds=SEEDS[:1], split="test", plan=first)))
        return
    selection = measure_plan(seeds=[SELECTION_SEED], split="validation", plan=every)
    plan = choose(selection)
    print("chosen on the validation split:", plan, flush=True)
    rows = measure_plan(seeds=SEEDS, split="test", plan=plan)
    print(table(rows))
    print(results.write(f"example_{options.example}", selection + rows, time.monotonic() - started))


if __name__ == "__main__":
    main()
