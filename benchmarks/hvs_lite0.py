"""Small query models on the index of EfficientNet-Lite0 with its ImageNet weights: things that no model was trained on.

    python jobs/lite0/prepare.py; python -m benchmarks.hvs_lite0_data --to FOLDER
    python -m benchmarks.hvs_lite0 --data FOLDER/things.npz --rows /tmp/rows.jsonl     # resumes
    python -m benchmarks.hvs_lite0 --data FOLDER/things.npz --choose                   # how settings were chosen

The gallery model is Lite0 at 64 pixels, 31.5 million multiply-accumulates: its body as it was trained on ImageNet, with
a projection to 128 numbers and a cosine head, trained on 240 things (7,680 pictures). It is one model for all seeds,
which are those of query models. These have 20, 40 and 80 times fewer multiply-accumulates, random weights at the start,
and learn from the same pictures. Treatments, rows and intervals are those of `benchmarks.hvs_pairs`: `best` is the
better of `alone` and the same network with twice the epochs. Queries are snapshots in the design of OpenMoji, the index
is a catalogue in that of Noto; split unseen: 120 things that nobody learned; split seen: 240 that all did. Settings,
and `best`, are chosen by 40 further things. Intervals are of a bootstrap over things.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from benchmarks import hvs_lite0_task, hvs_pairs, runs
from benchmarks.hvs_pairs import Rows, Setting
from benchmarks.hvs_splits import embedded, scores
from graceful.metrics import retrieval
from graceful.tasks.base import Samples

JOBS = Path(__file__).resolve().parents[1] / "jobs"
SEEDS = (0, 1, 2)
SIZE = 128
GALLERY_TRAIN = {"epochs": 2, "batch_size": 64, "optimizer": {"kind": "adamw", "lr": 3.0e-3}}
TRAIN = {"epochs": 18, "batch_size": 128, "optimizer": {"kind": "sgd", "lr": 0.05}}
CHOICES: Mapping[str, dict[str, Any]] = {
    "adamw 3e-3": {"epochs": 6, "optimizer": {"kind": "adamw", "lr": 3.0e-3}},
    "sgd 0.05": {"epochs": 6},
    "sgd 0.05, 18 epochs": {},
}
CHOSEN_WITH = 100
"""Seed of the runs by which settings are chosen."""
BUDGETS: Mapping[str, list[dict[str, Any]]] = {
    name: [{**hvs_pairs.stages(*rows), "embedding": SIZE}]
    for name, rows in {
        "20x": ((16, 3, 1, False), (32, 3, 1, True), (64, 3, 2, True), (96, 3, 2, True)),
        "40x": ((10, 3, 1, False), (24, 3, 1, True), (40, 3, 2, True), (64, 3, 1, True)),
        "80x": ((6, 3, 1, False), (16, 3, 1, True), (32, 3, 1, True), (48, 3, 1, True)),
    }.items()
}


def setting(data: Path, **train: Any) -> Setting:
    """Pictures of things, and how query models learn from them."""
    file = str(Path(__file__).resolve().with_name("hvs_lite0_task.py"))

    def section(network: Mapping[str, Any]) -> dict[str, Any]:
        options = {"data": str(data), "jobs": str(JOBS), **({"network": dict(network)} if network else {})}
        return {"kind": "python", "file": file, "options": options}

    return Setting(data="emoji", section=section, shape=(3, 64, 64), train={**TRAIN, **train}, trusted=section({}))


def splits(data: Path) -> dict[str, dict[str, Samples]]:
    """Query and gallery samples by split; `validation` chooses, the others are reported."""
    task = hvs_lite0_task.task(data=str(data), jobs=str(JOBS))
    kinds = {"unseen": "unseen", "seen": "learned", "validation": "chosen by"}
    return {
        split: {side: task.pictures(f"{kind} {side}") for side in ("query", "gallery")} for split, kind in kinds.items()
    }


def gallery_of(data: Path, home: Path) -> Path:
    """The gallery model; trained once."""
    section = setting(data).section({})
    spec = runs.refresh_spec("gallery", task=section, seed=7, train=GALLERY_TRAIN)
    return runs.trained(spec, folder=home / "gallery", task=runs.task_of(section))[0]


def choose(data: Path, home: Path) -> None:
    """Print what each setting reaches on the things that settings are chosen by, at 40 times fewer multiplications."""
    gallery_folder = gallery_of(data, home)
    sides = {"validation": splits(data)["validation"]}
    gallery = embedded(setting(data).load(gallery_folder), sides)["validation"]
    print("paragon", scores(retrieval.rank(gallery["query"], gallery["gallery"])), flush=True)
    for treatment in ("compatible", "alone"):
        for name, train in CHOICES.items():
            of = setting(data, **train)
            section = of.section(BUDGETS["40x"][0])
            losses = hvs_pairs.TREATMENTS[treatment]
            spec = runs.refresh_spec(
                "choice", task=section, seed=CHOSEN_WITH, train=of.train,
                compatibility={"losses": losses} if losses else {},
            )  # fmt: skip
            folder = home / f"choice-{treatment}-{name.replace(' ', '-').replace(',', '')}"
            made, seconds = runs.trained(spec, folder=folder, ancestors=[gallery_folder], task=runs.task_of(section))
            query = embedded(of.load(made), sides)["validation"]
            found = {
                pair: scores(retrieval.rank(query["query"], index["gallery"]))
                for pair, index in (("q,q", query), ("q,g", gallery))
            }
            print(treatment, name, json.dumps(found), f"{seconds:.0f} CPU seconds", flush=True)


def main() -> None:
    """Measure all seeds in this process and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="things.npz")
    parser.add_argument(
        "--rows", type=Path, required=True, help="rows so far, JSON lines; models lie in a folder beside"
    )
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="how many")
    parser.add_argument("--choose", action="store_true", help="compare settings, measure nothing that is reported")
    options = parser.parse_args()
    begun, home = time.perf_counter(), options.rows.with_suffix("")
    if options.choose:
        choose(options.data, home)
        return
    rows = Rows(options.rows)
    for seed in SEEDS[: options.seeds]:
        gallery = gallery_of(options.data, home)
        data = splits(options.data)
        hvs_pairs.pairs_of(setting(options.data), BUDGETS, gallery, data, seed=seed, rows=rows, home=home)
    print(hvs_pairs.table(rows.rows))
    print(hvs_pairs.write(rows.rows, seconds=time.perf_counter() - begun))


if __name__ == "__main__":
    main()
