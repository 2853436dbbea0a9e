"""Search of query models: evolution against random search at equal evaluations, shared against own weights.

    python -m benchmarks.hvs_search --rows /tmp/rows.jsonl     # resumes; minutes of one core for each seed
    python -m benchmarks.hvs_search --quick                    # one seed, tiny, nothing written

glyphs: the gallery model is that of `benchmarks.hvs_pairs` (4.2 million multiply-accumulates, all typefaces). Query
models learn from a fifth of the training typefaces. The supernet has 4,096 networks of three stages; each search may
measure EVALUATIONS of them within a budget, by shared weights, on validation typefaces of characters that the supernet
was not trained on. The winners, networks drawn at random and one written by hand are then trained from scratch and
measured on the 45 unseen characters in test typefaces, which nothing chose by.

Pruning: WHOLE, three times as wide as the network by hand, is trained, its channels are ordered, and the network and
both budgets are trained together, in PASSES epochs each (chosen on validation with seed 0), whose multiply-accumulates
are no more than those of the supernet and two winners that use their budgets. `weights` nested: `map` is that of the
capacity as pruning leaves it, trained no further; `project` says whether gradients in conflict were projected. `method`
pruned, `weights` own: the same network trained from scratch like the winners. `cost`: multiply-accumulates of all
forward passes in training, a backward pass being twice as much everywhere; of pruning for both budgets together.

Rows: `weights` shared: `map` is what the search saw, `regret` the distance from the best that any search of this seed
and budget saw. `weights` own: `map` is that of the network trained from scratch on the gallery model's index, `regret`
the distance from the best network trained in this seed within the budget. `method` spearman: rank correlation of the
two over the networks drawn at random, winners left out, because they were selected by one of the two.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from benchmarks import results, runs
from benchmarks.hvs_pairs import GALLERY, REGRESSION, Rows, stages
from benchmarks.hvs_splits import scores
from graceful import tasks
from graceful.architectures import costs
from graceful.architectures.space import Space, digest_of, network_of, path_of
from graceful.chain import Predecessor
from graceful.chain.ancestor import Ancestor, Link
from graceful.metrics import retrieval
from graceful.programs.architectures import program, pruning
from graceful.programs.fitting.train import train
from graceful.programs.outputs.model_outputs import embeddings_of, run_on_split
from graceful.programs.runs.run import Run
from graceful.spec import load
from graceful.spec.architectures import ArchitectureSpace
from graceful.spec.stages import StagedNetwork
from graceful.tasks.base import Samples

SEEDS = (0, 1, 2)
BUDGETS = (60_000, 120_000)
EVALUATIONS, DRAWN = 40, 6
LOSSES = [{"kind": "influence", "weight": 1.0}, REGRESSION]
BY_HAND = stages((8, 3, 1, False), (16, 3, 1, True), (24, 3, 1, True))
SPACE: dict[str, Any] = {
    "resolution": [None, 20],
    "stages": [
        {"width": [4, 6, 8, 12], "kernel": [3, 5], "depthwise": [False]},
        {"width": [8, 12, 16, 24], "kernel": [3, 5]},
        {"width": [12, 16, 24, 32], "kernel": [3], "depth": [1, 2]},
    ],
}
SHAPE = (1, 28, 28)
WHOLE = stages((24, 3, 1, False), (48, 3, 1, True), (72, 3, 1, True))
PASSES = {"epochs": 1, "together": 3}
TASK = {"kind": "glyphs", "characters": "all", "fonts": 0.2}
TRAIN, SHARED_EPOCHS = {"epochs": 4, "batch_size": 128}, 8
EVOLUTION = {"population": 10, "parents": 5, "recalibration": 8, "images": 1600}


def gallery_of(seed: int, home: Path, *, epochs: int) -> Path:
    """Return the gallery model of hvs_pairs; trained once."""
    task = {"kind": "glyphs", "characters": "all", "network": GALLERY}
    spec = runs.refresh_spec("gallery", task=task, seed=seed, train={"epochs": epochs, "batch_size": 128})
    return runs.trained(spec, folder=home / f"gallery-{seed}", task=runs.task_of(task))[0]


def search_of(seed: int, gallery: Path, home: Path, **section: Any) -> tuple[Run, list[Ancestor]]:
    """Return the search of a seed: supernet and evaluations are shared by all budgets and methods."""
    spec = runs.refresh_spec(
        "search",
        task={**TASK, "network": BY_HAND},
        seed=seed + 1000,
        train=TRAIN,
        gallery={"version": "gallery@champion"},
        architectures={"space": SPACE, "epochs": SHARED_EPOCHS, **EVOLUTION, **section},
    )
    run = Run.of(spec, home=home, folder=home / f"search-{seed}")
    link = Link(name="gallery", model_id="gallery", version=1, digest="", role="gallery")
    return run, [Ancestor(stored=run.version(gallery), link=link)]


def pruning_of(seed: int, gallery: Path, home: Path, *, project: bool) -> tuple[Run, list[Ancestor]]:
    """Return the pruning of a seed, to both budgets."""
    whole = macs_of(path_of(StagedNetwork.model_validate(WHOLE)))
    capacities = [budget / whole for budget in sorted(BUDGETS, reverse=True)]
    _, ancestors = search_of(seed, gallery, home)
    section = {"pruning": {"capacities": capacities, "project": project}, "epochs": PASSES["together"]}
    spec = runs.refresh_spec(
        "prune",
        task={**TASK, "network": WHOLE},
        seed=seed + 1000,
        train={**TRAIN, "epochs": PASSES["epochs"]},
        gallery={"version": "gallery@champion"},
        architectures={**section, "images": EVOLUTION["images"], "recalibration": EVOLUTION["recalibration"]},
    )
    return Run.of(spec, home=home, folder=home / f"prune-{seed}-{'projected' if project else 'added'}"), ancestors


def prune(seed: int, gallery: Path, home: Path, *, project: bool) -> list[dict[str, Any]]:
    """Return both budgets of a pruned network as versions, measured on unseen characters; nothing chooses by these
    rows."""
    run, ancestors = pruning_of(seed, gallery, home, project=project)
    found = pruning.conclude(run, ancestors=ancestors)
    samples = len(runs.task_of({**TASK, "network": WHOLE}).samples("train"))
    together = sum(row["macs"] for row in found["front"])
    cost = samples * (PASSES["epochs"] * found["front"][-1]["macs"] + PASSES["together"] * together)
    rows = []
    for row, budget in zip(found["front"], [*sorted(BUDGETS), None], strict=True):
        wanted = load(run.folder / row["spec"])
        task = tasks.build(wanted.task)
        made = train(Run.of(wanted, home=home, folder=run.folder / f"version-{budget}"), ancestors=ancestors, task=task)
        data = {side: task.samples(side) for side in ("query", "gallery")}  # type: ignore[arg-type]
        measured = on_unseen(runs.load(made.folder), runs.load(gallery), data)
        facts = {"path": digest_of(row["path"]), "macs": row["macs"], "network": row["path"], "cost": cost}
        facts |= {"validation_map": row["small_on_big_map"], "project": project}
        rows.append({"budget": budget, "method": "pruning", "weights": "nested", **facts, **measured})
    return rows


def macs_of(path: Mapping[str, Any]) -> int:
    """Return the multiply-accumulates of a path."""
    return costs.of(network_of(path, StagedNetwork.model_validate(BY_HAND)), SHAPE).macs


def on_unseen(version: Predecessor, index: Predecessor, data: Mapping[str, Samples]) -> dict[str, float]:
    """mAP and R@1 of the query model on the gallery model's index."""
    queries = embeddings_of(data["query"], run_on_split(version, data["query"], 2048))
    gallery = embeddings_of(data["gallery"], run_on_split(index, data["gallery"], 2048))
    return scores(retrieval.rank(queries, gallery))


def own_weights(seed: int, path: Mapping[str, Any], gallery: Path, home: Path, *, rows: Rows) -> dict[str, float]:
    """Return the scores of a path that is trained from scratch, from the rows if they know it."""
    digest = digest_of(dict(path))
    known = rows.find(seed=seed, path=digest, weights="own")
    if known:
        return {key: known[0][key] for key in ("map", "recall_at_1")}
    like = StagedNetwork.model_validate(BY_HAND)
    section = {**TASK, "network": network_of(path, like).model_dump(mode="json")}
    spec = runs.refresh_spec(
        f"own-{digest}", task=section, seed=seed + 1000, train=TRAIN, compatibility={"losses": LOSSES}
    )
    task = runs.task_of(section)
    folder, _ = runs.trained(spec, folder=home / f"own-{digest}-{seed}", ancestors=[gallery], task=task)
    data = {side: task.samples(side) for side in ("query", "gallery")}  # type: ignore[arg-type]
    return on_unseen(runs.load(folder), runs.load(gallery), data)


def one_seed(seed: int, rows: Rows, home: Path, *, evaluations: int, drawn: int, epochs: int) -> None:
    """Everything of one seed that is not measured yet."""
    gallery = gallery_of(seed, home, epochs=epochs)
    like = StagedNetwork.model_validate(BY_HAND)

    def add(path: Mapping[str, Any], row: dict[str, Any]) -> None:
        add_all([{**row, "path": digest_of(dict(path)), "macs": macs_of(path)}])

    def add_all(found: list[dict[str, Any]]) -> None:
        rows.add([{"data": "glyphs", "seed": seed, **row} for row in found])
        print("\n".join(map(json.dumps, rows.rows[-len(found) :])), flush=True)

    winners = {}
    for budget in BUDGETS:
        for method in ("evolution", "random"):
            key = {"seed": seed, "method": method, "budget": budget, "weights": "shared"}
            run, ancestors = search_of(
                seed, gallery, home, budget={"macs": budget}, method=method, evaluations=evaluations
            )
            found = program.conclude(run, ancestors=ancestors)
            winners[budget, method] = found["best"]["path"]
            if not rows.find(**key):
                add(found["best"]["path"], {**key, "evaluations": found["evaluations"], "map": found["best"]["reward"]})
    for (budget, method), path in winners.items():
        key = {"seed": seed, "method": method, "budget": budget, "weights": "own"}
        if not rows.find(**key):
            measured = own_weights(seed, path, gallery, home, rows=rows)
            add(path, {**key, "evaluations": evaluations, **measured})
    run, ancestors = search_of(seed, gallery, home)
    for number, path in enumerate([path_of(like), *drawn_paths(seed, drawn)]):
        key = {"seed": seed, "method": "drawn" if number else "by hand", "weights": "own", "number": number}
        if not rows.find(**key):
            shared = program.score(run, [network_of(path, like)], ancestors=ancestors)[0].reward("small_on_big")
            add(path, {**key, **own_weights(seed, path, gallery, home, rows=rows), "shared_map": shared})
    for project in (True, False):
        if not rows.find(seed=seed, method="pruning", project=project):
            add_all(prune(seed, gallery, home, project=project))
    for row in rows.find(seed=seed, method="pruning", project=True):
        key = {"seed": seed, "method": "pruned", "budget": row["budget"], "weights": "own"}
        if row["budget"] and not rows.find(**key):
            add(row["network"], {**key, **own_weights(seed, row["network"], gallery, home, rows=rows)})


def drawn_paths(seed: int, count: int) -> list[dict[str, Any]]:
    """Networks of the space at random, the same for every run of a seed."""
    space, generator = Space(ArchitectureSpace.model_validate(SPACE)), Random(seed)
    return [space.path(space.random(generator)) for _ in range(count)]


def finished(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows with regrets, and the rank correlation of each seed."""
    found = []
    for row in rows:
        budget = row.get("budget")
        if budget is None:
            found.append(row)
            continue
        weights = "own" if row["weights"] == "nested" else row["weights"]
        same = [other for other in rows if other["seed"] == row["seed"] and other["weights"] == weights]
        best = max(other["map"] for other in same if other["macs"] <= budget)
        found.append({**row, "regret": best - row["map"]})
    for seed in sorted({row["seed"] for row in rows}):
        drawn = [row for row in rows if row["seed"] == seed and row["method"] == "drawn"]
        if len(drawn) > 2:
            ranks = [np.argsort(np.argsort([row[key] for row in drawn])) for key in ("map", "shared_map")]
            value = float(np.corrcoef(ranks)[0, 1])
            found.append({"data": "glyphs", "method": "spearman", "seed": seed, "networks": len(drawn), "value": value})
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """Return one line for each row that has a regret or a correlation."""
    lines = []
    for row in rows:
        if "regret" in row:
            lines.append(
                f"seed {row['seed']}  {row['budget']:>8,} MACs  {row['weights']:<7}{row['method']:<10}"
                f" mAP {row['map']:.4f}  regret {row['regret']:.4f}"
            )
        elif row["method"] == "spearman":
            lines.append(
                f"seed {row['seed']}  Spearman of shared and own weights {row['value']:.2f}, n={row['networks']}"
            )
        else:
            lines.append(f"seed {row['seed']}  {row['macs']:>8,} MACs  {row['method']:<10} mAP {row['map']:.4f}")
    return "\n".join(lines)


def main() -> None:
    """Measure all seeds in this process and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, few evaluations, nothing written")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="how many")
    parser.add_argument("--rows", type=Path, help="rows so far, JSON lines; models lie in a folder beside it")
    parser.add_argument("--table", action="store_true", help="measure nothing more: write the rows that are there")
    options = parser.parse_args()
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        rows = Rows(options.rows)
        home = Path(scratch) if options.rows is None else options.rows.with_suffix("")
        for seed in SEEDS[: 0 if options.table else 1 if options.quick else options.seeds]:
            few = {"evaluations": 4, "drawn": 2, "epochs": 1}
            one_seed(
                seed,
                rows,
                home,
                **(few if options.quick else {"evaluations": EVALUATIONS, "drawn": DRAWN, "epochs": 3}),
            )
    complete = finished(rows.rows)
    print(table(complete))
    if not options.quick:
        print(results.write("hvs_search", complete, seconds=time.perf_counter() - begun))


if __name__ == "__main__":
    main()
