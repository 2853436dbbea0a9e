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
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from numpy.typing import NDArray

from benchmarks import gloss_successor, gloss_vectors, results
from benchmarks.gloss_successor import Recipe, Successor
from graceful.adapters import Kind, Pairs, choose, slerp
from graceful.adapters.maps import unit
from graceful.adapters.selection import Tried
from graceful.metrics.adapted import measure_adapter, scores
from graceful.metrics.judgments import Judgments
from graceful.metrics.retrieval import Embeddings, Ranking, rank
from graceful.report import Measurement

SIZE = 20_000
SEEDS = (0, 1, 2)
GALLERY, VALIDATION = 0.7, 0.075
PAIR_SHARES = (1.0, 0.3, 0.1)
"""Of the gallery's glosses, to fit maps on."""
BACKFILLED = (0.25, 0.5, 0.75)
RECIPES = tuple(Recipe(regression=weight) for weight in (1.0, 5.0))
ALONE = Recipe(influence=0.0, regression=0.0)
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


@dataclass(frozen=True, kw_only=True, eq=False)
class Upgrade:
    """Both models' vectors of a sample, divided by a seed.

    Attributes:
        glosses: The sample.
        old, new: [N, 384] vectors.
        seconds: Model -> seconds to embed one gloss.
        gallery, validation, test: Positions.
        seed: Of the division, of networks and of the bootstrap.
    """

    glosses: gloss_vectors.Glosses
    old: NDArray[np.float32]
    new: NDArray[np.float32]
    seconds: dict[str, float]
    gallery: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]
    seed: int

    def embeddings(self, vectors: NDArray[np.float32], rows: NDArray[np.int64]) -> Embeddings:
        """Return vectors of some glosses with their ids and relevance."""
        queries, items, grades = self.glosses.judgments
        ids = self.glosses.ids[rows]
        return Embeddings(
            ids=ids,
            labels=np.zeros(len(ids), dtype=np.int64),
            vectors=vectors,
            judgments=Judgments(queries=queries, items=items, grades=grades),
        )

    def search(
        self, queries: NDArray[np.float32], gallery: NDArray[np.float32], *, rows: NDArray[np.int64] | None = None
    ) -> Ranking:
        """Search with vectors of the test glosses, or of other rows, in vectors of the gallery."""
        return rank(
            self.embeddings(queries, self.test if rows is None else rows), self.embeddings(gallery, self.gallery)
        )

    @cached_property
    def successor(self) -> tuple[Successor, Row]:
        """The best of the successors of MiniLM on the validation glosses, in the old gallery."""
        begin = time.process_time()
        made = {recipe: self.trained(recipe) for recipe in RECIPES}

        def recall(successor: Successor) -> float:
            queries = successor(self.old[self.validation])
            found = self.search(queries, self.old[self.gallery], rows=self.validation)
            return float(scores(found, "recall_at_10")[found.judged].mean())

        recalls = {recipe: recall(successor) for recipe, successor in made.items()}
        best = max(recalls, key=lambda recipe: recalls[recipe])
        return made[best], {
            "embedded": 0,
            "pairs": len(self.gallery),
            "fit_s": time.process_time() - begin,
            "candidates": len(made),
            "bytes": 4 * made[best].numbers,
            "chosen_regression": best.regression,
        }

    def trained(self, recipe: Recipe) -> Successor:
        """Train a successor of MiniLM on the gallery's glosses."""
        rows = self.gallery
        return gloss_successor.trained(
            self.glosses.ids[rows], self.old[rows], self.glosses.families[rows], seed=self.seed, recipe=recipe
        )

    @cached_property
    def old_old(self) -> Ranking:
        """Old queries in the old gallery."""
        return self.search(self.old[self.test], self.old[self.gallery])

    @cached_property
    def full(self) -> Ranking:
        """New queries in the gallery that was embedded again."""
        return self.search(self.new[self.test], self.new[self.gallery])

    def pairs(self, rows: NDArray[np.int64], *, side: str = "queries") -> Pairs:
        """Return both models' vectors of some glosses, first those that are mapped."""
        first, second = (self.new, self.old) if side == "queries" else (self.old, self.new)
        return Pairs(source=first[rows], target=second[rows])


Row = dict[str, Any]
Treatment = tuple[str, Callable[[], tuple[Ranking, Row]]]


def divided(
    glosses: gloss_vectors.Glosses,
    vectors: dict[str, tuple[NDArray[np.float32], float]],
    seed: int,
) -> Upgrade:
    """Divide a sample by a seed."""
    count = len(glosses.ids)
    order = np.random.default_rng(seed).permutation(count)
    first, second = round(GALLERY * count), round((GALLERY + VALIDATION) * count)
    return Upgrade(
        glosses=glosses,
        old=vectors["minilm"][0],
        new=vectors["e5"][0],
        seconds={name: spent for name, (_, spent) in vectors.items()},
        gallery=order[:first],
        validation=order[first:second],
        test=order[second:],
        seed=seed,
    )


def treatments(upgrade: Upgrade) -> Iterator[Treatment]:
    """Yield each treatment's name, and what measures it: a ranking, and facts about its cost."""
    old, new, gallery, test = upgrade.old, upgrade.new, upgrade.gallery, upgrade.test
    embedding = upgrade.seconds["e5"]
    yield "old/old", lambda: (upgrade.old_old, {"embedded": 0})
    yield "nothing: new queries, old gallery", lambda: (upgrade.search(new[test], old[gallery]), {"embedded": 0})
    yield "full re-embedding", lambda: (upgrade.full, {"embedded": len(gallery), "embed_s": embedding * len(gallery)})
    for share in PAIR_SHARES:
        rows = gallery[: round(share * len(gallery))]
        yield f"procrustes, {share:g} of the gallery as pairs", _queries(upgrade, rows, "procrustes", old=False)
        yield f"low_rank, {share:g} of the gallery as pairs", _queries(upgrade, rows, "low_rank", old=False)
        yield f"interpolation, {share:g} of the gallery as pairs", _queries(upgrade, rows, "low_rank", old=True)
        yield f"low_rank on the gallery, {share:g} of the gallery as pairs", _gallery(upgrade, rows)
    yield "successor of MiniLM, compatible training, old gallery", _successor(upgrade, again=False)
    yield "successor of MiniLM, compatible training, its own gallery", _successor(upgrade, again=True)
    yield "successor of MiniLM, trained alone, old gallery", _alone(upgrade)
    for fraction in BACKFILLED:
        yield f"backfill {fraction:g}, mapped gallery", _backfilled(upgrade, fraction, mapped="gallery")
        yield f"backfill {fraction:g}, mapped queries", _backfilled(upgrade, fraction, mapped="queries")
    for share in PAIR_SHARES:  # last, because they take longest
        rows = gallery[: round(share * len(gallery))]
        yield f"mlp, {share:g} of the gallery as pairs", _queries(upgrade, rows, "mlp", old=False)


def _fitted(
    upgrade: Upgrade, rows: NDArray[np.int64], kinds: tuple[Kind, ...], *, side: str, old: bool
) -> tuple[Tried, Row]:
    begin = time.process_time()
    best, tried = choose(
        upgrade.pairs(rows, side=side),
        upgrade.pairs(upgrade.validation, side=side),
        kinds=kinds,
        seed=upgrade.seed,
        side=side,  # type: ignore[arg-type]
        old=old,
    )
    return best, {
        "pairs": len(rows),
        "embedded": len(rows) + len(upgrade.validation),
        "embed_s": upgrade.seconds["e5"] * (len(rows) + len(upgrade.validation)),
        "fit_s": time.process_time() - begin,
        "candidates": len(tried),
        "bytes": 4 * best.map.numbers,
        "share": best.share,
        "agreement": best.agreement,
        **{f"chosen_{name}": value for name, value in best.options.items()},
    }


def _queries(upgrade: Upgrade, rows: NDArray[np.int64], kind: Kind, *, old: bool) -> Callable[[], tuple[Ranking, Row]]:
    def measure() -> tuple[Ranking, Row]:
        best, facts = _fitted(upgrade, rows, (kind,), side="queries", old=old)
        queries = best.map(upgrade.new[upgrade.test])
        if old:
            queries = slerp(upgrade.old[upgrade.test], queries, best.share)
        return upgrade.search(queries, upgrade.old[upgrade.gallery]), facts

    return measure


def _gallery(upgrade: Upgrade, rows: NDArray[np.int64]) -> Callable[[], tuple[Ranking, Row]]:
    def measure() -> tuple[Ranking, Row]:
        best, facts = _fitted(upgrade, rows, ("low_rank",), side="gallery", old=False)
        return upgrade.search(upgrade.new[upgrade.test], best.map(upgrade.old[upgrade.gallery])), facts

    return measure


def _successor(upgrade: Upgrade, *, again: bool) -> Callable[[], tuple[Ranking, Row]]:
    """Its layer takes MiniLM's vectors, so that its own gallery is embedded without running MiniLM."""

    def measure() -> tuple[Ranking, Row]:
        successor, facts = upgrade.successor
        gallery = upgrade.old[upgrade.gallery]
        return upgrade.search(successor(upgrade.old[upgrade.test]), successor(gallery) if again else gallery), facts

    return measure


def _alone(upgrade: Upgrade) -> Callable[[], tuple[Ranking, Row]]:
    def measure() -> tuple[Ranking, Row]:
        begin = time.process_time()
        successor = upgrade.trained(ALONE)
        facts = {"embedded": 0, "pairs": len(upgrade.gallery), "fit_s": time.process_time() - begin, "candidates": 1}
        queries = successor(upgrade.old[upgrade.test])
        return upgrade.search(queries, upgrade.old[upgrade.gallery]), {**facts, "bytes": 4 * successor.numbers}

    return measure


def _backfilled(upgrade: Upgrade, fraction: float, *, mapped: str) -> Callable[[], tuple[Ranking, Row]]:
    """The first part of the gallery has new vectors, and the map is fitted on it: they are there anyway.

    Mapped queries: a query is [new, sqrt 2 scale mapped, sqrt 2 shift], a new item [vector, 0, 0] and an old one
    [0, vector, 1] / sqrt 2, so that their product is the new cosine, or the calibrated old one.
    """
    old, new, root = upgrade.old, upgrade.new, math.sqrt(2.0)
    count = round(fraction * len(upgrade.gallery))
    done, rest = upgrade.gallery[:count], upgrade.gallery[count:]

    def measure() -> tuple[Ranking, Row]:
        best, facts = _fitted(upgrade, done, ("low_rank",), side=mapped, old=False)
        if mapped == "gallery":
            items = np.concatenate([upgrade.new[done], best.map(upgrade.old[rest])])
            return upgrade.search(upgrade.new[upgrade.test], items), facts
        validation, test = upgrade.validation, upgrade.test
        mapped_scores = unit(best.map(new[validation])) @ unit(old[rest]).T
        scale, shift = _calibration(mapped_scores, unit(new[validation]) @ unit(new[done]).T)
        queries = np.concatenate(
            [new[test], root * scale * best.map(new[test]), _column(len(test), root * shift)], axis=1
        )
        items = np.concatenate(
            [
                np.pad(new[done], ((0, 0), (0, old.shape[1] + 1))),
                np.concatenate([np.zeros((len(rest), new.shape[1])), old[rest], _column(len(rest), 1.0)], axis=1),
            ]
        )
        return upgrade.search(queries, items), facts

    return measure


def _column(rows: int, value: float) -> NDArray[np.float64]:
    return np.full((rows, 1), value)


def _calibration(old_scores: NDArray[np.float64], new_scores: NDArray[np.float64]) -> tuple[float, float]:
    """Return scale and shift that give the scores of old items mean and spread of those of new items."""
    scale = float(new_scores.std() / old_scores.std())
    return scale, float(new_scores.mean() - scale * old_scores.mean())


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
