"""A gallery of glyphs through an upgrade from v1 to v3: maps, compatible training, and embedding all again.

    python -m benchmarks.backfill_curve --train --kept FOLDER      # trains the versions and keeps their vectors
    python -m benchmarks.glyphs_upgrade --kept FOLDER              # writes benchmarks/results/glyphs_upgrade.json

Versions are those of `benchmarks.backfill_curve`: v1 knows 55 characters, v3 all 110 that versions are trained on and
has a wider network; `alone` was trained without v1, `compatible` against its predecessors. Queries and gallery show
other characters, in typefaces of the test. Maps are fitted on training images and chosen on validation images, without
labels, as `graceful adapt` does. A row is one treatment and seed: recall at 1 and 10 and NDCG at 10, the share of v1's
right first results that are lost, gain over old/old and share of embedding all again (v3 alone), CPU seconds for
training, fitting and embedding what the treatment embeds with v3, bytes of its map. Intervals are of queries that show
one typeface together.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from numpy.typing import NDArray

from benchmarks import results
from benchmarks.backfill_curve import SEEDS, trained
from graceful.adapters import Kind, Pairs, choose, slerp
from graceful.metrics.adapted import measure_adapter
from graceful.metrics.retrieval import Embeddings, Ranking, rank

DRAWS = 300
PAIRS = {"train": 4000, "validation": 800}
"""Images that maps are fitted and chosen on, evenly spread over the split."""
SHOWN = {
    "cross_test_recall_at_1": "recall_at_1",
    "cross_test_recall_at_10": "recall_at_10",
    "cross_test_ndcg_at_10": "ndcg_at_10",
    "retrieval_nfr": "retrieval_nfr",
    "adapter_share_recall_at_1": "share_recall_at_1",
    "adapter_gain_recall_at_1": "gain_recall_at_1",
    "adapter_share_recall_at_10": "share_recall_at_10",
    "adapter_gain_recall_at_10": "gain_recall_at_10",
}
Found = dict[str, Any]
Treatment = tuple[str, Callable[[], tuple[Ranking, dict[str, Any]]]]


def search(found: Found, queries: NDArray[np.float32], gallery: NDArray[np.float32]) -> Ranking:
    """Search with vectors of the query split in vectors of the gallery split."""
    sides = {
        split: Embeddings(
            ids=found[f"{split}.ids"],
            labels=found[f"{split}.labels"],
            vectors=vectors,
            groups=found[f"{split}.groups"],
        )
        for split, vectors in (("query", queries), ("gallery", gallery))
    }
    return rank(sides["query"], sides["gallery"])


def treatments(found: Found, seed: int) -> Iterator[Treatment]:
    """Yield each treatment's name, and what measures it: a ranking, and facts about its cost."""
    old_queries, old = found["v1.query"], found["v1.gallery"]
    rows = {
        split: np.linspace(0, len(found[f"{split}.ids"]) - 1, count).astype(np.int64) for split, count in PAIRS.items()
    }
    pairs = sum(PAIRS.values())
    embed = float(found["alone.embed_seconds"])
    train = {name: {"train_s": float(found[f"{name}.seconds"])} for name in ("alone", "bct")}
    again = {"embedded": len(old), "embed_s": embed * len(old)}

    def fitted(name: str, kind: Kind, *, between: bool = False) -> tuple[Ranking, dict[str, Any]]:
        begin = time.process_time()
        train_pairs, validation = (
            Pairs(source=found[f"{name}.{split}"][rows[split]], target=found[f"v1.{split}"][rows[split]])
            for split in ("train", "validation")
        )
        best, tried = choose(train_pairs, validation, kinds=(kind,), seed=seed, old=between)
        queries = best.map(found[f"{name}.query"])
        if between:
            queries = slerp(old_queries, queries, best.share)
        return search(found, queries, old), {
            **train[name],
            "pairs": len(train_pairs),
            "embedded": pairs,
            "embed_s": embed * pairs,
            "fit_s": time.process_time() - begin,
            "candidates": len(tried),
            "bytes": 4 * best.map.numbers,
            "share": best.share,
        }

    yield "old/old", lambda: (search(found, old_queries, old), {"embedded": 0})
    yield "nothing: v3's queries, v1's gallery", lambda: (search(found, found["alone.query"], old), train["alone"])
    for kind in ("procrustes", "low_rank", "mlp"):
        yield kind, lambda kind=kind: fitted("alone", kind)  # type: ignore[misc]
    yield "interpolation", lambda: fitted("alone", "low_rank", between=True)
    yield "compatible training", lambda: (search(found, found["bct.query"], old), train["bct"])
    yield "compatible training and procrustes", lambda: fitted("bct", "procrustes")
    yield (
        "compatible training, gallery embedded again",
        lambda: (search(found, found["bct.query"], found["bct.gallery"]), {**train["bct"], **again}),
    )
    yield (
        "gallery embedded again",
        lambda: (search(found, found["alone.query"], found["alone.gallery"]), {**train["alone"], **again}),
    )


def measured(seed: int, kept: Path, known: set[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows of one seed whose treatments are not known."""
    found = trained(seed, kept)
    old_old = search(found, found["v1.query"], found["v1.gallery"])
    full = search(found, found["alone.query"], found["alone.gallery"])
    for name, treatment in treatments(found, seed):
        if name in known:
            continue
        ranking, facts = treatment()
        values = measure_adapter(ranking, old_old=old_old, full=full, draws=DRAWS, seed=seed)
        row: dict[str, Any] = {"treatment": name, "seed": seed, "queries": int(old_old.judged.sum())}
        row |= {"gallery": len(found["gallery.ids"]), **facts}
        for metric, short in SHOWN.items():
            measurement = values[metric]
            row |= {short: measurement.value, f"{short}_lower": measurement.lower, f"{short}_upper": measurement.upper}
        yield row


def table(rows: list[dict[str, Any]]) -> str:
    """Return means over seeds in percent; the gain at 1 with its lowest and highest seed."""
    lines = [
        f"{'treatment':<46}{'R@1':>7}{'R@10':>7}{'NDCG':>7}{'NFR':>7}{'share':>7}{'gain':>7}{'least':>7}{'most':>7}"
        f"{'train s':>9}{'embed s':>9}{'fit s':>7}{'kB':>7}"
    ]
    for name in dict.fromkeys(row["treatment"] for row in rows):
        own = [row for row in rows if row["treatment"] == name]
        keys = ("recall_at_1", "recall_at_10", "ndcg_at_10", "retrieval_nfr", "share_recall_at_1", "gain_recall_at_1")
        gains = [100 * row["gain_recall_at_1"] for row in own]
        values = [*(100 * statistics.fmean(row[key] for row in own) for key in keys), min(gains), max(gains)]
        cost = [statistics.fmean(row.get(key, 0.0) for row in own) for key in ("train_s", "embed_s", "fit_s", "bytes")]
        lines.append(
            f"{name:<46}"
            + "".join(f"{value:7.1f}" for value in values)
            + f"{cost[0]:9.1f}{cost[1]:9.1f}{cost[2]:7.1f}{cost[3] / 1e3:7.1f}"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure what is not in the file of rows yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kept", type=Path, default=Path(tempfile.gettempdir()), help="where vectors are kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="in pieces (default: all)")
    options = parser.parse_args()
    start, path = time.perf_counter(), options.kept / "glyphs-upgrade.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    for seed in options.seeds:
        for row in measured(seed, options.kept, {row["treatment"] for row in rows if row["seed"] == seed}):
            rows.append(row)
            with path.open("a") as file:
                file.write(json.dumps(row) + "\n")
    print(table(rows))
    if len(rows) == 10 * len(SEEDS):
        print(results.write("glyphs_upgrade", rows, seconds=time.perf_counter() - start))


if __name__ == "__main__":
    main()
