"""Intervals and joins: what stands behind a measurement."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graceful.errors import DataError
from graceful.metrics.intervals import Evidence, paired_difference, proportion, resampled_sums, statistic
from graceful.metrics.join import require_same_ids, sorted_unique
from tests.support import metric_oracles as oracle


def mean(sums: np.ndarray) -> np.ndarray:
    return sums[..., 0] / sums[..., 1]


def test_a_proportion_of_independent_ids_has_wilsons_interval() -> None:
    hits = np.arange(1000) < 10
    found = proportion(hits, Evidence())
    assert (found.value, found.count, found.n) == (0.01, 10, 1000)
    assert (found.lower, found.upper) == pytest.approx(oracle.wilson(10, 1000), abs=1e-12)


def test_no_ids_is_undefined_with_a_reason() -> None:
    none = np.zeros(0, dtype=bool)
    assert proportion(none, Evidence(), empty="nobody").reason == "nobody"
    assert proportion(none, Evidence()).value is None
    assert paired_difference(none, none, Evidence()).value is None
    assert statistic(np.zeros((0, 2)), mean, Evidence()).value is None


def test_ids_that_move_together_widen_the_interval() -> None:
    groups = np.repeat(np.arange(50), 100)
    hits = groups < 5
    apart, together = proportion(hits, Evidence()), proportion(hits, Evidence.of(groups))
    assert together.value == apart.value
    assert together.lower is not None
    assert together.upper is not None
    assert together.upper - together.lower > 5 * (apart.upper - apart.lower)


def test_a_grouped_proportion_without_hits_still_has_an_upper_end() -> None:
    groups = np.repeat(np.arange(40), 5)
    found = proportion(np.zeros(200, dtype=bool), Evidence.of(groups))
    assert found.upper == pytest.approx(0.0188, abs=1e-4)


def test_as_many_groups_as_ids_are_independent_ids() -> None:
    assert Evidence.of(np.array(["a", "b", "c"])).units is None
    assert Evidence.of(None).units is None
    assert Evidence.of(np.array(["a", "b", "a"])).groups == 2


def test_few_groups_are_pointed_out() -> None:
    found = proportion(np.zeros(100, dtype=bool), Evidence.of(np.repeat(np.arange(4), 25)))
    assert found.reason == "only 4 groups behind the interval"


def test_equal_seeds_give_equal_intervals_and_other_seeds_others() -> None:
    rng = np.random.default_rng(0)
    columns = np.stack([rng.random(300), np.ones(300)], axis=1)
    evidence = Evidence.of(rng.integers(0, 40, 300), seed=3)
    assert statistic(columns, mean, evidence) == statistic(columns, mean, evidence)
    assert statistic(columns, mean, evidence) != statistic(columns, mean, Evidence(units=evidence.units, seed=4))


def test_drawing_distinct_sums_equals_drawing_groups_one_by_one() -> None:
    rng = np.random.default_rng(1)
    groups, values = rng.integers(0, 60, 900), rng.integers(0, 3, 900)
    columns = np.stack([values, np.ones(900, dtype=np.int64)], axis=1)
    fast = resampled_sums(columns, Evidence.of(groups, draws=4000, seed=0))
    sums = np.stack([columns[groups == name].sum(axis=0) for name in range(60)])
    slow = np.stack([sums[rng.integers(0, 60, 60)].sum(axis=0) for _ in range(4000)])
    assert fast.mean(axis=0) == pytest.approx(slow.mean(axis=0), rel=0.01)
    assert fast.std(axis=0) == pytest.approx(slow.std(axis=0), rel=0.06)
    assert np.corrcoef(fast.T)[0, 1] == pytest.approx(np.corrcoef(slow.T)[0, 1], abs=0.06)


def test_the_bootstrap_of_a_mean_agrees_with_its_standard_error() -> None:
    values = np.random.default_rng(2).normal(size=2000)
    found = statistic(np.stack([values, np.ones(2000)], axis=1), mean, Evidence(draws=2000))
    half = 1.96 * values.std() / math.sqrt(2000)
    assert found.lower == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert found.upper == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_the_order_of_ids_does_not_matter() -> None:
    rng = np.random.default_rng(3)
    hits, groups = rng.random(500) < 0.1, rng.integers(0, 30, 500)
    order = rng.permutation(500)
    assert proportion(hits, Evidence.of(groups)) == proportion(hits[order], Evidence.of(groups[order]))


def test_a_paired_difference_is_hand_computable() -> None:
    first = np.array([True] * 30 + [False] * 70)
    second = np.array([True] * 20 + [False] * 75 + [True] * 5)
    found = paired_difference(first, second, Evidence())
    up, down = 11 / 102, 6 / 102
    half = 1.959963984540054 * math.sqrt((up + down - (up - down) ** 2) / 102)
    assert found.value == pytest.approx(0.05)
    assert (found.lower, found.upper) == pytest.approx((up - down - half, up - down + half), abs=1e-12)


def test_equal_flags_never_show_a_strict_gain() -> None:
    same = np.ones(10_000, dtype=bool)
    found = paired_difference(same, same, Evidence())
    assert found.value == 0.0
    assert found.lower is not None
    assert found.lower < 0.0 < (found.upper or 0.0)


def test_pairing_narrows_the_difference_of_means() -> None:
    rng = np.random.default_rng(4)
    base = rng.random(500)
    found = paired_difference(base + 0.01 + rng.normal(size=500) * 0.01, base, Evidence())
    assert found.lower is not None
    assert 0.005 < found.lower < 0.01 < (found.upper or 0.0) < 0.015


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=20))
def test_unique_keeps_each_id_once_in_order(names: list[str]) -> None:
    ids = np.array(names)
    content = np.array([ord(name) for name in names], dtype=np.float64)
    kept = sorted_unique(ids, {"content": content}, where="test")
    assert ids[kept].tolist() == sorted(set(names))
    assert [chr(int(value)) for value in content[kept]] == sorted(set(names))


def test_duplicates_that_disagree_are_refused_and_nan_agrees_with_nan() -> None:
    ids = np.array(["a", "b", "a"])
    with pytest.raises(DataError, match=r"test: 1 duplicate ids with different score, e\.g\. 'a'"):
        sorted_unique(ids, {"score": np.array([1.0, 2.0, 3.0])}, where="test")
    assert len(sorted_unique(ids, {"score": np.array([np.nan, 2.0, np.nan]), "none": None}, where="test")) == 2
    with pytest.raises(DataError, match="vectors"):
        sorted_unique(ids, {"vectors": np.array([[1.0, 2.0], [0.0, 0.0], [1.0, 2.5]])}, where="test")


def test_ids_that_do_not_join_are_counted_with_examples() -> None:
    with pytest.raises(DataError, match=r"2 ids only in new, e\.g\. 'a'; 1 ids only in old, e\.g\. 'z'"):
        require_same_ids(np.array(["a", "b", "c"]), np.array(["c", "z"]), names=("new", "old"))
    with pytest.raises(DataError, match="do not join"):
        require_same_ids(np.array(["1", "2"]), np.array([1, 2]), names=("new", "old"))
