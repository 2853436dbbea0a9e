"""Half the flips at no higher error? Negative flips and error by method, at converged length.

    python -m benchmarks.half_flips --home DIR --splits 0-4                # choices may be made on these
    python -m benchmarks.half_flips --home DIR --splits 5-9 --seeds 0-2    # run once, at the end
    python -m benchmarks.half_flips --home DIR --data emoji --seeds 0-2    # the example of jobs/emoji, or glosses
    python -m benchmarks.half_flips --home DIR --write                     # rows -> benchmarks/results/half_flips.json
    python -m benchmarks.half_flips --quick                                # one split, one epoch, prints only

The update is that of `glyphs_flips`: `xs` on 40 % of the training families is replaced by `s2` on all of them; a split
divides the families again. All networks are trained for 18 epochs, which is where the untreated error has converged to
within 0.1 points. `emoji` and `glosses` are the updates of the examples under jobs/, with the epochs of their specs;
they have one split. One process; rows are appended to DIR/rows.jsonl as they are measured, and what is there is not
measured again. Rates are percent of the test split. `compute` is what a method trains beside the old version, in
sample-passes: reference runs and all. Methods:

    untreated               no constraints
    untreated-long          the same with the sample-passes of `blend`: five times the epochs
    distillation            from the old version, temperature 2, weight 1
    distillation-long       the same with five times the epochs
    reference+distillation  the weights that `glyphs_flips` chose: three reference runs of weight 3, old version 1
    blend                   `compatibility.blend` with its defaults: three reference runs, shares chosen before training
    two networks            nothing is trained: probabilities of the untreated and the old version, mixed at serving
                            time with the share that `blend` chose; two networks run for every sample
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from benchmarks import results, runs
from benchmarks.glyphs_flips import NEW, OLD
from graceful import tasks
from graceful.chain import blending, label_map
from graceful.programs.fitting import blend as blends
from graceful.programs.outputs.model_outputs import run_on_split
from graceful.spec import Blend, RefreshSpec, load
from graceful.tasks.base import Task

JOBS = Path(__file__).parents[1] / "jobs"
DATA = ("glyphs", "emoji", "glosses")
INLINE = ("train.num_workers=0", "train.engine={kind: torch}")
EPOCHS, LONG = 18, 5
DISTILLATION = {
    "kind": "focal_distillation",
    "focus": "all",
    "beta": 0.0,
    "temperature": 2.0,
    "allow_low_temperature": True,
    "weight": 1.0,
}
METHODS: Mapping[str, dict[str, Any]] = {
    "untreated": {},
    "untreated-long": {},
    "distillation": {"losses": [DISTILLATION]},
    "distillation-long": {"losses": [DISTILLATION]},
    "reference+distillation": {
        "losses": [DISTILLATION],
        "reference": {"runs": 3, "weight": 3.0, "temperature": 2.0},
    },
    "blend": {"blend": {}},
    "two networks": {},
}
"""Method -> compatibility section of the new version."""


@dataclass(frozen=True, kw_only=True)
class Update:
    """An old version that is replaced by a new one.

    Attributes:
        data: glyphs, or an example under jobs/.
        split: Of glyphs; examples have one.
        quick: Train one epoch.
    """

    data: str
    split: int = 0
    quick: bool = False

    def spec(self, which: str, name: str, *, seed: int, length: int, compatibility: Mapping[str, Any]) -> RefreshSpec:
        """Return the spec of the old (v1) or the new version (v2), trained for `length` times its epochs."""
        if self.data == "glyphs":
            section = {**(OLD if which == "v1" else NEW), "split": self.split}
            train = {"epochs": (1 if self.quick else EPOCHS) * length}
            return runs.refresh_spec(name, task=section, seed=seed, train=train, compatibility=dict(compatibility))
        path = JOBS / self.data / f"{which}.yaml"
        epochs = (1 if self.quick else load(path).train.epochs) * length
        own = (f"name={name}", f"train.seed={seed}", f"train.epochs={epochs}")
        return load(path, [*INLINE, *own, f"compatibility={json.dumps(dict(compatibility))}"])

    def folder(self, method: str, seed: int) -> str:
        """Return the name of the folder of a version."""
        words = [] if self.data == "glyphs" else [self.data]
        return "-".join([*words, method.replace(" ", "-").replace("+", "-"), str(self.split), str(seed)])


def measure(home: Path, update: Update, seed: int, method: str) -> dict[str, Any]:
    """Train a method with one seed and measure it on the test split; one row."""
    old, _ = version(home, update, "v1", "old", seed=seed)
    began = runs.cpu_seconds()
    length = LONG if method.endswith("-long") else 1
    if method == "two networks":
        untreated, task = version(home, update, "v2", "untreated", seed=seed, ancestors=[old])
        found = both(home / update.folder("blend", seed), untreated, old, task)
    else:
        section = METHODS[method]
        new, task = version(home, update, "v2", method, seed=seed, length=length, ancestors=[old], section=section)
        found = runs.flips(runs.load(new), runs.load(old), task=task, split="test")
    row = {"data": update.data, "split": update.split, "seed": seed, "method": method}
    base = update.spec("v2", "passes", seed=0, length=1, compatibility={}).train.epochs
    row |= {"compute": passes(method, base * length, base) * len(task.samples("train")), **found}
    plan = home / update.folder(method, seed) / blends.FILE
    if plan.exists():
        document = json.loads(plan.read_text(encoding="utf-8"))
        row |= {
            "margin": Blend.model_validate(METHODS[method]["blend"]).margin,
            "shares": document["shares"],
            "predicted": document["teacher"],
            "reached": document["reached"],
        }
    return {**row, "cpu_seconds": round(runs.cpu_seconds() - began, 1)}


def passes(method: str, own: int, epochs: int) -> int:
    """Passes over the training data: of the version itself, and of the reference runs that it needs."""
    if "blend" in METHODS[method]:
        section = Blend.model_validate(METHODS[method]["blend"])
        return round(own * section.length) + section.runs * epochs
    return own + METHODS[method].get("reference", {"runs": 0})["runs"] * epochs


def version(
    home: Path,
    update: Update,
    which: str,
    method: str,
    *,
    seed: int,
    length: int = 1,
    ancestors: Sequence[Path] = (),
    section: Mapping[str, Any] | None = None,
) -> tuple[Path, Task]:
    """Return the bundle of a version, trained if it is not there, and its task; the new one has a seed of its own."""
    name, own = update.folder(method, seed), seed if which == "v1" else seed + 10_000
    wanted = update.spec(which, name, seed=own, length=length, compatibility=section or {})
    task = task_of(update, which)
    return runs.trained(wanted, folder=home / name, ancestors=ancestors, task=task)[0], task


@functools.lru_cache(maxsize=2)
def task_of(update: Update, which: str) -> Task:
    """Return a task, whose data the methods of a split share."""
    return tasks.build(update.spec(which, "task", seed=0, length=1, compatibility={}).task)


def both(blend: Path, new: Path, old: Path, task: Task) -> dict[str, float]:
    """Return the error and flips of two networks at once, mixed with the total share that the blend of this split and
    seed chose.

    Raises:
        FileNotFoundError: That blend has not been measured.
    """
    share = sum(json.loads((blend / blends.FILE).read_text(encoding="utf-8"))["shares"].values())
    samples, (first, second) = task.samples("test"), (runs.load(new), runs.load(old))
    logits = [torch.from_numpy(run_on_split(one, samples, 1024).logits) for one in (first, second)]
    known, labels = label_map(first.classes, second.classes), torch.from_numpy(samples.labels)
    reference = blending.tempered(logits[0], 1.0)
    p_old = blending.completed(reference, logits[1], blending.Known.of(known), temperature=1.0)
    right = blending.blended(reference, [p_old], [share]).argmax(1) == labels
    right_old, asked = logits[1].argmax(1) == known[labels], known[labels] >= 0
    flipped = (right_old & ~right)[asked].double().mean()
    return {
        "error": 100 * float(1 - right.double().mean()),
        "old_error": 100 * float(1 - right_old[asked].double().mean()),
        "nfr": 100 * float(flipped),
    }


def unit(row: Mapping[str, Any]) -> int:
    """Return what intervals are over: the split of glyphs, the seed of examples."""
    return int(row["split"] if row["data"] == "glyphs" else row["seed"])


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the means by method, and paired differences to `untreated` with 95 % intervals over splits (means over
    seeds)."""
    untreated = {(row["split"], row["seed"]): row for row in rows if row["method"] == "untreated"}
    lines = [
        f"{'method':<24}{'passes':>8}{'error':>8}{'NFR':>7}{'d error':>16}{'NFR / untreated: median (range)':>34}"
        f"{'error kept':>12}{'fits':>6}"
    ]
    for method in METHODS:
        own = [row for row in rows if row["method"] == method and (row["split"], row["seed"]) in untreated]
        if not own:
            continue
        pairs = [(row, untreated[row["split"], row["seed"]]) for row in own]
        units = [[(r, u) for r, u in pairs if unit(r) == one] for one in sorted({unit(row) for row in own})]
        gaps = [statistics.fmean(r["error"] - u["error"] for r, u in some) for some in units]
        ratios = [
            statistics.fmean(r["nfr"] for r, _ in some) / statistics.fmean(u["nfr"] for _, u in some) for some in units
        ]
        gap, half = runs.mean_interval(gaps)
        passes_ = statistics.fmean(row["compute"] for row in own) / 1e6
        error, nfr = (statistics.fmean(row[key] for row in own) for key in ("error", "nfr"))
        ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        last = f"{sum(one <= 0 for one in gaps)} of {len(gaps)}".rjust(12) + f"{len(own):>6}"
        lines.append(f"{method:<24}{passes_:7.2f}M{error:8.2f}{nfr:7.2f}{gap:+9.2f} +-{half:4.2f}{ratio:>34}{last}")
    return "\n".join(lines)


def numbers(text: str) -> tuple[int, ...]:
    """Read `0-4` or `0,2,5`."""
    first, dash, last = text.partition("-")
    return tuple(range(int(first), int(last) + 1)) if dash else tuple(int(part) for part in text.split(","))


def read(path: Path) -> list[dict[str, Any]]:
    """Read the rows that were measured so far."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def main() -> None:
    """Measure what is missing, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, help="folder that keeps versions and rows; none: thrown away")
    parser.add_argument("--data", choices=DATA, default="glyphs", help="default: %(default)s")
    parser.add_argument("--splits", type=numbers, default=(), help="e.g. 0-4")
    parser.add_argument("--seeds", type=numbers, default=(0,), help="e.g. 0-2 (default: 0)")
    parser.add_argument("--methods", default=",".join(METHODS), help="default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="one split, one epoch, prints only")
    parser.add_argument("--write", action="store_true", help="write all rows to benchmarks/results")
    options = parser.parse_args()
    splits = (0,) if options.quick or options.data != "glyphs" else options.splits
    with tempfile.TemporaryDirectory() as scratch:
        home: Path = (options.home or Path(scratch)).resolve()
        home.mkdir(parents=True, exist_ok=True)
        file = home / "rows.jsonl"
        measured = {(row["data"], row["split"], row["seed"], row["method"]) for row in read(file)}
        for seed, split, method in itertools.product(options.seeds, splits, options.methods.split(",")):
            if (options.data, split, seed, method) in measured:
                continue
            began = time.perf_counter()
            row = measure(home, Update(data=options.data, split=split, quick=options.quick), seed, method)
            row["seconds"] = round(time.perf_counter() - began, 1)
            with file.open("a", encoding="utf-8") as rows_file:
                rows_file.write(json.dumps(row) + "\n")
            print(split, seed, method, f"{row['error']:.2f} {row['nfr']:.3f}", flush=True)
        rows = read(file)
    for data in DATA:
        if own := [row for row in rows if row["data"] == data]:
            print(f"{data}\n{table(own)}")
    if options.write:
        print(results.write("half_flips", rows, seconds=sum(row["seconds"] for row in rows)))


if __name__ == "__main__":
    main()
