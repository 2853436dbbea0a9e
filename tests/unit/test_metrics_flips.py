"""Flips: definitions against a naive oracle, identities, published rows, and every edge rule."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from graceful.constraints import CHAIN_METRICS
from graceful.errors import DataError
from graceful.metrics import flips
from graceful.metrics.chain_flips import chain_flips
from graceful.metrics.intervals import Evidence
from graceful.metrics.predictions import NO_PREDICTION, Predictions, join
from graceful.report import Measurement
from tests.support import metric_oracles as oracle

Flags = NDArray[np.bool_]


def flags(*values: int) -> Flags:
    return np.array(values, dtype=bool)


def said(names: str, labels: str, **extra: object) -> Predictions:
    """One character per id: what was predicted (`-`: no answer), what is true."""
    predicted = np.array([NO_PREDICTION if name == "-" else name for name in names])
    ids = np.array([f"id{i:03d}" for i in range(len(names))])
    return Predictions(**{"ids": ids, "labels": np.array(list(labels)), "predicted": predicted, **extra})  # type: ignore[arg-type]


def values(found: dict[str, Measurement]) -> dict[str, float | None]:
    return {name: measurement.value for name, measurement in found.items()}


columns = st.integers(1, 40).flatmap(
    lambda n: st.lists(st.lists(st.sampled_from("abc"), min_size=n, max_size=n), min_size=5, max_size=5)
)


@settings(max_examples=80, deadline=None)
@given(columns)
def test_every_rate_equals_its_definition(drawn: list[list[str]]) -> None:
    labels, new, old = (np.array(column) for column in drawn[:3])
    ok_new, ok_old = labels == new, labels == old
    found = flips.compare(said("".join(new), "".join(labels)), said("".join(old), "".join(labels)), draws=100)
    assert found["new_error_rate"].value == pytest.approx(oracle.error_rate(ok_new))
    assert found["old_error_rate"].value == pytest.approx(oracle.error_rate(ok_old))
    assert found["negative_flip_rate"].value == pytest.approx(oracle.nfr(ok_new, ok_old))
    assert found["positive_flip_rate"].value == pytest.approx(oracle.pfr(ok_new, ok_old))
    assert found["macro_nfr"].value == pytest.approx(oracle.macro_nfr(ok_new, ok_old, labels.tolist()))
    for name, expected in (
        ("relative_nfr", oracle.relative_nfr(ok_new, ok_old)),
        ("backward_trust", oracle.share(ok_new, ok_old)),
        ("backward_error", oracle.share(~ok_old, ~ok_new)),
        ("negative_flip_impact", 0.0 if ok_new.all() else oracle.share(ok_old, ~ok_new)),
        ("inconsistency", oracle.rate(~ok_new & (new != old))),
    ):
        assert found[name].value == (None if expected is None else pytest.approx(expected)), name


@settings(max_examples=80, deadline=None)
@given(columns)
def test_identities_between_the_rates(drawn: list[list[str]]) -> None:
    labels, new, old = (np.array(column) for column in drawn[:3])
    ok_new, ok_old = labels == new, labels == old
    got = values(flips.compare(said("".join(new), "".join(labels)), said("".join(old), "".join(labels)), draws=100))
    error_new, error_old, nfr, pfr = (
        got[name] for name in ("new_error_rate", "old_error_rate", "negative_flip_rate", "positive_flip_rate")
    )
    assert error_new is not None
    assert error_old is not None
    assert nfr is not None
    assert pfr is not None
    assert error_new - error_old == pytest.approx(nfr - pfr)
    assert got["error_rate_change"] == pytest.approx(nfr - pfr)
    assert max(0.0, error_new - error_old) - 1e-12 <= nfr <= min(error_new, 1 - error_old) + 1e-12
    assert nfr - 1e-12 <= (got["inconsistency"] or 0.0) <= error_new + 1e-12
    if got["backward_trust"] is not None:
        assert nfr == pytest.approx((1 - got["backward_trust"]) * (1 - error_old))
    if got["backward_error"] is not None:
        assert nfr == pytest.approx((1 - got["backward_error"]) * error_new)
    assert oracle.rate(~ok_new & ~ok_old) == pytest.approx((error_old + error_new - nfr - pfr) / 2)


@settings(max_examples=70, deadline=None)
@given(columns)
def test_identities_along_a_chain(drawn: list[list[str]]) -> None:
    labels, *versions = ("".join(column) for column in drawn)
    new, *olds = (said(version, labels) for version in versions)
    got = values(chain_flips(new, olds, draws=100))
    own = [flips.compare(new, old, draws=100)["negative_flip_rate"].value or 0.0 for old in olds]
    error = flips.measure_alone(new)["error_rate"].value
    assert got["chain_max_nfr"] == pytest.approx(max(own))
    assert got["chain_mean_nfr"] == pytest.approx(sum(own) / 3)
    assert got["step_nfr"] == pytest.approx(own[0])
    unanimous, union = got["unanimous_nfr"], got["union_nfr"]
    assert unanimous is not None
    assert union is not None
    assert error is not None
    assert unanimous <= min(own) <= max(own) <= union + 1e-12
    assert union <= min(sum(own), error) + 1e-12
    middle = flips.compare(olds[0], olds[1], draws=100)["negative_flip_rate"].value or 0.0
    assert own[1] <= own[0] + middle + 1e-12


@settings(max_examples=60, deadline=None)
@given(columns)
def test_order_and_padding_change_nothing(drawn: list[list[str]]) -> None:
    labels, new, old, groups, _ = (np.array(column) for column in drawn)
    ids = np.array([f"id{i:03d}" for i in range(len(labels))])
    rng = np.random.default_rng(len(labels))
    confidence = rng.random(len(labels))

    def rows(which: NDArray[np.int64], predicted: NDArray[np.str_]) -> Predictions:
        return Predictions(
            ids=ids[which],
            labels=labels[which],
            predicted=predicted[which],
            groups=groups[which],
            confidence=confidence[which],
            label_confidence=confidence[which] / 2,
        )

    every = np.arange(len(labels))
    whole = flips.compare(rows(every, new), rows(every, old), draws=100)
    order = rng.permutation(np.concatenate([every, every[: len(every) // 2]]))
    assert flips.compare(rows(order, new), rows(order[::-1], old), draws=100) == whole


def test_a_version_against_itself_has_no_flips() -> None:
    one = said("abcab", "abcba")
    found = values(flips.compare(one, one))
    assert found["negative_flip_rate"] == found["positive_flip_rate"] == found["error_rate_change"] == 0.0
    assert found["inconsistency"] == 0.0


def test_a_hand_computed_case() -> None:
    ok_old, ok_new = flags(1, 1, 1, 0, 0, 1, 1, 1), flags(1, 0, 1, 1, 0, 1, 0, 1)
    nfr = flips.negative_flip_rate(ok_new, ok_old)
    assert (nfr.value, nfr.count, nfr.n) == (0.25, 2, 8)
    assert flips.positive_flip_rate(ok_new, ok_old).count == 1
    assert flips.relative_nfr(ok_new, ok_old).value == pytest.approx((2 / 8) / ((6 / 8) * (3 / 8)))
    assert flips.backward_trust(ok_new, ok_old).value == pytest.approx(4 / 6)
    assert flips.backward_error(ok_new, ok_old).value == pytest.approx(1 / 3)
    assert flips.negative_flip_impact(ok_new, ok_old).value == pytest.approx(2 / 3)


# Published rows: error of old, error of new, NFR, relative NFR, all in percent. Three misprinted cells are left out.
ROWS = [
    (30.24, 30.29, 6.44, 30.48), (30.24, 29.34, 5.72, 27.95), (30.24, 30.63, 2.50, 11.70), (30.24, 30.47, 2.35, 11.06),
    (26.07, 25.98, 1.70, 8.85), (30.24, 29.66, 6.39, 30.88), (40.69, 41.06, 7.77, 31.91), (40.69, 45.47, 11.07, 41.05),
    (40.69, 41.81, 2.83, 11.41), (40.69, 41.78, 2.71, 10.94), (35.68, 35.42, 2.01, 8.82), (30.24, 25.85, 4.89, 27.12),
    (30.24, 24.41, 3.78, 22.20), (30.24, 26.32, 2.90, 15.79), (30.24, 26.53, 2.92, 15.78), (26.07, 22.20, 1.64, 9.99),
    (30.24, 22.86, 4.03, 25.24), (30.24, 21.60, 3.28, 21.76), (30.24, 23.52, 2.50, 15.24), (30.24, 23.83, 2.56, 15.40),
    (28.58, 24.46, 3.27, 18.68), (28.58, 24.77, 2.85, 16.09), (26.39, 22.09, 2.75, 16.88), (19.30, 23.74, 7.70, 40.20),
    (19.30, 24.14, 7.07, 36.29), (19.30, 25.11, 7.37, 36.35), (17.53, 21.98, 6.72, 37.06),
    (30.24, 31.52, 5.25, 23.88), (30.24, 31.12, 3.90, 17.96), (30.24, 30.59, 2.75, 12.89), (30.24, 30.79, 2.73, 12.71),
    (30.24, 30.44, 2.39, 11.26), (30.24, 33.55, 6.94, 29.65),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "nfr", "relative"), ROWS)
def test_relative_nfr_of_published_rows(old: float, new: float, nfr: float, relative: float) -> None:
    n, old_wrong, new_wrong, flipped = 10_000, *(round(100 * percent) for percent in (old, new, nfr))
    ok_old, ok_new = np.arange(n) >= old_wrong, np.ones(n, dtype=bool)
    ok_new[: new_wrong - flipped] = False
    ok_new[n - flipped :] = False
    found = flips.relative_nfr(ok_new, ok_old, Evidence(draws=10)).value
    assert found is not None
    assert 100 * found == pytest.approx(relative, abs=0.05)
    assert max(0.0, new - old) <= nfr <= min(new, 100 - old)


def test_relative_nfr_is_one_for_independent_errors() -> None:
    rng = np.random.default_rng(0)
    found = flips.relative_nfr(rng.random(50_000) > 0.2, rng.random(50_000) > 0.3)
    assert found.lower is not None
    assert found.lower < 1.0 < (found.upper or 0.0)
    assert found.value == pytest.approx(1.0, abs=0.03)


def test_relative_nfr_is_undefined_without_new_errors_or_old_successes() -> None:
    assert flips.relative_nfr(flags(1, 1), flags(0, 1)).value is None
    assert flips.relative_nfr(flags(1, 1), flags(0, 1)).reason == "the new version makes no error"
    assert flips.relative_nfr(flags(0, 1), flags(0, 0)).reason == "the old version is never right"


def test_relative_nfr_without_flips_still_has_an_upper_end() -> None:
    ok_old, ok_new = np.arange(60) >= 30, np.arange(60) >= 10
    found = flips.relative_nfr(ok_new, ok_old)
    assert found.value == 0.0
    assert (found.upper or 0.0) > 0.3


def test_negative_flip_impact_of_a_perfect_version_is_zero() -> None:
    assert flips.negative_flip_impact(flags(1, 1), flags(0, 1)).value == 0.0


def test_shares_with_an_empty_denominator_are_undefined() -> None:
    assert flips.backward_trust(flags(1, 0), flags(0, 0)).value is None
    assert flips.backward_error(flags(1, 1), flags(0, 1)).value is None


def test_no_ids_leave_every_metric_undefined() -> None:
    empty = Predictions(ids=np.array([], dtype=str), labels=np.array([], dtype=str), predicted=np.array([], dtype=str))
    assert flips.measure_alone(empty)["error_rate"].value is None
    found = flips.compare(empty, empty)
    defined = {name for name, value in values(found).items() if value is not None}
    assert defined == set()


def test_nan_logits_are_wrong_and_counted() -> None:
    logits = np.array([[3.0, 1.0], [np.nan, 2.0], [0.0, 2.0]])
    found = Predictions.from_logits(
        logits, ids=np.array(["1", "2", "3"]), labels=np.array(["a", "b", "b"]), classes=("a", "b")
    )
    assert found.predicted.tolist() == ["a", NO_PREDICTION, "b"]
    error = flips.measure_alone(found)["error_rate"]
    assert (error.count, error.n) == (1, 3)
    assert error.reason == "1 predictions are not a class and count as wrong"


@pytest.mark.parametrize("missing", [np.array([0.0, np.nan]), np.array([0, -1]), np.array([0, None], dtype=object)])
def test_other_ways_to_have_no_answer_are_wrong_too(missing: NDArray[np.generic]) -> None:
    found = Predictions(ids=np.array([1, 2]), labels=np.array([0, 1]), predicted=missing)
    assert flips.measure_alone(found)["error_rate"].count == 1


def test_two_versions_without_an_answer_do_not_agree() -> None:
    joined = join(said("-a", "aa"), said("-a", "aa"))
    assert joined.agree.tolist() == [False, True]


def test_ties_go_to_the_first_name_whatever_the_order_of_the_head() -> None:
    ids, labels, tied = np.array(["1"]), np.array(["a"]), np.zeros((1, 3))
    for classes in (("a", "b", "c"), ("c", "b", "a"), ("b", "c", "a")):
        assert Predictions.from_logits(tied, ids=ids, labels=labels, classes=classes).predicted.tolist() == ["a"]


def test_class_order_and_monotone_score_maps_change_nothing() -> None:
    rng = np.random.default_rng(5)
    logits, classes = rng.normal(size=(50, 4)), ("a", "b", "c", "d")
    ids, labels = np.arange(50).astype(str), np.array(classes)[rng.integers(0, 4, 50)]
    first = Predictions.from_logits(logits, ids=ids, labels=labels, classes=classes)
    order = [2, 0, 3, 1]
    for other in (
        Predictions.from_logits(logits[:, order], ids=ids, labels=labels, classes=[classes[i] for i in order]),
        Predictions.from_logits(np.arctan(logits / 7), ids=ids, labels=labels, classes=classes),
    ):
        assert other.predicted.tolist() == first.predicted.tolist()


def test_probabilities_from_logits() -> None:
    logits = np.array([[0.0, np.log(3.0)], [400.0, -400.0]])
    found = Predictions.from_logits(logits, ids=np.array(["1", "2"]), labels=np.array(["a", "new"]), classes=("a", "b"))
    assert found.confidence is not None
    assert found.label_confidence is not None
    assert found.confidence.tolist() == pytest.approx([0.75, 1.0])
    assert found.label_confidence.tolist() == pytest.approx([0.25, 0.0])


def test_classes_old_does_not_know_and_retired_classes_leave_n_and_are_counted() -> None:
    labels = "aabbccd"
    new = said("abbbcab", labels, classes=("a", "b", "c"))
    old = said("aaabbbd", labels, classes=("a", "b", "d"))
    joined = join(new, old)
    assert (len(joined), joined.added, joined.retired, joined.total) == (4, 2, 1, 7)
    found = flips.compare(new, old)
    assert (found["negative_flip_rate"].count, found["negative_flip_rate"].n) == (1, 4)
    assert found["negative_flip_rate"].reason == (
        "2 ids of classes the old version does not know are left out; 1 ids of retired classes are left out"
    )
    assert found["shared_class_coverage"].value == pytest.approx(4 / 7)
    own = flips.measure_alone(new)["error_rate"]
    assert (own.count, own.n) == (2, 6)


def test_a_new_class_predicted_for_an_old_one_is_wrong() -> None:
    found = flips.compare(said("c", "a", classes=("a", "c")), said("a", "a", classes=("a",)))
    assert found["negative_flip_rate"].count == 1


def test_ids_that_do_not_join_are_refused() -> None:
    with pytest.raises(DataError, match="1 ids only in new"):
        flips.compare(said("aa", "aa"), said("a", "a"))


def test_labels_that_differ_between_versions_are_refused() -> None:
    with pytest.raises(DataError, match=r"1 ids have different labels .*'id001'"):
        flips.compare(said("ab", "ab"), said("ab", "aa"))


def test_conflicting_duplicates_are_refused() -> None:
    ids = np.array(["1", "1"])
    twice = Predictions(ids=ids, labels=np.array(["a", "a"]), predicted=np.array(["a", "b"]))
    with pytest.raises(DataError, match="duplicate ids with different predicted"):
        flips.measure_alone(twice)


def test_columns_of_another_length_are_refused() -> None:
    with pytest.raises(DataError, match=r"predictions\.labels: must have shape"):
        Predictions(ids=np.array(["1"]), labels=np.array(["a", "b"]), predicted=np.array(["a"]))
    with pytest.raises(DataError, match=r"logits: must be \[N, 2\]"):
        Predictions.from_logits(np.zeros((1, 3)), ids=np.array(["1"]), labels=np.array(["a"]), classes=("a", "b"))


def test_macro_weights_classes_evenly_and_flags_small_ones() -> None:
    labels = "a" * 200 + "b" * 10
    new, old = said("a" * 200 + "a" * 5 + "b" * 5, labels), said(labels, labels)
    found = flips.compare(new, old)
    assert found["macro_nfr"].value == pytest.approx((0 + 0.5) / 2)
    assert found["negative_flip_rate"].value == pytest.approx(5 / 210)
    assert found["macro_nfr"].reason == "1 of 2 classes have fewer than 100 ids"
    assert (found["macro_nfr"].upper or 0.0) > 0.3


def test_macro_of_balanced_classes_has_wilsons_width_at_least() -> None:
    classes, ok = np.repeat(np.arange(4), 100), np.ones(400, dtype=bool)
    found = flips.macro_nfr(ok, ok, classes)
    assert found.value == 0.0
    assert found.upper == pytest.approx(flips.negative_flip_rate(ok, ok).upper)


def test_severity_is_measured_over_the_flips_only() -> None:
    new = said("bba", "aaa", confidence=np.array([0.9, 0.6, 1.0]), label_confidence=np.array([0.1, 0.4, 1.0]))
    old = said("aaa", "aaa", confidence=np.array([0.8, 0.5, 1.0]), label_confidence=np.array([0.8, 0.5, 1.0]))
    found = flips.compare(new, old)
    assert found["negative_flip_severity"].value == pytest.approx((0.8 + 0.2) / 2)
    assert (found["severe_flip_share"].count, found["severe_flip_share"].n) == (1, 2)
    without = flips.compare(old, old)
    assert without["negative_flip_severity"].reason == "no negative flips"
    assert without["severe_flip_share"].value is None
    assert "negative_flip_severity" not in flips.compare(said("a", "a"), said("a", "a"))


def test_a_chain_without_ancestors_is_undefined() -> None:
    found = chain_flips(said("a", "a"), [])
    assert set(found) == set(CHAIN_METRICS)
    assert {measurement.reason for measurement in found.values()} == {"no ancestors yet"}


def test_a_hand_computed_chain() -> None:
    labels = "aaaaaaaa"
    new, latest, first = said("abbaabba", labels), said("aaabbaaa", labels), said("aabbbbaa", labels)
    found = chain_flips(new, [latest, first], [0.75, 0.25])
    assert found["chain_max_nfr"].value == 4 / 8
    assert found["chain_mean_nfr"].value == pytest.approx((4 / 8 + 2 / 8) / 2)
    assert found["usage_weighted_nfr"].value == pytest.approx(0.75 * 4 / 8 + 0.25 * 2 / 8)
    assert found["union_nfr"].count == 4
    assert found["unanimous_nfr"].count == 2
    assert (found["cumulative_negative_flips"].count, found["cumulative_negative_flips"].reason) == (
        4,
        "2 steps, 4 positive flips",
    )


def test_usage_must_add_up_and_is_optional() -> None:
    one = said("ab", "ab")
    assert chain_flips(one, [one])["usage_weighted_nfr"].reason == "usage shares were not given"
    for usage in ([0.5], [0.5, 0.5], [-1.0, 2.0]):
        with pytest.raises(DataError, match="usage"):
            chain_flips(one, [one], usage)


def test_each_ancestor_of_a_growing_chain_is_judged_on_its_own_classes() -> None:
    labels = "aabbc"
    new = said("abbac", labels, classes=("a", "b", "c"))
    latest, first = said("aabbc", labels, classes=("a", "b", "c")), said("aaaaa", labels, classes=("a",))
    found = chain_flips(new, [latest, first])
    assert found["chain_max_nfr"].value == pytest.approx(1 / 2)
    assert found["chain_mean_nfr"].value == pytest.approx((2 / 5 + 1 / 2) / 2)
    assert (found["union_nfr"].count, found["union_nfr"].n) == (2, 5)
    assert (found["unanimous_nfr"].count, found["unanimous_nfr"].n) == (1, 2)
    assert found["cumulative_negative_flips"].reason == "the versions do not answer the same ids"


def test_an_ancestor_that_shares_no_class_leaves_the_chain_undefined() -> None:
    found = chain_flips(said("a", "a", classes=("a",)), [said("z", "a", classes=("z",))])
    assert found["chain_max_nfr"].value is None
    assert found["chain_max_nfr"].reason == "1 of 1 ancestors share no id with the new version"


def test_the_interval_of_a_maximum_covers_it_and_does_not_vanish() -> None:
    one = said("ab" * 100, "ab" * 100)
    found = chain_flips(one, [one, one])
    assert found["chain_max_nfr"].value == 0.0
    assert found["chain_max_nfr"].upper == pytest.approx(0.0188, abs=1e-4)


def test_a_hundred_thousand_ids_are_compared_within_seconds() -> None:
    rng = np.random.default_rng(0)
    n = 100_000
    labels = rng.integers(0, 50, n)
    ids, groups = np.array([f"face/{i:06d}" for i in range(n)]), np.array([f"g{i % 120}" for i in range(n)])

    def version(error: float) -> Predictions:
        wrong = rng.random(n) < error
        return Predictions(ids=ids, labels=labels, predicted=np.where(wrong, 50, labels), groups=groups)

    new, old = version(0.1), version(0.15)
    start = time.process_time()
    found = flips.compare(new, old, draws=1000)
    assert time.process_time() - start < 5.0
    assert found["negative_flip_rate"].n == n


def test_evidence_about_a_subset_forgets_groups_outside_it() -> None:
    evidence = Evidence.of(np.array(["a", "a", "b", "b", "c"]))
    assert evidence.at(np.array([True, True, True, True, False])).groups == 2
    assert evidence.at(np.array([True, False, True, False, True])).units is None


def test_no_answer_is_wrong_even_where_the_label_is_missing_too() -> None:
    found = Predictions(ids=np.array([1, 2]), labels=np.array([-1, 0]), predicted=np.array([-1, 0]))
    assert flips.measure_alone(found)["error_rate"].count == 1
    assert join(found, found).ok_new.tolist() == [False, True]


def test_intervals_over_the_chain_widen_where_flips_come_in_groups() -> None:
    """Two designs of twenty flip whole: independent ids would pretend to forty observations."""
    ids, labels = np.arange(400), np.zeros(400, dtype=np.int64)
    groups = ids // 20
    wrong = np.where(groups < 2, 1, 0)
    olds = [Predictions(ids=ids, labels=labels, predicted=labels)] * 2
    loose, grouped = (
        chain_flips(Predictions(ids=ids, labels=labels, predicted=wrong, groups=known), olds)
        for known in (None, groups)
    )
    for name in ("chain_max_nfr", "chain_mean_nfr", "union_nfr", "unanimous_nfr", "step_nfr"):
        assert loose[name].value == grouped[name].value == 0.1
        assert grouped[name].upper > loose[name].upper + 0.05, name
