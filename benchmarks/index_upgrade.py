"""An index of real texts through an upgrade of its embedding model: what adapters keep of embedding all again.

    python -m benchmarks.index_upgrade                 # 20,000 glosses, writes benchmarks/results/index_upgrade.json
    python -m benchmarks.index_upgrade --size 2000     # a beginning of the sample; prints only

The old model is all-MiniLM-L6-v2 (384 numbers), the new one multilingual-e5-small in 4 bits (also 384: mixing the two
goes unnoticed). Texts are WordNet's glosses; what answers a query are its relatives in WordNet, see `gloss_vectors`.
A seed divides the sample into the gallery (70 %), validation (7.5 %) and test queries (22.5 %). Maps are fitted on
glosses of the gallery and chosen on validation glosses, without relevance; test queries are looked at once for each
row. A row: recall at 1 and 10 (a relative among the first results), NDCG at 10, the share of old/old's right first
results that are lost, seconds for fitting and for embedding what the treatment has to embed with the new model, bytes
of its map. Intervals are of queries, paired where a gain is shown. Rows are appended to a file of JSON lines as they
come; the same command goes on.

Beside the upgrade to e5 stands the other way to a better model: a successor of MiniLM that is trained to search the old
gallery (`gloss_successor`), with families of the gallery's glosses as labels and its settings chosen by recall of the
validation glosses.

Partial backfill: a random part of the gallery has new vectors. `mapped queries` searches old items with the mapped and
new items with the new query, scores made comparable by mean and spread on validation queries; `mapped gallery` maps the
old items into the new space instead.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from benchmarks import gloss_vectors, results
from benchmarks.gloss_upgrade import Row, Upgrade, divided, treatments
from graceful.metrics.adapted import measure_adapter
from graceful.metrics.retrieval import Ranking
from graceful.report import Measurement

SIZE = 20_000
SEEDS = (0, 1, 2)
DRAWS = 300
SHOWN = ("cross_test_recall_at_1", "cross_test_recall_at_10", "cross_test_ndcg_at_10", "retrieval_nfr",
         "adapter_share_recall_at_10", "adapter_gain_recall_at_10")  # fmt: skip
PERCENTS = (
    "recall_at_1",
    "recall_at_10",
    "ndcg_at_10",
    "retrieval_nfr",
    "share_recall_at_10",
    "gain_recall_at_10",
)


def measured(upgrade: Upgrade, name: str, treatment: Callable[[], tuple[Ranking, Row]]) -> Row:
    """Measure one treatment; one row."""
    ranking, facts = treatment()
    found = measure_adapter(ranking, old_old=upgrade.old_old, full=upgrade.full, draws=DRAWS, seed=upgrade.seed)
    row: Row = {
        "treatment": name,
        "seed": upgrade.seed,
        "glosses": len(upgrade.glosses.ids),
        "gallery": len(upgrade.gallery),
        "queries": int(upgrade.old_old.judged.sum()),
        **facts,
    }
    for metric in SHOWN:
        row |= _interval(metric.removeprefix("cross_test_").removeprefix("adapter_"), found[metric])
    return row


def _interval(name: str, measurement: Measurement) -> Row:
    return {name: measurement.value, f"{name}_lower": measurement.lower, f"{name}_upper": measurement.upper}


def table(rows: list[Row]) -> str:
    """Return means over seeds in percent; the gain with the lowest lower end of a seed's interval."""
    lines = [
        f"{'treatment':<58}{'R@1':>7}{'R@10':>7}{'NDCG':>7}{'NFR':>7}{'share':>7}{'gain':>7}{'worst':>7}"
        f"{'embed s':>9}{'fit s':>7}{'MB':>6}"
    ]
    for name in dict.fromkeys(row["treatment"] for row in rows):
        own = [row for row in rows if row["treatment"] == name]
        percents = [100 * statistics.fmean(row[key] for row in own) for key in PERCENTS]
        worst = 100 * min(row["gain_recall_at_10_lower"] for row in own)
        cost = {key: statistics.fmean(row.get(key, 0.0) for row in own) for key in ("embed_s", "fit_s", "bytes")}
        lines.append(
            f"{name:<58}"
            + "".join(f"{value:7.1f}" for value in (*percents, worst))
            + f"{cost['embed_s']:9.0f}{cost['fit_s']:7.1f}{cost['bytes'] / 1e6:6.1f}"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure what is not in the file of rows yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=SIZE, help="glosses (default: %(default)s)")
    parser.add_argument("--cache", type=Path, default=Path(".cache/index_upgrade"), help="vectors and WordNet")
    parser.add_argument("--rows", type=Path, help="JSON lines (default: rows-SIZE.jsonl in the cache)")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="in pieces (default: all)")
    parser.add_argument("--write", action="store_true", help="write the result although --size is smaller")
    options = parser.parse_args()
    start = time.perf_counter()
    options.cache.mkdir(parents=True, exist_ok=True)
    path = options.rows or options.cache / f"rows-{options.size}.jsonl"
    done = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    known = {(row["treatment"], row["seed"]) for row in done}
    glosses = gloss_vectors.sample(options.size, options.cache)
    vectors = {name: gloss_vectors.vectors(name, glosses.texts, options.cache) for name in gloss_vectors.MODELS}
    for seed in options.seeds:
        upgrade = divided(glosses, vectors, seed)
        for name, treatment in treatments(upgrade):
            if (name, seed) not in known:
                done.append(measured(upgrade, name, treatment))
                with path.open("a") as file:
                    file.write(json.dumps(done[-1]) + "\n")
                print(f"seed {seed}: {name}", flush=True)
    print(table(done))
    if options.write or (options.size == SIZE and tuple(options.seeds) == SEEDS):
        print(results.write("index_upgrade", done, seconds=time.perf_counter() - start))


if __name__ == "__main__":
    main()
