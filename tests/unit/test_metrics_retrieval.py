"""Retrieval and verification against brute force, and every edge rule."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from graceful.errors import DataError
from graceful.metrics import retrieval
from graceful.metrics.judgments import Judgments
from graceful.metrics.retrieval import (
    NEVER,
    Embeddings,
    mean_average_precision,
    mean_reciprocal_rank,
    rank,
    recall_at_k,
    self_test,
)
from graceful.metrics.verification import pair_scores, threshold_at
from tests.support import metric_oracles as oracle


def embedded(vectors: object, labels: str, *, prefix: str = "i", **extra: object) -> Embeddings:
    ids = np.array([f"{prefix}{i:03d}" for i in range(len(labels))])
    columns = {"ids": ids, "labels": np.array(list(labels)), "vectors": np.asarray(vectors, dtype=np.float32), **extra}
    return Embeddings(**columns)  # type: ignore[arg-type]


def drawn(seed: int, n: int, *, prefix: str, size: int = 5, grid: bool = False) -> Embeddings:
    rng = np.random.default_rng(seed)
    vectors = rng.integers(-1, 2, (n, size)).astype(float) if grid else rng.normal(size=(n, size))
    return embedded(vectors, "".join(rng.choice(list("abcd"), n)), prefix=prefix)


def items(embeddings: Embeddings) -> list[tuple[str, str, list[float]]]:
    columns = (embeddings.ids.tolist(), embeddings.labels.tolist(), embeddings.vectors.tolist())
    return list(zip(*columns, strict=True))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 25), st.booleans(), st.booleans())
def test_every_query_equals_brute_force(seed: int, queries: int, gallery: int, shared: bool, grid: bool) -> None:
    left = drawn(seed, queries, prefix="g" if shared else "q", grid=grid)
    right = drawn(seed + 1, gallery, prefix="g", grid=grid)
    found = rank(left, right)
    for row, query in enumerate(items(left)):
        hits = oracle.ranked_hits(query, items(right))
        assert found.positives[row] == sum(hits)
        assert found.first_hit[row] == (hits.index(True) + 1 if any(hits) else NEVER)
        expected = oracle.average_precision(hits)
        if expected is None:
            assert np.isnan(found.average_precision[row])
        else:
            assert found.average_precision[row] == pytest.approx(expected, abs=1e-12)
            assert found.gain[row] == pytest.approx(oracle.gain(list(map(int, hits))), abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 8), st.integers(1, 25))
def test_judgments_decide_in_place_of_labels(seed: int, queries: int, gallery: int) -> None:
    """Judgments of ids that are not there, and of grade 0, count for nothing."""
    rng = np.random.default_rng(seed)
    left, right = drawn(seed, queries, prefix="q"), drawn(seed + 1, gallery, prefix="g")
    pairs = {
        (f"q{rng.integers(queries + 2):03d}", f"g{rng.integers(gallery + 2):03d}"): int(rng.integers(4))
        for _ in range(40)
    }
    judgments = Judgments(
        queries=np.array([query for query, _ in pairs]),
        items=np.array([item for _, item in pairs]),
        grades=np.array(list(pairs.values())),
    )
    found = rank(replace(left, judgments=judgments), right)
    for row, name in enumerate(found.ids.tolist()):
        vector = left.vectors[left.ids.tolist().index(name)]
        order = sorted(items(right), key=lambda item: (-round(oracle.cosine(vector, item[2]), 7), item[0]))
        grades = [pairs.get((name, item), 0) for item, _, _ in order]
        expected = oracle.gain(grades)
        assert found.positives[row] == sum(grade > 0 for grade in grades)
        if expected is None:
            assert np.isnan(found.gain[row])
        else:
            assert found.gain[row] == pytest.approx(expected, abs=1e-12)
            first = next(rank for rank, grade in enumerate(grades, start=1) if grade)
            assert found.first_hit[row] == first


def test_ndcg_equals_scikit_learn() -> None:
    rng = np.random.default_rng(3)
    left, right = drawn(5, 20, prefix="q"), drawn(6, 40, prefix="g")
    grades = rng.integers(0, 4, (20, 40))
    row, column = np.nonzero(grades)
    judgments = Judgments(queries=left.ids[row], items=right.ids[column], grades=grades[row, column])
    found = self_test(replace(left, judgments=judgments), right, draws=10)
    scores = [[oracle.cosine(query, item) for item in right.vectors] for query in left.vectors]
    assert found["self_test_ndcg_at_10"].value == pytest.approx(ndcg_score(grades, scores, k=10), abs=1e-12)


def test_a_negative_grade_is_refused_with_its_pair() -> None:
    with pytest.raises(DataError, match="query 'q1' and item 'g1' must be 0 or more, got -1"):
        Judgments(queries=np.array(["q1"]), items=np.array(["g1"]), grades=np.array([-1]))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_order_of_lists_chunks_and_padding_change_nothing(seed: int) -> None:
    left, right = drawn(seed, 20, prefix="q", grid=True), drawn(seed + 1, 30, prefix="g", grid=True)
    rng = np.random.default_rng(seed)
    whole = self_test(left, right, draws=100)

    def shuffled(one: Embeddings) -> Embeddings:
        rows = rng.permutation(np.concatenate([np.arange(len(one)), rng.integers(0, len(one), 5)]))
        return Embeddings(ids=one.ids[rows], labels=one.labels[rows], vectors=one.vectors[rows])

    assert self_test(shuffled(left), shuffled(right), draws=100) == whole
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrieval, "_CELLS", 70)
        assert self_test(left, right, draws=100) == whole


def test_a_rotation_and_a_scale_change_nothing() -> None:
    left, right = drawn(1, 50, prefix="q"), drawn(2, 80, prefix="g")
    turn = np.linalg.qr(np.random.default_rng(3).normal(size=(5, 5)))[0] * 7.0
    turned = [
        Embeddings(ids=one.ids, labels=one.labels, vectors=one.vectors.astype(np.float64) @ turn)
        for one in (left, right)
    ]
    assert rank(*turned).first_hit.tolist() == rank(left, right).first_hit.tolist()


def test_ties_are_ordered_by_gallery_id() -> None:
    query, same = embedded([[1, 0]], "a", prefix="q"), [[2.0, 0.0]] * 3
    for labels, first in (("abb", 1), ("bab", 2), ("bba", 3)):
        assert rank(query, embedded(same, labels)).first_hit.tolist() == [first]
    collapsed = embedded([[0.3, 0.7]] * 4, "bbba")
    backwards = Embeddings(ids=collapsed.ids[::-1], labels=collapsed.labels[::-1], vectors=collapsed.vectors)
    assert rank(query, backwards).first_hit.tolist() == [4]


def test_the_query_itself_is_never_a_result_whatever_the_lists() -> None:
    gallery = embedded([[1, 0], [0.9, 0.1], [0, 1]], "aab")
    query = Embeddings(ids=gallery.ids[:1], labels=gallery.labels[:1], vectors=gallery.vectors[:1])
    found = rank(query, gallery)
    assert (found.positives.tolist(), found.first_hit.tolist()) == ([1], [1])
    other = embedded([[1, 0]], "b", prefix="q")
    assert rank(other, gallery).first_hit.tolist() == [3]
    lonely = embedded([[1, 0], [0, 1]], "ab")
    assert rank(lonely, lonely).positives.tolist() == [0, 0]


def test_queries_without_a_positive_are_left_out_and_counted() -> None:
    queries = embedded([[1, 0], [0, 1]], "az", prefix="q")
    found = rank(queries, embedded([[1, 0], [0, 1]], "ab"))
    recall = recall_at_k(found)
    assert (recall.value, recall.n) == (1.0, 1)
    assert recall.reason == "1 of 2 queries have no positive in the gallery and are left out"
    assert mean_average_precision(found).value == 1.0
    nobody = rank(embedded([[1, 0]], "z", prefix="q"), embedded([[1, 0]], "a"))
    assert recall_at_k(nobody).value is None
    assert mean_average_precision(nobody).reason == "no query has a positive in the gallery"


def test_a_query_that_is_not_finite_is_wrong_and_counted() -> None:
    queries = embedded([[1, 0], [np.nan, 0], [np.inf, 0]], "aaa", prefix="q")
    found = rank(queries, embedded([[1, 0], [0, 1]], "aa"))
    assert found.first_hit.tolist() == [1, NEVER, NEVER]
    assert found.average_precision.tolist() == [1.0, 0.0, 0.0]
    recall = recall_at_k(found)
    assert (recall.count, recall.n, recall.reason) == (1, 3, "2 query vectors are not finite and count as wrong")


def test_a_gallery_item_that_is_not_finite_is_never_found() -> None:
    found = rank(embedded([[1, 0]], "a", prefix="q"), embedded([[np.nan, 0], [-1, 0]], "ab"))
    assert (found.positives.tolist(), found.first_hit.tolist()) == ([1], [NEVER])
    assert found.average_precision.tolist() == [0.0]


def test_a_zero_vector_is_orthogonal_to_everything() -> None:
    found = rank(embedded([[1, 0]], "a", prefix="q"), embedded([[-1, 0], [0, 0]], "ba"))
    assert found.first_hit.tolist() == [1]


def test_vectors_must_fit_and_the_gallery_must_hold_something() -> None:
    with pytest.raises(DataError, match=r"queries have 3 components, the gallery 2"):
        rank(embedded(np.ones((1, 3)), "a"), embedded(np.ones((1, 2)), "a"))
    with pytest.raises(DataError, match="gallery: is empty"):
        rank(embedded(np.ones((1, 2)), "a"), embedded(np.ones((0, 2)), ""))
    with pytest.raises(DataError, match=r"must be \[N, d\]"):
        embedded(np.ones(2), "aa")
    one = embedded([[1, 0], [0, 1]], "aa")
    twice = Embeddings(ids=np.array(["1", "1"]), labels=one.labels, vectors=one.vectors)
    with pytest.raises(DataError, match="different vectors"):
        rank(twice, one)


def test_no_queries_are_undefined() -> None:
    found = self_test(embedded(np.ones((0, 2)), ""), embedded(np.ones((1, 2)), "a"))
    assert [measurement.value for measurement in found.values()] == [None] * 5


def test_a_hand_computed_ranking() -> None:
    angles = np.radians([0, 10, 20, 30])
    gallery = embedded(np.stack([np.cos(angles), np.sin(angles)], axis=1), "baab")
    found = rank(embedded([[1, 0]], "a", prefix="q"), gallery)
    assert found.first_hit.tolist() == [2]
    assert found.average_precision.tolist() == pytest.approx([(1 / 2 + 2 / 3) / 2])
    assert mean_reciprocal_rank(found).value == pytest.approx(1 / 2)
    assert recall_at_k(found, 10).value == 1.0


def test_aligning_cuts_or_pads() -> None:
    one = embedded([[1, 2, 3]], "a")
    assert one.aligned(2).vectors.tolist() == [[1, 2]]
    assert one.aligned(5).vectors.tolist() == [[1, 2, 3, 0, 0]]
    assert one.aligned(3).vectors.tolist() == one.vectors.tolist()


def test_two_thousand_by_two_thousand_takes_about_a_second_and_a_wide_gallery_little_memory() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 50, 2000)
    one = Embeddings(ids=np.arange(2000).astype(str), labels=labels, vectors=rng.normal(size=(2000, 64)))
    start = time.process_time()
    self_test(one, one, draws=1000)
    assert time.process_time() - start < 5.0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=100, max_size=140), st.sampled_from([0.1, 0.13, 0.25, 0.5]))
def test_the_threshold_of_a_false_rate_equals_trying_every_score(scores: list[int], rate: float) -> None:
    found = threshold_at(np.array(scores, np.float32), total=len(scores), rate=rate)
    smallest = next(score for score in sorted(set(scores)) if oracle.rate([other > score for other in scores]) <= rate)
    assert found == smallest


def test_a_false_rate_needs_ten_accepted_impostors() -> None:
    assert threshold_at(np.zeros(99), total=99, rate=0.1) is None
    assert threshold_at(np.zeros(100), total=100, rate=0.1) == 0.0
    with pytest.raises(DataError, match=r"must be in \(0, 1\)"):
        threshold_at(np.zeros(99), total=99, rate=0.0)


def test_pairs_leave_out_the_item_itself_and_keep_the_largest_impostors() -> None:
    one = drawn(7, 30, prefix="i")
    every = pair_scores(one, one)
    same = one.labels[:, None] == one.labels[None, :]
    assert len(every.genuine) == same.sum() - 30
    assert every.impostors == len(every.impostor) == (~same).sum()
    few = pair_scores(one, one, largest=25)
    assert sorted(few.impostor) == sorted(every.impostor)[-25:]
    assert few.impostors == every.impostors
    thresholds = [threshold_at(scores.impostor, total=scores.impostors, rate=0.03) for scores in (few, every)]
    assert thresholds[0] == thresholds[1]
    with pytest.raises(DataError, match="largest of"):
        threshold_at(few.impostor, total=few.impostors, rate=0.5)
