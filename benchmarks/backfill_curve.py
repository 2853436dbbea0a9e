"""What searches are worth in the middle of a backfill on glyphs, by the order in which vectors are replaced.

    python -m benchmarks.backfill_curve            # 3 seeds, writes benchmarks/results/backfill_curve.json
    python -m benchmarks.backfill_curve --quick    # 1 seed, prints only

v1 knows 55 characters from 40 % of the training families, v2 80 from 70 %, v3 all 110 from all of them; these two have
a wider network. `bct` is trained against its predecessors (influence with prototypes, and regression), `alone` without.
The gallery and the queries show characters that no version was trained on. A row is one point: `fraction` of the
gallery has v3's vectors; queries are embedded by both versions and each searches its own vectors with calibrated scores
(`both`, and `both, raw` without calibration), or by v3 alone (`new`). `old_old` is v1 alone on its own gallery. Orders:
`random`; `distance`, far from the mean of its label first; `uncertainty`, where a linear map from v1 to v3 is expected
to be most wrong; `traffic`, the items that v1 finds most often for other queries first. `flips` is the share of queries
that v1 had right and that are wrong at that point.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from benchmarks import results, runs
from benchmarks.glyphs_retrieval import HEAD, INFLUENCE, NEW, OLD, REGRESSION, embeddings
from graceful.index import Vectors
from graceful.index.curve import Judged, Reading, Side, curve
from graceful.index.order import ORDERS, priority
from graceful.index.vectors import unit_length
from graceful.tasks.base import Split

MIDDLE = {"kind": "glyphs", "characters": "all", "classes": 80, "fonts": 0.7, "network": {"size": "s2", **HEAD}}
SEEDS = (0, 1, 2)
BCT = {"losses": [INFLUENCE, REGRESSION]}
FRACTIONS = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
SPLITS: tuple[Split, ...] = ("query", "gallery", "train", "validation")
"""Whose vectors are kept; the last two are for `benchmarks.glyphs_upgrade`."""
SAMPLE = 0.1
"""Share of the gallery whose pairs the order by uncertainty knows; in a backfill they are what is replaced first."""


def versions(seed: int, kept: Path, *, steps: int | None = None) -> dict[str, tuple[Path, float]] | None:
    """Return the bundles of v1, of v3 with compatible training (`bct`) and of v3 without (`alone`), and CPU seconds.

    Args:
        seed: Of all of them.
        kept: Where they are kept; those that are there are not trained again.
        steps: How many to train at most; None: all.

    Returns:
        None where some are left.
    """
    folder, made = kept / f"backfill-curve-{seed}", dict[str, tuple[Path, float]]()
    plan: list[tuple[str, dict[str, Any], int, list[str], dict[str, Any]]] = [
        ("v1", OLD, seed, [], {}),
        ("v2", MIDDLE, seed + 10_000, ["v1"], BCT),
        ("bct", NEW, seed + 20_000, ["v2", "v1"], BCT),
        ("alone", NEW, seed + 20_000, [], {}),
    ]
    for name, section, own_seed, ancestors, compatibility in plan:
        record = folder / f"{name}.json"
        if not record.exists():
            if steps == 0:
                return None
            steps = None if steps is None else steps - 1
            spec = runs.refresh_spec(
                "v3" if name == "bct" else name, task=section, seed=own_seed, compatibility=compatibility
            )
            bundle, seconds = runs.trained(
                spec,
                folder=folder / name,
                ancestors=[made[ancestor][0] for ancestor in ancestors],
                task=runs.task_of(section),
            )
            record.write_text(json.dumps({"bundle": str(bundle), "seconds": seconds}))
        found = json.loads(record.read_text())
        made[name] = Path(found["bundle"]), found["seconds"]
    return made


def trained(seed: int, kept: Path) -> dict[str, Any]:
    """Return the vectors of v1, of v3 with compatible training, and of v3 without, computed once and kept.

    Seconds that the trainings of v3 took are in `bct.seconds` and `alone.seconds`, those to embed one image in
    `v1.embed_seconds` and so on.
    """
    path = kept / f"backfill-curve-{seed}-splits.npz"
    if path.exists():
        with np.load(path) as arrays:
            return dict(arrays)
    made, task, found = versions(seed, kept), runs.task_of(NEW), dict[str, Any]()
    assert made is not None, "all were asked for"
    for name in ("v1", "bct", "alone"):
        bundle, seconds = made[name]
        found[f"{name}.seconds"] = np.asarray(seconds)
        before = runs.cpu_seconds()
        for split, vectors in embeddings(runs.load(bundle), task, SPLITS).items():
            found[f"{name}.{split}"] = vectors.vectors
            found |= {f"{split}.ids": np.asarray(vectors.ids), f"{split}.labels": np.asarray(vectors.labels)}
            found[f"{split}.groups"] = np.asarray(vectors.groups)
        embedded = sum(len(found[f"{split}.ids"]) for split in SPLITS)
        found[f"{name}.embed_seconds"] = np.asarray((runs.cpu_seconds() - before) / embedded)
    np.savez(path, **found)
    return found


def side(found: dict[str, Any], name: str) -> Side:
    """Return the vectors of one version."""
    parts = {split: unit_length(found[f"{name}.{split}"], where=name) for split in ("query", "gallery")}
    return Side(queries=parts["query"], gallery=parts["gallery"])


def measured(seed: int, kept: Path) -> list[dict[str, Any]]:
    """Return the rows of one seed."""
    found = trained(seed, kept)
    labels, ids = found["gallery.labels"], found["gallery.ids"]
    column = {name: number for number, name in enumerate(ids.tolist())}
    itself = np.asarray([column.get(name, -1) for name in found["query.ids"].tolist()], dtype=np.int64)
    judged = Judged(right=found["query.labels"][:, None] == labels[None, :], itself=itself)
    old, rows = side(found, "v1"), list[dict[str, Any]]()
    gallery = Vectors(ids=ids, vectors=old.gallery, payload={"label": labels})
    hits = np.argpartition(-(old.queries[1::2] @ old.gallery.T), 10, axis=1)[:, :10]  # other queries than every second
    counts = np.bincount(hits.reshape(-1), minlength=len(ids))
    traffic = dict(zip(ids.tolist(), counts.astype(float).tolist(), strict=True))
    every_second = Judged(right=judged.right[::2], itself=judged.itself[::2])
    for training in ("bct", "alone"):
        new = side(found, training)
        sample = np.random.default_rng(seed).permutation(len(ids))[: round(SAMPLE * len(ids))]
        pairs = (old.gallery[sample], new.gallery[sample])
        halves = [Side(queries=item.queries[::2], gallery=item.gallery) for item in (old, new)]
        for order in ORDERS:
            first = priority(order, gallery, seed=seed, pairs=pairs, traffic=traffic)
            if order == "uncertainty":
                first[sample] += 10.0
            ways: list[tuple[str, Reading, bool]] = [
                ("both", "both", True),
                ("both, raw", "both", False),
                ("new", "new", True),
            ]
            for reading, queries, calibrate in ways:
                points = curve(*halves, every_second, first, reading=queries, fractions=FRACTIONS, calibrate=calibrate)
                about = {"data": "glyphs", "training": training, "queries": reading, "order": order, "seed": seed}
                for point in points:
                    for metric in ("recall_at_1", "recall_at_10", "flips"):
                        baseline = 0.0 if metric == "flips" else getattr(base(halves[0], every_second), metric)
                        value = {"metric": metric, "value": getattr(point, metric), "old_old": baseline}
                        rows.append({**about, "fraction": point.fraction, **value})
    return rows


def base(old: Side, judged: Judged) -> Any:
    """Return the point of v1 alone."""
    return curve(old, old, judged, np.zeros(len(old.gallery)), fractions=(0.0,))[0]


def table(rows: list[dict[str, Any]]) -> str:
    """Return means over seeds of recall at 1, in percent."""
    lines = [
        f"{'training':<9}{'queries':<11}{'order':<13}"
        + "".join(f"{100 * share:8.0f} %" for share in FRACTIONS)
        + "   old/old"
    ]
    groups = dict.fromkeys((row["training"], row["queries"], row["order"]) for row in rows)
    for training, queries, order in groups:
        own = [row for row in rows if (row["training"], row["queries"], row["order"]) == (training, queries, order)]
        own = [row for row in own if row["metric"] == "recall_at_1"]
        means = [100 * np.mean([row["value"] for row in own if row["fraction"] == share]) for share in FRACTIONS]
        old = 100 * np.mean([row["old_old"] for row in own])
        lines.append(
            f"{training:<9}{queries:<11}{order:<13}" + "".join(f"{mean:10.2f}" for mean in means) + f"{old:10.2f}"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure all seeds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, nothing written")
    parser.add_argument("--kept", type=Path, default=Path(tempfile.gettempdir()), help="where vectors are kept")
    parser.add_argument("--train", action="store_true", help="only train and keep the vectors")
    parser.add_argument("--steps", type=int, help="with --train, how many versions of each seed at most")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="with --train, which (default: all)")
    options = parser.parse_args()
    start, rows = time.perf_counter(), list[dict[str, Any]]()
    options.kept.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds if options.train else SEEDS[:1] if options.quick else SEEDS:
        if options.train:
            if versions(seed, options.kept, steps=options.steps) is not None:
                trained(seed, options.kept)
            print(seed, round(time.perf_counter() - start), flush=True)
        else:
            rows += measured(seed, options.kept)
    if rows:
        print(table(rows))
    if rows and not options.quick:
        print(results.write("backfill_curve", rows, seconds=time.perf_counter() - start))


if __name__ == "__main__":
    main()
