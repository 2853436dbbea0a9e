"""Formulas of the metrics, for the generated page of the reference. The notation stands in `NOTATION`."""

from __future__ import annotations

NOTATION = """\
Notation. Sums and means are over the samples `i` that both versions can answer, unless the formula says otherwise.

| symbol | meaning |
|---|---|
| `old_i`, `new_i` | 1 if the old or the new version has sample `i` right, else 0 |
| `E_old`, `E_new` | error rates, `mean(1 - old_i)` and `mean(1 - new_i)` |
| `NFR_k` | negative flip rate against ancestor `k`; `latest` is the ancestor before the new version |
| `p_old`, `p_new` | probabilities that a version gives to the classes |
| `rank_q(a, b)` | place of the first answer when version `a` embeds query `q` and version `b` embedded the gallery |
| `M(a, b)` | recall at 1, or mean average precision, of queries by `a` in a gallery by `b` |
| `[condition]` | 1 if the condition holds, else 0 |
"""
_FLIPS = {
    "error_rate": "mean(1 - new_i)",
    "chain_max_nfr": "max_k NFR_k",
    "chain_mean_nfr": "mean_k NFR_k",
    "usage_weighted_nfr": "sum_k usage_k NFR_k, sum_k usage_k = 1",
    "union_nfr": "mean([any k: old_ki = 1] (1 - new_i))",
    "unanimous_nfr": "mean([every k: old_ki = 1] (1 - new_i))",
    "step_nfr": "NFR_latest",
    "cumulative_negative_flips": "sum over steps k -> k+1 of sum_i v_ki (1 - v_(k+1)i)",
    "negative_flip_rate": "mean(old_i (1 - new_i))",
    "positive_flip_rate": "mean((1 - old_i) new_i)",
    "relative_nfr": "NFR / ((1 - E_old) E_new)",
    "macro_nfr": "mean over classes c of NFR on the samples of c",
    "negative_flip_impact": "sum old_i (1 - new_i) / sum (1 - new_i)",
    "negative_flip_severity": "mean over negative flips of p_new(predicted) - p_new(label)",
    "severe_flip_share": "mean over negative flips of [abs(p_old(label) - p_new(label)) >= 0.5]",
    "backward_trust": "sum old_i new_i / sum old_i",
    "backward_error": "sum (1 - old_i) (1 - new_i) / sum (1 - new_i)",
    "inconsistency": "mean((1 - new_i) [answer_new,i != answer_old,i])",
    "new_error_rate": "E_new",
    "old_error_rate": "E_old",
    "error_rate_change": "E_new - E_old = NFR - PFR",
    "shared_class_coverage": "mean over all test samples of [the old version knows the class of i]",
    "retrieval_nfr": "mean_q [rank_q(old, old) = 1] [rank_q(new, old) > 1]",
    "retrieval_nfr_backfilled": "mean_q [rank_q(old, old) = 1] [rank_q(new, new) > 1]",
    "cross_test_gain_recall_at_1": "recall of (new, old) - recall of (old, old)",
    "cross_test_gain_map": "mAP of (new, old) - mAP of (old, old)",
}
_SEARCHES = {"self_test": "new, new", "cross_test": "new, old", "old_old": "old, old"}
_OF_A_SEARCH = {
    "recall_at_1": "mean_q [rank_q({0}) = 1]",
    "recall_at_10": "mean_q [rank_q({0}) <= 10]",
    "mrr": "mean_q 1 / rank_q({0})",
    "ndcg_at_10": "mean_q DCG_q / best DCG_q, DCG_q = sum_(r <= 10) gain_r / log2(r + 1), searching ({0})",
    "map": "mean_q mean over answers a of (answers up to place r_a) / r_a, searching ({0})",
}
_PAIRS = {
    "pair": "M(q, g)",
    "pair_query_alone": "M(q, q)",
    "pair_paragon": "M(g, g)",
    "pair_reversed": "M(g, q)",
    "pair_gain": "M(q, g) - M(q, q)",
    "pair_gain_over_baseline": "M(q, g) - M(b, b), b: gallery.baseline",
    "pair_share": "M(q, g) / M(g, g)",
    "pair_gain_ratio": "(M(q, g) - M(q, q)) / (M(g, g) - M(q, q))",
}
_ADAPTERS = {
    "adapter_share": "M(adapted) / M(new, new)",
    "adapter_gain": "M(adapted) - M(old, old)",
    "full": "M(new, new)",
}


def formulas() -> dict[str, str]:
    """Return the formula of every metric of graceful, by name."""
    searches = {
        f"{search}_{ending}": formula.format(who)
        for search, who in _SEARCHES.items()
        for ending, formula in _OF_A_SEARCH.items()
    }
    pairs = {f"{name}_{ending}": formula for name, formula in _PAIRS.items() for ending in ("recall_at_1", "map")}
    adapters = {
        f"{name}_{ending}": formula
        for name, formula in _ADAPTERS.items()
        for ending in ("recall_at_1", "recall_at_10", "ndcg_at_10")
    }
    return _FLIPS | searches | pairs | adapters
