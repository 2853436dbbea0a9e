"""Query models on the index of a gallery model: the four pairs and what they are worth. Driver and workers, NumPy.

q is a query model, g a gallery model, M(a, b) a retrieval metric of queries embedded by a on an index embedded by b.
M(q, g) is what a device gets, M(q, q) what it would get of an index of its own, M(g, g) the paragon.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from graceful.catalogue import PAIRED
from graceful.errors import DataError
from graceful.metrics.inputs import VersionOutputs
from graceful.metrics.intervals import Evidence, paired_difference, statistic
from graceful.metrics.join import require_same_ids
from graceful.metrics.retrieval import Ranking, mean_average_precision, rank, recall_at_k
from graceful.report import Measurement

Floats = NDArray[np.float64]
NO_BASELINE = "gallery.baseline names no version that was trained alone"


def measure_pair(
    query: VersionOutputs,
    gallery: VersionOutputs,
    *,
    baseline: VersionOutputs | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, Measurement]:
    """Measure a query model on the index of a gallery model, query by query.

    Args:
        query: The small model.
        gallery: The large one, whose embeddings have the same length.
        baseline: A model that was trained alone; None: gains over it are undefined.
        draws: Bootstrap draws.
        seed: The seed of the draws.

    Returns:
        The metrics of `catalogue.About.PAIR`.

    Raises:
        DataError: Retrieval was not measured, or the models answered other queries.
    """
    pairs = {"": (query, gallery), "query_alone_": (query, query), "paragon_": (gallery, gallery)}
    pairs["reversed_"] = (gallery, query)
    if baseline is not None:
        pairs["baseline"] = (baseline, baseline)
    rankings = {name: ranked(*pair) for name, pair in pairs.items()}
    for name, ranking in rankings.items():
        require_same_ids(rankings[""].ids, ranking.ids, names=("queries of the pair", f"queries of {name or 'it'}"))
    judged = np.logical_and.reduce([ranking.judged for ranking in rankings.values()])
    groups = rankings[""].groups
    evidence = Evidence.of(None if groups is None else groups[judged], draws=draws, seed=seed)
    measurements: dict[str, Measurement] = {}
    for ending in PAIRED:
        single = recall_at_1 if ending == PAIRED[0] else mean_average_precision
        for name in ("", "query_alone_", "paragon_", "reversed_"):
            measurements[f"pair_{name}{ending}"] = single(rankings[name], draws=draws, seed=seed)
        scores = {name: _scores(ranking, ending)[judged] for name, ranking in rankings.items()}
        measurements |= _worth(scores, ending, evidence)
    return measurements


def recall_at_1(ranking: Ranking, *, draws: int = 1000, seed: int = 0) -> Measurement:
    """Return the share of queries whose first result is right; arguments as of `mean_average_precision`."""
    return recall_at_k(ranking, 1, draws=draws, seed=seed)


def ranked(query: VersionOutputs, gallery: VersionOutputs) -> Ranking:
    """Return the search of a gallery model's index by the queries of a query model.

    Raises:
        DataError: Retrieval was not measured.
    """
    if query.queries is None or gallery.gallery is None:
        raise DataError("evaluate.retrieval is false, and query models are measured by retrieval; write true")
    return rank(query.queries, gallery.gallery)


def score(ranking: Ranking, ending: str) -> float | None:
    """Return R@1 or mAP without an interval; None where no query has an answer."""
    return float(_scores(ranking, ending)[ranking.judged].mean()) if ranking.judged.any() else None


def _scores(ranking: Ranking, ending: str) -> NDArray[np.generic]:
    """Return one score for each query: whether it is right at rank 1, or its average precision."""
    return np.asarray(ranking.first_hit == 1) if ending == PAIRED[0] else ranking.average_precision


def _worth(scores: dict[str, NDArray[np.generic]], ending: str, evidence: Evidence) -> dict[str, Measurement]:
    """Return the gains and shares of one metric, with paired intervals."""
    pair, alone, paragon = scores[""], scores["query_alone_"], scores["paragon_"]
    columns = np.stack([values.astype(np.float64) for values in (pair, alone, paragon)], axis=1)
    worth = {
        f"pair_gain_{ending}": paired_difference(pair, alone, evidence),
        f"pair_gain_over_baseline_{ending}": Measurement(value=None, reason=NO_BASELINE),
        f"pair_share_{ending}": statistic(columns, _share, evidence, undefined="the gallery model finds nothing"),
        f"pair_gain_ratio_{ending}": statistic(
            columns, _gain_ratio, evidence, undefined="the gallery model is not better than the query model alone"
        ),
    }
    if "baseline" in scores:
        worth[f"pair_gain_over_baseline_{ending}"] = paired_difference(pair, scores["baseline"], evidence)
    return worth


def _divided(numerator: Floats, denominator: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(denominator > 0.0, numerator / denominator, np.nan)


def _share(sums: Floats) -> Floats:
    return _divided(sums[..., 0], sums[..., 2])


def _gain_ratio(sums: Floats) -> Floats:
    return _divided(sums[..., 0] - sums[..., 1], sums[..., 2] - sums[..., 1])
