"""Small query models on the index of a large gallery model: glyphs, characters that no model was trained on.

    python -m benchmarks.hvs_pairs            # 3 seeds, writes benchmarks/results/hvs_pairs.json
    python -m benchmarks.hvs_pairs --quick    # 1 seed, 1 epoch, prints only

A gallery model of 4.2 million multiply-accumulates and query models of 22, 40 and 88 times fewer are trained on the 110
characters of the training typefaces, for three epochs. Queries and index are the 45 unseen characters (split: unseen),
or a fifth of the test images of the 110 seen ones (split: seen), always in disjoint test typefaces. Query models, by
treatment:

    compatible     head of the gallery model and regression to its embeddings, weight 10: what `gallery:` sets
    distillation   plain distillation of its logits (temperature 2, every sample)
    alone          the same network without any loss against the gallery model
    best           the independent small model with the highest mAP on validation typefaces and seen characters, among
                   `alone`, the same network with twice the epochs, and another network of that budget

Rows are kept in --rows as they come, so that a second start continues. `difference` is the mAP of the query model on
the gallery model's index minus that of `best` on its own index, with the 95 % interval of a bootstrap over typefaces.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from benchmarks import results, runs
from benchmarks.hvs_splits import Embedded, embedded, four_pairs, scores, splits
from graceful.chain import Predecessor
from graceful.metrics import retrieval
from graceful.models import bundle, cost
from graceful.tasks.base import Samples

HEAD = {"embedding": 64, "head": "cosine", "scale": 16.0}
SEEDS = (0, 1, 2)
EPOCHS = 3


def stages(*rows: tuple[int, int, int, bool]) -> dict[str, Any]:
    """Return a network of stages, each (width, kernel, depth, depthwise)."""
    keys = ("width", "kernel", "depth", "depthwise")
    return {"kind": "stages", "stages": [dict(zip(keys, row, strict=True)) for row in rows], **HEAD}


GALLERY = stages((32, 5, 1, False), (64, 3, 2, False), (128, 3, 1, False))
BUDGETS: Mapping[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "20x": (
        stages((16, 5, 1, False), (32, 3, 1, True), (48, 3, 1, True)),
        stages((12, 3, 1, False), (24, 3, 1, False), (32, 3, 1, True)),
    ),
    "40x": (
        stages((8, 3, 1, False), (16, 3, 1, False), (24, 3, 1, True)),
        stages((10, 3, 1, False), (24, 3, 1, True), (32, 3, 1, True)),
    ),
    "80x": (
        stages((6, 3, 1, False), (12, 3, 1, True), (24, 3, 1, True)),
        stages((6, 3, 1, False), (16, 3, 1, True), (20, 3, 1, True)),
    ),
}
"""Network of the query models of a budget, and another one of the same budget for `best`."""
REGRESSION = {"kind": "embedding_regression", "weight": 10.0}
DISTILLATION = {
    "kind": "focal_distillation",
    "weight": 1.0,
    "temperature": 2.0,
    "focus": "all",
    "allow_low_temperature": True,
}
TREATMENTS: Mapping[str, list[dict[str, Any]]] = {
    "compatible": [{"kind": "influence", "weight": 1.0}, REGRESSION],
    "distillation": [DISTILLATION],
    "alone": [],
}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What query models are trained on.

    Attributes:
        data: Its name in rows.
        section: Network -> task section of a spec.
        shape: (channels, height, width) of an image.
        train: Section of a spec.
        trusted: A task section whose file versions may run; None: they have none.
    """

    data: str
    section: Callable[[Mapping[str, Any]], dict[str, Any]]
    shape: tuple[int, int, int]
    train: Mapping[str, Any]
    trusted: Mapping[str, Any] | None = None

    def load(self, folder: Path) -> Predecessor:
        """Open a version."""
        like = None if self.trusted is None else runs.refresh_spec("x", task=self.trusted, seed=0).task
        return bundle.load(folder, augment_like=like)

    def macs(self, version: Predecessor) -> int:
        """Return the multiply-accumulates of one embedding."""
        return cost.macs(version.network.embed, torch.zeros(1, *self.shape))


def glyphs(epochs: int) -> Setting:
    """Return the setting of this benchmark."""
    return Setting(
        data="glyphs",
        section=lambda network: {"kind": "glyphs", "characters": "all", "network": dict(network)},
        shape=(1, 28, 28),
        train={"epochs": epochs, "batch_size": 128},
    )


class Rows:
    """Rows in a file of JSON lines, one for each key; what is there is not measured again."""

    def __init__(self, path: Path | None) -> None:
        self.path, self.rows = path, list[dict[str, Any]]()
        if path is not None and path.exists():
            self.rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    def find(self, **key: Any) -> list[dict[str, Any]]:
        """Return the rows with these values."""
        return [row for row in self.rows if all(row.get(name) == value for name, value in key.items())]

    def add(self, rows: list[dict[str, Any]]) -> None:
        """Append rows, whole."""
        self.rows += rows
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(json.dumps(row) + "\n" for row in rows))


def measure(seed: int, rows: Rows, home: Path, *, epochs: int) -> None:
    """Train and measure everything of one seed that is not measured yet."""
    setting = glyphs(epochs)
    section = setting.section(GALLERY)
    gallery_task = runs.task_of(section)
    spec = runs.refresh_spec("gallery", task=section, seed=seed, train=setting.train)
    gallery_folder, _ = runs.trained(spec, folder=home / f"gallery-{seed}", task=gallery_task)
    pairs_of(setting, BUDGETS, gallery_folder, splits(gallery_task), seed=seed, rows=rows, home=home)


def pairs_of(
    setting: Setting,
    budgets: Mapping[str, Sequence[dict[str, Any]]],
    gallery_folder: Path,
    data: Mapping[str, Mapping[str, Samples]],
    *,
    seed: int,
    rows: Rows,
    home: Path,
) -> None:
    """Measure the gallery model, then query models of every budget, if the rows do not have them."""
    gallery_version = setting.load(gallery_folder)
    gallery = embedded(gallery_version, data)
    large = setting.macs(gallery_version)
    common = {"data": setting.data, "gallery": f"{large} MACs", "seed": seed}
    if not rows.find(seed=seed, query="paragon"):
        found = [
            {
                **common,
                "query": "paragon",
                "pair": "g,g",
                "macs_ratio": 1.0,
                "split": split,
                **scores(retrieval.rank(gallery[split]["query"], gallery[split]["gallery"])),
            }
            for split in ("unseen", "seen")
        ]
        rows.add(found)
    for budget, networks in budgets.items():
        one_budget(budget, networks, setting=setting, seed=seed, rows=rows, home=home, gallery=gallery, data=data,
                   common=common, gallery_folder=gallery_folder, large=large)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Fitting:
    """Trains query models of one budget.

    Attributes:
        setting: Data, networks and recipe.
        budget: Name of the budget.
        seed: Of the gallery model; query models have another one.
        home: Folder of the runs.
        gallery_folder: Folder of the gallery model.
    """

    setting: Setting
    budget: str
    seed: int
    home: Path
    gallery_folder: Path

    def fit(self, name: str, network: Mapping[str, Any], losses: list[dict[str, Any]], **changed: Any) -> Predecessor:
        """Train one model, or load it where its run is done.

        Args:
            name: Of the treatment.
            network: Section of the network.
            losses: Losses against the gallery model; none: the model is independent.
            changed: Keys of `train` that differ from the setting's.
        """
        section = self.setting.section(network)
        spec = runs.refresh_spec(
            f"{name}-{self.budget}",
            task=section,
            seed=self.seed + 1000,
            train={**self.setting.train, **changed},
            compatibility={"losses": losses} if losses else {},
        )
        folder, built = self.home / f"{name}-{self.budget}-{self.seed}", runs.task_of(section)
        return self.setting.load(runs.trained(spec, folder=folder, ancestors=[self.gallery_folder], task=built)[0])

    def independent(self, network: dict[str, Any], others: Sequence[dict[str, Any]]) -> dict[str, Predecessor]:
        """Return the models that know no gallery model: the network, with twice the epochs, and another network."""
        versions = {
            "alone": self.fit("alone", network, []),
            "longer": self.fit("longer", network, [], epochs=2 * self.setting.train["epochs"]),
        }
        return {**versions, "other": self.fit("other", others[0], [])} if others else versions


def one_budget(
    budget: str,
    networks: Sequence[dict[str, Any]],
    *,
    setting: Setting,
    seed: int,
    rows: Rows,
    home: Path,
    gallery: Embedded,
    data: Mapping[str, Mapping[str, Samples]],
    common: Mapping[str, Any],
    gallery_folder: Path,
    large: int,
) -> None:
    """Train the independent models, choose the best of them, and measure every treatment beside it."""
    if len({row["query"] for row in rows.find(seed=seed, budget=budget)}) == len(TREATMENTS) + 1:
        return
    fitting = Fitting(setting=setting, budget=budget, seed=seed, home=home, gallery_folder=gallery_folder)
    network, *others = networks
    independent = fitting.independent(network, others)
    vectors = {name: embedded(version, data) for name, version in independent.items()}
    ranked = {name: {split: _ranking(sides[split]) for split in data} for name, sides in vectors.items()}
    validated = {name: scores(rankings["validation"])["map"] for name, rankings in ranked.items()}
    chosen = max(validated, key=lambda name: validated[name])
    best = {"query": "best", "budget": budget, "chosen": chosen, "validation_map": validated, "pair": "q,q"}
    ratio = large / setting.macs(independent[chosen])
    found = [
        {**common, **best, "macs_ratio": ratio, "split": split, **scores(ranked[chosen][split])}
        for split in ("unseen", "seen")
    ]
    for treatment, losses in TREATMENTS.items():
        alone = treatment == "alone"
        version = independent["alone"] if alone else fitting.fit(treatment, network, losses)
        found += four_pairs(
            vectors["alone"] if alone else embedded(version, data),
            gallery,
            best=ranked[chosen],
            macs=setting.macs(version),
            common={**common, "query": treatment, "budget": budget},
            large=large,
        )
    rows.add(found)
    for row in found:
        if row["split"] == "unseen":
            print(json.dumps({key: row[key] for key in ("seed", "budget", "query", "pair", "recall_at_1", "map")}))


def _ranking(sides: Mapping[str, retrieval.Embeddings]) -> retrieval.Ranking:
    return retrieval.rank(sides["query"], sides["gallery"])


def table(rows: list[dict[str, Any]]) -> str:
    """Return the means over seeds."""
    lines = [f"{'split':<8}{'budget':<8}{'query':<14}{'pair':<6}{'R@1':>8}{'mAP':>8}{'of paragon':>12}"]
    for split in ("unseen", "seen"):
        paragon = np.mean([row["map"] for row in rows if row["query"] == "paragon" and row["split"] == split])
        keys = dict.fromkeys((row.get("budget", ""), row["query"], row["pair"]) for row in rows)
        for budget, query, pair in keys:
            own = [
                row
                for row in rows
                if (row.get("budget", ""), row["query"], row["pair"], row["split"]) == (budget, query, pair, split)
            ]
            recall, precision = (np.mean([row[key] for row in own]) for key in ("recall_at_1", "map"))
            lines.append(
                f"{split:<8}{budget:<8}{query:<14}{pair:<6}{recall:8.3f}{precision:8.3f}{precision / paragon:12.3f}"
            )
    return "\n".join(lines)


def write(rows: list[dict[str, Any]], *, seconds: float) -> Path:
    """Write rows beside those of other data, and return the path."""
    data = {row["data"] for row in rows}
    recorded = json.loads((results.FOLDER / "hvs_pairs.json").read_text(encoding="utf-8"))["rows"]
    kept = [row for row in recorded if row["data"] not in data]
    return results.write("hvs_pairs", sorted(kept + rows, key=lambda row: row["data"] != "glyphs"), seconds=seconds)


def main() -> None:
    """Measure all seeds in this process and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, one epoch, nothing written")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="how many")
    parser.add_argument("--rows", type=Path, help="rows so far, JSON lines; models lie in a folder beside it")
    options = parser.parse_args()
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        rows = Rows(options.rows)
        home = Path(scratch) if options.rows is None else options.rows.with_suffix("")
        for seed in SEEDS[: 1 if options.quick else options.seeds]:
            measure(seed, rows, home, epochs=1 if options.quick else EPOCHS)
    print(table(rows.rows))
    if not options.quick:
        print(write(rows.rows, seconds=time.perf_counter() - begun))


if __name__ == "__main__":
    main()
