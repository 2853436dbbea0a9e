"""Cross-test, matrix and gains: published rows, hand-computed cases, edge rules."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graceful.constraints import Constraint, Direction
from graceful.errors import DataError
from graceful.gate import Outcome, judge
from graceful.metrics import compatibility as compat
from graceful.metrics.compatibility import Matrix, compare_retrieval, compatibility_matrix
from graceful.metrics.retrieval import Embeddings, Ranking, rank
from graceful.report import Comparison, Report
from tests.support import metric_oracles as oracle

# Published rows: M(old, old), M(new, old), M(phi*, phi*) -> update gain, in percent.
GAINS = [
    (39.5, 42.2, 66.3, 10.1), (39.5, 46.8, 66.3, 27.2), (39.5, 42.9, 66.3, 12.7), (39.5, 42.7, 66.3, 11.9),
    (39.5, 13.0, 66.3, -98.9), (27.0, 27.5, 35.1, 6.2), (40.9, 44.3, 67.9, 12.6), (40.9, 44.4, 67.9, 13.0),
    (33.6, 25.0, 62.7, -29.6), (33.6, 38.7, 62.7, 17.5), (74.29, 76.13, 81.15, 26.8), (74.29, 77.16, 81.15, 41.8),
    (54.34, 53.43, 63.85, -9.6), (54.34, 54.82, 63.85, 5.0), (46.4, 65.1, 68.4, 85.0), (28.3, 44.0, 45.6, 90.8),
]  # fmt: skip


@pytest.mark.parametrize(("old", "cross", "paragon", "gain"), GAINS)
def test_update_gain_of_published_rows(old: float, cross: float, paragon: float, gain: float) -> None:
    found = compat.update_gain(cross=cross, old=old, paragon=paragon).value
    assert found is not None
    assert 100 * found == pytest.approx(gain, abs=0.06)


def lower(*rows: tuple[float, ...]) -> Matrix:
    return tuple(row + (None,) * (len(rows) - len(row)) for row in rows)


INFLUENCE = lower((46.6,), (54.4, 58.4), (46.0, 48.9, 64.3), (54.9, 57.5, 70.3, 73.9))
BASIS = lower((46.6,), (56.5, 61.0), (56.7, 61.5, 66.6), (57.9, 62.5, 72.0, 75.6))
INDEPENDENT = (46.6, 63.2, 67.9, 78.0)


@pytest.mark.parametrize(
    ("matrix", "compatible", "means"),
    [(INFLUENCE, (0.5, 0.5), (57.52, 4.47, -7.67)), (BASIS, (1.0, 0.667), (61.69, 6.07, -4.40))],
)
def test_chain_summaries_of_published_matrices(
    matrix: Matrix, compatible: tuple[float, float], means: tuple[float, float, float]
) -> None:
    own, independent = compatible
    accuracy, backward, forward = means
    assert compat.average_compatibility(matrix).value == own
    assert compat.average_compatibility(matrix, independent=INDEPENDENT).value == pytest.approx(independent, abs=1e-3)
    assert compat.average_multimodel_accuracy(matrix).value == pytest.approx(accuracy, abs=0.006)
    assert compat.backward_compatibility(matrix).value == pytest.approx(backward, abs=0.006)
    assert compat.forward_compatibility(matrix).value == pytest.approx(forward, abs=0.006)


def test_a_tie_is_not_compatible_and_is_counted() -> None:
    found = compat.average_compatibility(lower((0.5,), (0.5, 0.6), (0.7, 0.6, 0.8)))
    assert (found.value, found.count, found.n) == (pytest.approx(1 / 3), 1, 3)
    assert found.reason == "2 ties, which are not compatible"


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 5), st.data())
def test_average_compatibility_equals_its_definition(size: int, data: st.DataObject) -> None:
    drawn = data.draw(st.lists(st.integers(0, 3), min_size=size * size, max_size=size * size))
    rows = [[value / 3 for value in drawn[i * size : (i + 1) * size]] for i in range(size)]
    matrix = tuple(tuple(row) for row in rows)
    assert compat.average_compatibility(matrix).value == pytest.approx(oracle.average_compatibility(rows))


def test_true_zeros_count_in_the_mean() -> None:
    assert compat.average_multimodel_accuracy(lower((0.0,), (0.3, 0.6))).value == pytest.approx(0.3)


def test_one_version_has_no_pairs() -> None:
    single = lower((0.5,))
    for measure in (compat.average_compatibility, compat.backward_compatibility, compat.forward_compatibility):
        assert measure(single).value is None
        assert measure(single).reason == "a chain of one version has no pairs"
    assert compat.average_multimodel_accuracy(single).value == 0.5


def test_a_missing_cell_is_none_never_zero() -> None:
    matrix = compatibility_matrix({("v1", "v1"): 0.5, ("v2", "v2"): 0.6, ("v1", "v2"): 0.4}, ("v1", "v2"))
    assert matrix == ((0.5, 0.4), (None, 0.6))
    assert compat.average_compatibility(matrix).reason == "1 of 1 pairs are missing"
    assert compat.average_multimodel_accuracy(matrix).value is None
    assert compat.backward_compatibility(matrix).reason == "1 of 1 cells are missing"
    with pytest.raises(DataError, match="cells of v9"):
        compatibility_matrix({("v9", "v1"): 0.1}, ("v1",))


def test_gains_are_undefined_where_nothing_could_be_gained() -> None:
    assert compat.update_gain(cross=0.5, old=0.6, paragon=0.6).value is None
    assert compat.update_gain(cross=0.5, old=0.6, paragon=0.5).reason is not None
    assert compat.self_discount(self_test=0.7, paragon=0.8) == pytest.approx(0.1)


def space(
    seed: int, n: int, *, noise: float, size: int = 8, prefix: str = "i", pad: int = 0, groups: int | None = None
) -> Embeddings:
    """Noisy class centres that are the same for every seed."""
    rng = np.random.default_rng(seed)
    codes = np.arange(n) % 5
    vectors = np.random.default_rng(99).normal(size=(5, size))[codes] + noise * rng.normal(size=(n, size))
    vectors = np.concatenate([vectors, rng.normal(size=(n, pad)) * 0.1], axis=1)
    ids = np.array([f"{prefix}{i:04d}" for i in range(n)])
    together = None if groups is None else np.array([f"face{i % groups}" for i in range(n)])
    return Embeddings(ids=ids, labels=np.array(list("abcde"))[codes], vectors=vectors, groups=together)


def test_a_better_compatible_version_gains_and_passes_the_strict_gate() -> None:
    old_queries, old_gallery = space(1, 400, noise=1.5, prefix="q", groups=40), space(2, 200, noise=0.5, prefix="g")
    new_queries = space(3, 400, noise=0.3, prefix="q", pad=4, groups=40)
    new_gallery = space(4, 200, noise=0.2, prefix="g", pad=4)
    found = compare_retrieval(new_queries, new_gallery, old_queries, old_gallery)
    for metric in ("recall_at_1", "map"):
        cross, old, gain = (found[f"{name}_{metric}"] for name in ("cross_test", "old_old", "cross_test_gain"))
        assert cross.value is not None
        assert old.value is not None
        assert gain.value == pytest.approx(cross.value - old.value)
        assert gain.lower is not None
        assert 0.0 < gain.lower < gain.value < (gain.upper or 0.0)
    report = Report(
        model="m",
        version="v2",
        data={},
        measurements={},
        comparisons=(Comparison(against="v1", model_id="1", distance=1, measurements=found),),
    )
    strict = Constraint(metric="cross_test_gain_map", direction=Direction.ABOVE, bound=0.0)
    assert judge(report, [strict]).outcome is Outcome.PASSED


def test_an_unrelated_space_is_at_chance_and_loses() -> None:
    old_queries, old_gallery = space(1, 200, noise=0.3, prefix="q"), space(2, 200, noise=0.3, prefix="g")
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(8, 8)))[0]
    new_queries = Embeddings(ids=old_queries.ids, labels=old_queries.labels, vectors=old_queries.vectors @ turn)
    found = compare_retrieval(new_queries, None, old_queries, old_gallery)
    assert (found["cross_test_recall_at_1"].value or 0.0) < 0.5 < (found["old_old_recall_at_1"].value or 0.0)
    assert (found["cross_test_gain_map"].upper or 0.0) < 0.0
    assert "retrieval_nfr_backfilled" not in found
    assert found["retrieval_nfr"].reason == "on the old gallery"
    right = rank(old_queries, old_gallery).first_hit == 1
    wrong = rank(new_queries, old_gallery).first_hit != 1
    assert found["retrieval_nfr"].value == pytest.approx(oracle.rate(right & wrong))


def test_a_version_against_itself_gains_and_flips_nothing() -> None:
    queries, gallery = space(1, 100, noise=1.0, prefix="q"), space(2, 100, noise=1.0, prefix="g")
    found = compare_retrieval(queries, gallery, queries, gallery)
    assert found["cross_test_gain_recall_at_1"].value == found["cross_test_gain_map"].value == 0.0
    assert found["retrieval_nfr"].value == found["retrieval_nfr_backfilled"].value == 0.0


@pytest.mark.parametrize("size", [4, 8, 12])
def test_new_vectors_are_cut_or_padded_to_the_old_size(size: int) -> None:
    queries, gallery = space(1, 60, noise=1.0, prefix="q"), space(2, 60, noise=1.0, prefix="g")
    found = compare_retrieval(queries.aligned(size), None, queries, gallery)
    same = found["cross_test_gain_map"].value == 0.0
    assert same == (size >= 8)


def test_queries_and_galleries_must_join_and_agree() -> None:
    queries, gallery = space(1, 10, noise=1.0, prefix="q"), space(2, 10, noise=1.0, prefix="g")
    with pytest.raises(DataError, match=r"new queries \(10 ids\) and old queries \(9 ids\) do not join"):
        compare_retrieval(queries, None, space(1, 9, noise=1.0, prefix="q"), gallery)
    with pytest.raises(DataError, match="new gallery"):
        compare_retrieval(queries, space(1, 9, noise=1.0, prefix="g"), queries, gallery)
    relabelled = Embeddings(ids=queries.ids, labels=queries.labels[::-1], vectors=queries.vectors)
    with pytest.raises(DataError, match="different labels in new and old"):
        compare_retrieval(relabelled, None, queries, gallery)


def test_intervals_of_the_cross_test_widen_where_queries_come_in_groups() -> None:
    """Two of ten designs lose their place in the old gallery, whole: ten observations, not two hundred."""
    labels = np.array(["a", "b"] * 100)
    axes = np.eye(2)[np.arange(200) % 2]
    designs = np.repeat(np.arange(10), 20)
    names = np.array([f"q{index:03d}" for index in range(200)])
    gallery = Embeddings(ids=np.array(["ga", "gb"]), labels=np.array(["a", "b"]), vectors=np.eye(2))

    def embedded(vectors: np.ndarray, groups: np.ndarray | None) -> Embeddings:
        return Embeddings(ids=names, labels=labels, vectors=vectors, groups=groups)

    moved = np.where((designs < 2)[:, None], axes[:, ::-1], axes)
    loose, grouped = (
        compare_retrieval(embedded(moved, groups), None, embedded(axes, groups), gallery) for groups in (None, designs)
    )
    for name, value in (("cross_test_gain_recall_at_1", -0.2), ("cross_test_gain_map", -0.1)):
        assert loose[name].value == grouped[name].value == pytest.approx(value)
        assert grouped[name].lower < loose[name].lower - 0.05, name
    assert grouped["retrieval_nfr"].upper > loose["retrieval_nfr"].upper + 0.1


def test_searches_of_a_report_are_those_of_each_pair_and_done_once(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = [(space(seed, 12, noise=1.0, prefix="q"), space(seed, 12, noise=1.0, prefix="g")) for seed in range(3)]
    calls = []

    def counted(queries: Embeddings, gallery: Embeddings) -> Ranking:
        calls.append((queries, gallery))
        return rank(queries, gallery)

    monkeypatch.setattr(compat, "rank", counted)
    searches = compat.Searches()
    new, *others = versions
    shared = [compare_retrieval(*new, *old, draws=20, searches=searches) for old in others * 2]
    assert len(calls) == 5  # the new version on three galleries, and two old versions on their own
    assert shared[:2] == [compare_retrieval(*new, *old, draws=20) for old in others]
    assert shared[:2] == shared[2:]
    values = {shared[0][name].value for name in ("cross_test_map", "old_old_map")} | {shared[1]["cross_test_map"].value}
    assert len(values) == 3
