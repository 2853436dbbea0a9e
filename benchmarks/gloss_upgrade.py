"""The treatments that `benchmarks.index_upgrade` compares when the embedding model of an index changes.

`Upgrade` holds the vectors of both models for one division of the glosses, and `treatments` yields what is compared,
each as a function that returns the ranking of the test queries and facts about its cost.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import gloss_successor, gloss_vectors
from benchmarks.gloss_successor import Recipe, Successor
from graceful.adapters import Kind, Pairs, choose, slerp
from graceful.adapters.maps import unit
from graceful.adapters.selection import Tried
from graceful.metrics.adapted import scores
from graceful.metrics.judgments import Judgments
from graceful.metrics.retrieval import Embeddings, Ranking, rank

GALLERY, VALIDATION = 0.7, 0.075
"""Shares of the glosses that are the gallery and validation queries; the others are test queries."""
PAIR_SHARES = (1.0, 0.3, 0.1)
"""Shares of the gallery's glosses on which maps are fitted."""
BACKFILLED = (0.25, 0.5, 0.75)
"""Shares of the gallery that are embedded again in a partial backfill."""
RECIPES = tuple(Recipe(regression=weight) for weight in (1.0, 5.0))
ALONE = Recipe(influence=0.0, regression=0.0)
Row = dict[str, Any]
Treatment = tuple[str, Callable[[], tuple[Ranking, Row]]]


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
