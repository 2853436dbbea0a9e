"""A search with an adapter, against the old search and the one after embedding all again. Driver, NumPy.

Old/old: old queries in the old gallery. Full: new queries in the gallery that the new version has embedded again.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from graceful.catalogue import ADAPTED
from graceful.metrics.compatibility import gains, retrieval_nfr
from graceful.metrics.intervals import Evidence, paired_difference, statistic
from graceful.metrics.join import require_same_ids
from graceful.metrics.retrieval import DEPTH, Ranking, measured
from graceful.report import Measurement

Floats = NDArray[np.float64]


def measure_adapter(
    adapted: Ranking, *, old_old: Ranking, full: Ranking, draws: int = 1000, seed: int = 0
) -> dict[str, Measurement]:
    """Measure a search with an adapter, query by query.

    Args:
        adapted: With the adapter on either side.
        old_old: Of the old search.
        full: After embedding all again.
        draws: Bootstrap draws.
        seed: The seed of the draws.

    Returns:
        `cross_test_*`, `old_old_*`, `cross_test_gain_*` and `retrieval_nfr` as of `compare_retrieval`, with the adapted
        search as the new one, `retrieval_nfr_backfilled`, and the metrics of `catalogue.About.ADAPTER`.

    Raises:
        DataError: The searches are of other queries.
    """
    for name, ranking in (("old queries", old_old), ("queries of the full search", full)):
        require_same_ids(adapted.ids, ranking.ids, names=("adapted queries", name))
    measurements = gains(old_old, adapted, draws=draws, seed=seed)
    for name, ranking in (("cross_test", adapted), ("old_old", old_old)):
        values = measured(ranking, draws=draws, seed=seed)
        measurements |= {f"{name}_{ending}": value for ending, value in values.items()}
    measurements["retrieval_nfr"] = retrieval_nfr(old_old, adapted, state="adapted search", draws=draws, seed=seed)
    measurements["retrieval_nfr_backfilled"] = retrieval_nfr(
        old_old, full, state="backfilled gallery", draws=draws, seed=seed
    )
    judged = adapted.judged & old_old.judged & full.judged
    evidence = Evidence.of(None if adapted.groups is None else adapted.groups[judged], draws=draws, seed=seed)
    for ending in ADAPTED:
        with_adapter, before, after = (scores(ranking, ending)[judged] for ranking in (adapted, old_old, full))
        measurements |= {
            f"adapter_gain_{ending}": paired_difference(with_adapter, before, evidence, reason=adapted.caveat),
            f"adapter_share_{ending}": statistic(
                np.stack([with_adapter, after], axis=1).astype(np.float64),
                _share,
                evidence,
                undefined="the full search finds nothing",
                reason=adapted.caveat,
            ),
            f"full_{ending}": measured(full, draws=draws, seed=seed)[ending],
        }
    return measurements


def scores(ranking: Ranking, ending: str) -> NDArray[np.generic]:
    """Return one score for each query: whether an answer is among the first 1 or 10, or its discounted gain."""
    if ending == "ndcg_at_10":
        return ranking.gain
    return np.asarray(ranking.first_hit <= (1 if ending == "recall_at_1" else DEPTH))


def _share(sums: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(sums[..., 1] > 0.0, sums[..., 0] / sums[..., 1], np.nan)
