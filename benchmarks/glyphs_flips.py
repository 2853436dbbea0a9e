"""Negative flips on glyphs by treatment: weights chosen on validation families, reported on test families.

    python -m benchmarks.glyphs_flips            # 5 seeds x 2 splits, writes benchmarks/results/glyphs_flips.json
    python -m benchmarks.glyphs_flips --quick    # 1 seed, 1 split, prints only

The old version is `xs` on 40 % of the training families, the new one `s2` on all of them. For each treatment and split
the weight (and temperature) is the one with the lowest validation NFR among those whose validation error is at most 0.5
points above the untreated error, over selection seeds that the report never uses; if none qualifies, the one with the
lowest error.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from benchmarks import results, runs

HEAD = {"embedding": 64, "head": "cosine"}
OLD = {"kind": "glyphs", "fonts": 0.4, "network": {"size": "xs", **HEAD}}
NEW = {"kind": "glyphs", "fonts": 1.0, "network": {"size": "s2", **HEAD}}
RECIPE = {"epochs": 6}
ALLOWED_ERROR = 0.5
SEEDS, SELECTION_SEEDS, SPLITS = (0, 1, 2, 3, 4), (100, 101), (0, 1)
TEMPERED = ((100, 0.03), (100, 0.1), (100, 0.3), (2, 0.1), (2, 0.3), (2, 1.0))
"""Temperature and weight of KL terms."""
REFERENCES = ((100, 0.3, 0.1), (100, 1.0, 0.3), (2, 1.0, 0.3), (2, 3.0, 0.3), (2, 3.0, 1.0))
"""Temperature, weight of the reference, weight of the distillation."""


def _kl(temperature: float, weight: float, **options: Any) -> dict[str, Any]:
    low = {"allow_low_temperature": True} if temperature < 20 else {}
    return {"kind": "focal_distillation", "weight": weight, "temperature": temperature, **low, **options}


def _lm(weight: float) -> dict[str, Any]:
    return {"kind": "focal_distillation", "weight": weight, "form": "lm"}


def _influence(weight: float) -> dict[str, Any]:
    return {"kind": "influence", "weight": weight}


def _reference(temperature: float, weight: float, distillation: float) -> dict[str, Any]:
    return {
        "losses": [_kl(temperature, distillation)],
        "reference": {"runs": 3, "weight": weight, "temperature": temperature},
    }


TREATMENTS: Mapping[str, Mapping[str, dict[str, Any]]] = {
    "none": {"0": {}},
    "uniform_distillation": {f"{w:g}@{t}": {"losses": [_kl(t, w, focus="all", beta=0.0)]} for t, w in TEMPERED},
    "focal_kl": {f"{w:g}@{t}": {"losses": [_kl(t, w)]} for t, w in TEMPERED},
    "focal_lm": {f"{w:g}": {"losses": [_lm(w)]} for w in (0.03, 0.1, 0.3)},
    "logit_displacement": {
        f"{w:g}": {"losses": [{"kind": "logit_displacement", "weight": w}]} for w in (0.01, 0.03, 0.1)
    },
    "influence": {f"{w:g}": {"losses": [_influence(w)]} for w in (0.3, 1.0, 3.0)},
    "influence+focal_kl": {f"1+{w:g}@{t}": {"losses": [_influence(1.0), _kl(t, w)]} for t, w in TEMPERED},
    "reference+focal_kl": {f"{nu:g}+{w:g}@{t}": _reference(t, nu, w) for t, nu, w in REFERENCES},
}
"""Treatment -> weights (and temperature after the @), as they are shown -> compatibility section."""


def measure(split: int, seed: int, on: str, plan: Mapping[str, tuple[str, ...]]) -> list[dict[str, Any]]:
    """Train the old version and every planned treatment with one seed; one row each, measured on one split."""
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        old_task, new_task = (runs.task_of({**task, "split": split}) for task in (OLD, NEW))
        spec = runs.refresh_spec("old", task={**OLD, "split": split}, seed=seed, train=RECIPE)
        old, _ = runs.trained(spec, folder=folder / "old", task=old_task)
        for treatment, weights in plan.items():
            for weight in weights:
                name = f"new-{len(rows)}"
                compatibility = TREATMENTS[treatment][weight]
                spec = runs.refresh_spec(
                    name,
                    task={**NEW, "split": split},
                    seed=seed + 10_000,
                    train=RECIPE,
                    compatibility=compatibility,
                )
                new, seconds = runs.trained(spec, folder=folder / name, ancestors=[old], task=new_task)
                found = runs.flips(runs.load(new), runs.load(old), task=new_task, split=on)
                about = {"treatment": treatment, "split": split, "seed": seed, "weight": weight}
                rows.append({**about, **found, "cpu_seconds": seconds})
    return rows


def choose(rows: list[dict[str, Any]], split: int) -> dict[str, tuple[str, ...]]:
    """Pick each treatment's weight from validation rows of one split."""
    mine = [row for row in rows if row["split"] == split]
    untreated = statistics.fmean(row["error"] for row in mine if row["treatment"] == "none")
    chosen = {}
    for treatment, weights in TREATMENTS.items():
        scores = {}
        for weight in weights:
            own = [row for row in mine if row["treatment"] == treatment and row["weight"] == weight]
            scores[weight] = tuple(statistics.fmean(row[key] for row in own) for key in ("error", "nfr"))
        allowed = [weight for weight, (error, _) in scores.items() if error <= untreated + ALLOWED_ERROR]
        best = min(allowed, key=lambda w: scores[w][1]) if allowed else min(scores, key=lambda w: scores[w][0])
        chosen[treatment] = (best,)
    return chosen


def table(rows: list[dict[str, Any]]) -> str:
    """Return the means, and paired differences to `none` with their 95 % t interval over (split, seed)."""
    untreated = {(row["split"], row["seed"]): row for row in rows if row["treatment"] == "none"}
    lines = [
        f"{'treatment':<22}{'error':>8}{'NFR':>7}{'rel':>7}{'d NFR':>16}{'d error':>16}{'NFR fall':>10}{'CPU s':>7}"
    ]
    base = statistics.fmean(row["nfr"] for row in untreated.values())
    for treatment in TREATMENTS:
        own = [row for row in rows if row["treatment"] == treatment]
        mean = {
            key: statistics.fmean(row[key] for row in own) for key in ("error", "nfr", "relative_nfr", "cpu_seconds")
        }
        paired = {
            key: runs.mean_interval([row[key] - untreated[row["split"], row["seed"]][key] for row in own])
            for key in ("nfr", "error")
        }
        fall = 100 * (1 - mean["nfr"] / base)
        lines.append(
            f"{treatment:<22}{mean['error']:8.2f}{mean['nfr']:7.2f}{mean['relative_nfr']:7.1f}"
            f"{paired['nfr'][0]:+9.2f} +-{paired['nfr'][1]:4.2f}{paired['error'][0]:+9.2f} +-{paired['error'][1]:4.2f}"
            f"{fall:9.0f}%{mean['cpu_seconds']:7.1f}"
        )
    return "\n".join(lines)


def main() -> None:
    """Select on validation families, then measure on test families."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, one split, nothing written")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    options = parser.parse_args()
    seeds, selection, splits = (
        (SEEDS[:1], SELECTION_SEEDS[:1], SPLITS[:1]) if options.quick else (SEEDS, SELECTION_SEEDS, SPLITS)
    )
    start = time.perf_counter()
    everything = {treatment: tuple(weights) for treatment, weights in TREATMENTS.items()}
    with multiprocessing.get_context("spawn").Pool(options.workers, maxtasksperchild=1) as pool:
        search = [(split, seed, "validation", everything) for split in splits for seed in selection]
        validation = [row for part in pool.starmap(measure, search, chunksize=1) for row in part]
        plans = {split: choose(validation, split) for split in splits}
        for split, plan in plans.items():
            print(f"split {split}, weights from validation families: { {name: w[0] for name, w in plan.items()} }")
        final = [(split, seed, "test", plans[split]) for split in splits for seed in seeds]
        rows = [row for part in pool.starmap(measure, final, chunksize=1) for row in part]
    print(table(rows))
    if not options.quick:
        print(results.write("glyphs_flips", rows, seconds=time.perf_counter() - start))


if __name__ == "__main__":
    main()
