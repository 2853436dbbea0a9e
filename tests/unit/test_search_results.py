"""Two searches compared result by result, against hand-made cases and a slow oracle."""

from __future__ import annotations

import numpy as np
import pytest

from graceful.metrics import search_results
from graceful.metrics.search_results import Relevance, gain, measured, overlap, rank_biased_overlap


def lists(*rows: str) -> np.ndarray:
    width = max(map(len, rows))
    return np.array([[*row, *[""] * (width - len(row))] for row in rows])


def slow_overlap(first: list[str], second: list[str], p: float) -> float:
    """Webber et al.: (1 - p) sum p^(d-1) A_d over the known depths, the last agreement for all further ones."""
    agreement = [len(set(first[:depth]) & set(second[:depth])) / depth for depth in range(1, len(first) + 1)]
    known = sum((1 - p) * p ** (depth - 1) * share for depth, share in enumerate(agreement, start=1))
    return known + agreement[-1] * sum((1 - p) * p ** (depth - 1) for depth in range(len(first) + 1, 2000))


def test_overlap_counts_shared_results_of_those_returned() -> None:
    first, second = lists("abcd", "abcd", "ab", "abcd"), lists("dcba", "wxyz", "ba", "abxy")
    np.testing.assert_allclose(overlap(first, second), [1.0, 0.0, 1.0, 0.5])
    assert overlap(lists("ab"), np.array([["", ""]])).tolist() == [0.0]


@pytest.mark.parametrize("p", [0.5, 0.9])
def test_rank_biased_overlap_is_that_of_the_paper(p: float) -> None:
    rng = np.random.default_rng(0)
    rows = [rng.permutation(list("abcdefghijkl"))[:6] for _ in range(40)]
    first, second = np.array(rows[:20]), np.array(rows[20:])
    expected = [slow_overlap(a.tolist(), b.tolist(), p) for a, b in zip(first, second, strict=True)]
    np.testing.assert_allclose(rank_biased_overlap(first, second, persistence=p), expected, atol=1e-12)
    np.testing.assert_allclose(rank_biased_overlap(first, first, persistence=p), 1.0)
    top, bottom = rank_biased_overlap(lists("abcd", "abcd"), lists("bacd", "abdc"), persistence=p)
    assert top < bottom < 1.0


def test_relevance_by_labels_and_by_clicks_says_the_same() -> None:
    ids = np.array(["q1", "q2", "q3"])
    first, second = lists("abc", "abc", "abc"), lists("bac", "cxy", "xyz")
    labels = {"a": "one", "b": "two", "c": "two", "x": "two", "y": "two", "z": "two"}
    queries = np.array(["one", "one", "none"])
    named = [np.vectorize(labels.__getitem__)(side) for side in (first, second)]
    by_label = Relevance.of_labels(queries, (named[0], named[1]), {"one": 1, "two": 5})
    clicks = {("q1", "a"): 1.0, ("q2", "a"): 1.0, ("elsewhere", "b"): 1.0}
    by_click = Relevance.of_grades(ids, (first, second), clicks)
    for part in ("first", "second", "ideal"):
        np.testing.assert_array_equal(getattr(by_label, part), getattr(by_click, part))
    found = measured(first, second, by_click, None, draws=200)
    assert found["retrieval_nfr"].value == 1.0
    names = ("a_recall_at_1", "b_recall_at_3", "gain_recall_at_3")
    assert [found[name].value for name in names] == [1.0, 0.5, -0.5]
    assert found["b_ndcg_at_3"].value == pytest.approx(0.5 / np.log2(3))
    assert found["retrieval_nfr"].n == 2
    assert "1 of 3 queries have no known answer" in (found["retrieval_nfr"].reason or "")
    assert search_results.worst(first, second, by_click).tolist() == [1, 0, 2]
    assert search_results.worst(first, second, None).tolist() == [2, 1, 0]


def test_grades_count_in_the_gain() -> None:
    relevance = Relevance.of_grades(np.array(["q"]), (lists("ab"), lists("ba")), {("q", "a"): 1.0, ("q", "b"): 3.0})
    ideal = 3 + 1 / np.log2(3)
    np.testing.assert_allclose(gain(relevance.first, relevance.ideal), (1 + 3 / np.log2(3)) / ideal)
    np.testing.assert_allclose(gain(relevance.second, relevance.ideal), 1.0)


def test_intervals_are_paired_and_respect_groups() -> None:
    rng = np.random.default_rng(1)
    right, groups = rng.random(200) < 0.7, np.repeat(np.arange(25), 8)
    flips = right & (groups % 5 == 0)
    first = np.where(right, "a", "b")[:, None]
    second = np.where(right & ~flips, "a", "b")[:, None]
    relevance = Relevance.of_grades(
        np.array([f"q{row}" for row in range(200)]), (first, second), {(f"q{row}", "a"): 1.0 for row in range(200)}
    )
    alone, grouped = (measured(first, second, relevance, units, draws=400) for units in (None, groups))
    assert alone["retrieval_nfr"].count == flips.sum()
    gains = (found["gain_recall_at_1"] for found in (alone, grouped))
    alone_width, grouped_width = ((gain.upper or 0.0) - (gain.lower or 0.0) for gain in gains)
    assert grouped_width > alone_width
