"""The gate: who passes, who is held, and what it says."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graceful.constraints import ALL, LATEST, SELF, Constraint, Direction
from graceful.errors import DataError, SpecError
from graceful.gate import Outcome, Verdict, judge
from graceful.proportions import minimum_n, quantile, wilson
from graceful.report import Comparison, Measurement, Report
from tests.support import metric_oracles as oracle


def share(count: int, n: int) -> Measurement:
    lower, upper = wilson(count, n)
    return Measurement(value=count / n, lower=lower, upper=upper, count=count, n=n)


def between(lower: float, value: float, upper: float, n: int = 1000) -> Measurement:
    return Measurement(value=value, lower=lower, upper=upper, n=n)


def report(own: dict[str, Measurement] | None = None, *ancestors: dict[str, Measurement]) -> Report:
    comparisons = tuple(
        Comparison(against=f"v{len(ancestors) - i}", model_id=f"m-{i}", distance=i + 1, measurements=measurements)
        for i, measurements in enumerate(ancestors)
    )
    version = f"v{len(ancestors) + 1}"
    return Report(model="glyphs", version=version, data={}, measurements=own or {}, comparisons=comparisons)


def nfr(bound: float, against: str = ALL) -> Constraint:
    return Constraint(metric="negative_flip_rate", direction=Direction.AT_MOST, bound=bound, against=against)


def gain(bound: float = 0.0, direction: Direction = Direction.ABOVE) -> Constraint:
    return Constraint(metric="cross_test_gain_map", direction=direction, bound=bound)


def test_a_version_is_held_although_its_value_meets_the_bound_when_the_upper_end_does_not() -> None:
    verdict = judge(report({}, {"negative_flip_rate": share(141, 7440)}), [nfr(0.02)])
    assert verdict.outcome is Outcome.HELD
    assert verdict.findings[0].reason == (
        "negative_flip_rate against v1: upper end 2.23 % exceeds the bound 2.00 % (1.90 %, 141 of 7440)"
    )


def test_a_version_passes_when_the_upper_end_is_within_the_bound() -> None:
    verdict = judge(report({}, {"negative_flip_rate": share(106, 7440)}), [nfr(0.02)])
    assert verdict.outcome is Outcome.PASSED
    assert "upper end 1.72 % is within the bound 2.00 % (1.42 %, 106 of 7440)" in verdict.findings[0].reason


def test_a_bound_from_below_looks_at_the_lower_end() -> None:
    evidence = report({"self_test_recall_at_1": between(0.68, 0.71, 0.74)})
    met = Constraint(metric="self_test_recall_at_1", direction=Direction.AT_LEAST, bound=0.68, against=SELF)
    unmet = Constraint(metric="self_test_recall_at_1", direction=Direction.AT_LEAST, bound=0.70, against=SELF)
    assert judge(evidence, [met]).outcome is Outcome.PASSED
    held = judge(evidence, [unmet])
    assert held.outcome is Outcome.HELD
    assert held.findings[0].reason.startswith("self_test_recall_at_1: lower end 68.00 % is below the bound 70.00 %")


def test_above_is_strict_and_at_least_is_not() -> None:
    touching = report({}, {"cross_test_gain_map": between(0.0, 0.03, 0.06)})
    assert judge(touching, [gain()]).outcome is Outcome.HELD
    assert judge(touching, [gain(direction=Direction.AT_LEAST)]).outcome is Outcome.PASSED
    clear = report({}, {"cross_test_gain_map": between(1e-9, 0.03, 0.06)})
    assert judge(clear, [gain()]).outcome is Outcome.PASSED


def test_an_undefined_metric_is_held_with_the_recorded_reason() -> None:
    verdict = judge(report({}, {"negative_flip_rate": Measurement(value=None, reason="no ids")}), [nfr(1.0)])
    assert verdict.outcome is Outcome.HELD
    assert verdict.findings[0].reason == "negative_flip_rate against v1: undefined: no ids"


def test_a_value_without_an_interval_decides_nothing() -> None:
    verdict = judge(report({}, {"negative_flip_rate": Measurement(value=0.0, n=7440)}), [nfr(0.5)])
    assert verdict.outcome is Outcome.HELD
    assert "without an interval" in verdict.findings[0].reason


def test_relative_nfr_of_a_version_without_errors_is_met() -> None:
    constraint = Constraint(metric="relative_nfr", direction=Direction.AT_MOST, bound=0.1)
    undefined = Measurement(value=None, n=500, reason="the new version makes no error")
    flawless = report({}, {"relative_nfr": undefined, "new_error_rate": share(0, 500)})
    assert judge(flawless, [constraint]).outcome is Outcome.PASSED
    hopeless_old = report({}, {"relative_nfr": undefined, "new_error_rate": share(3, 500)})
    assert judge(hopeless_old, [constraint]).outcome is Outcome.HELD
    nothing_measured = report({}, {"relative_nfr": undefined, "new_error_rate": Measurement(value=None)})
    assert judge(nothing_measured, [constraint]).outcome is Outcome.HELD


def test_too_few_ids_are_insufficient_evidence_even_without_a_single_flip() -> None:
    verdict = judge(report({}, {"negative_flip_rate": share(0, 200)}), [nfr(0.01)])
    assert verdict.outcome is Outcome.HELD
    assert verdict.findings[0].reason == (
        "negative_flip_rate against v1: insufficient evidence: 200 ids can show 1.88 % at best,"
        " the bound 1.00 % needs 381 (0.00 %, 0 of 200)"
    )
    assert judge(report({}, {"negative_flip_rate": share(0, 381)}), [nfr(0.01)]).outcome is Outcome.PASSED
    assert judge(report({}, {"negative_flip_rate": share(0, 380)}), [nfr(0.01)]).outcome is Outcome.HELD


def test_too_few_ids_for_a_bound_from_below() -> None:
    constraint = Constraint(metric="backward_trust", direction=Direction.AT_LEAST, bound=0.99)
    verdict = judge(report({}, {"backward_trust": share(200, 200)}), [constraint])
    assert verdict.outcome is Outcome.HELD
    assert "insufficient evidence: 200 ids can show 98.12 % at best, the bound 99.00 % needs 381" in (
        verdict.findings[0].reason
    )


@pytest.mark.parametrize("against", [LATEST, ALL])
def test_a_first_link_meets_constraints_against_ancestors_without_evidence(against: str) -> None:
    verdict = judge(report({"error_rate": share(3, 100)}), [nfr(0.0, against)])
    assert verdict.outcome is Outcome.PASSED
    assert verdict.findings[0].measurement is None
    assert verdict.findings[0].reason == (
        f"negative_flip_rate against {against}: no ancestors yet, met without evidence"
    )


def test_a_chain_metric_of_a_first_link_is_vacuous_but_not_of_a_second() -> None:
    constraint = Constraint(metric="chain_max_nfr", direction=Direction.AT_MOST, bound=0.02, against=SELF)
    undefined = {"chain_max_nfr": Measurement(value=None, reason="no ancestors yet")}
    assert judge(report(undefined), [constraint]).outcome is Outcome.PASSED
    assert judge(report(undefined, {}), [constraint]).outcome is Outcome.HELD


def test_latest_is_the_nearest_ancestor_and_all_is_every_one() -> None:
    evidence = report({}, {"negative_flip_rate": share(1, 9000)}, {"negative_flip_rate": share(900, 9000)})
    assert judge(evidence, [nfr(0.02, LATEST)]).outcome is Outcome.PASSED
    everyone = judge(evidence, [nfr(0.02, ALL)])
    assert [(finding.against, finding.met) for finding in everyone.findings] == [("v2", True), ("v1", False)]
    assert everyone.outcome is Outcome.HELD
    assert judge(evidence, [nfr(0.02, "v1")]).outcome is Outcome.HELD


def test_an_ancestor_that_lacks_the_metric_is_held_as_not_measured() -> None:
    verdict = judge(report({}, {"negative_flip_rate": share(0, 9000)}, {}), [nfr(0.02)])
    assert verdict.outcome is Outcome.HELD
    assert verdict.findings[1].reason == "negative_flip_rate against v1: not measured"


def test_an_unknown_ancestor_is_an_error_of_the_spec() -> None:
    with pytest.raises(SpecError, match=r"'v9'.*not in the report of glyphs v2; it has v1"):
        judge(report({}, {"negative_flip_rate": share(0, 9000)}), [nfr(0.02, "v9")])


def test_an_unknown_metric_is_an_error_that_names_near_ones() -> None:
    with pytest.raises(SpecError, match=r"no metric 'negative_flips_rate' against all; did you mean negative_flip_rat"):
        judge(
            report({}, {"negative_flip_rate": share(0, 9)}),
            [Constraint(metric="negative_flips_rate", direction=Direction.AT_MOST, bound=0.1)],
        )


def test_a_metric_of_the_other_kind_is_an_error_that_says_against_whom() -> None:
    evidence = report({"error_rate": share(1, 9)}, {"negative_flip_rate": share(0, 9)})
    with pytest.raises(SpecError, match="write against: self"):
        judge(evidence, [Constraint(metric="error_rate", direction=Direction.AT_MOST, bound=0.1)])
    with pytest.raises(SpecError, match="write against: all"):
        judge(evidence, [nfr(0.1, SELF)])


def test_bounds_and_families_must_make_sense() -> None:
    with pytest.raises(SpecError, match="finite"):
        judge(report(), [nfr(float("nan"))])
    with pytest.raises(SpecError, match="bonferroni"):
        judge(report(), [], family="holm")


def test_a_measurement_that_is_not_finite_is_refused() -> None:
    broken = Measurement(value=0.1, lower=float("nan"), upper=0.2, n=10)
    with pytest.raises(DataError, match="not a finite number"):
        judge(report({}, {"negative_flip_rate": broken}), [nfr(0.5)])


def test_bonferroni_recomputes_wilson_at_the_adjusted_quantile() -> None:
    evidence = report({}, {"negative_flip_rate": share(60, 5000)}, {"negative_flip_rate": share(60, 5000)})
    alone, jointly = wilson(60, 5000)[1], oracle.wilson(60, 5000, 0.975)[1]
    assert alone < 0.0157 < jointly
    assert judge(evidence, [nfr(0.0157)]).outcome is Outcome.PASSED
    verdict = judge(evidence, [nfr(0.0157)], family="bonferroni")
    assert verdict.outcome is Outcome.HELD
    assert f"upper end {100 * jointly:.2f} %" in verdict.findings[0].reason
    assert "approximation" not in verdict.findings[0].reason
    assert judge(evidence, [nfr(jointly + 1e-9)], family="bonferroni").outcome is Outcome.PASSED


def test_bonferroni_scales_an_interval_it_cannot_recompute_and_says_so() -> None:
    evidence = report(
        {}, {"cross_test_gain_map": between(0.002, 0.02, 0.04)}, {"cross_test_gain_map": between(0.2, 0.3, 0.4)}
    )
    assert judge(evidence, [gain()]).outcome is Outcome.PASSED
    verdict = judge(evidence, [gain()], family="bonferroni")
    lower = 0.02 - 0.018 * quantile(2) / quantile()
    assert lower < 0
    assert verdict.outcome is Outcome.HELD
    assert f"lower end {100 * lower:.2f} points is not above the bound 0.00 points" in verdict.findings[0].reason
    assert "scaled about its value" in verdict.findings[0].reason


def test_bonferroni_never_narrows_a_clustered_proportion_below_wilson() -> None:
    lower, _ = wilson(60, 5000)
    clustered = Measurement(value=0.012, lower=lower, upper=0.0160, count=60, n=5000)
    evidence = report({}, {"negative_flip_rate": clustered}, {"negative_flip_rate": clustered})
    scaled = 0.012 + (0.016 - 0.012) * quantile(2) / quantile()
    assert judge(evidence, [nfr(scaled + 1e-9)], family="bonferroni").outcome is Outcome.PASSED
    held = judge(evidence, [nfr(scaled - 1e-9)], family="bonferroni")
    assert held.outcome is Outcome.HELD
    assert "scaled about its value" in held.findings[0].reason


def test_a_family_of_one_changes_no_decision() -> None:
    evidence = report({}, {"negative_flip_rate": share(60, 5000)})
    verdicts = [judge(evidence, [nfr(0.0154)], family=family).findings for family in ("none", "bonferroni")]
    assert verdicts[0] == verdicts[1]


def test_the_number_of_intervals_is_always_told() -> None:
    evidence = report({}, {"negative_flip_rate": share(0, 9000)}, {"negative_flip_rate": share(0, 9000)})
    assert judge(evidence, [nfr(0.02)]).notes == (
        "constraints: 1; intervals judged: 2, at 95 % each, which is not 95 % jointly",
    )
    assert judge(evidence, [nfr(0.02)], family="bonferroni").notes == (
        "constraints: 1; intervals judged: 2, at 95 % jointly (bonferroni)",
    )
    assert judge(evidence, []).notes == ("no constraints: nothing was asked of this version",)


def test_a_budget_below_the_lost_accuracy_is_called_infeasible() -> None:
    measurements = {
        "negative_flip_rate": share(400, 7440),
        "new_error_rate": share(1000, 7440),
        "old_error_rate": share(744, 7440),
    }
    reason = judge(report({}, measurements), [nfr(0.02)]).findings[0].reason
    assert reason.endswith("infeasible at this error rate, which rose by 3.44 points")


def test_an_end_that_rounds_to_the_bound_is_shown_with_enough_digits() -> None:
    verdict = judge(report({}, {"negative_flip_rate": between(0.01, 0.015, 0.0200004)}), [nfr(0.02)])
    assert "upper end 2.0000 % exceeds" not in verdict.findings[0].reason
    assert "upper end 2.00004 % exceeds the bound 2.00000 %" in verdict.findings[0].reason


measured = st.builds(lambda count, extra: share(count, count + extra), st.integers(0, 50), st.integers(1, 5000))


@settings(deadline=None)
@given(st.lists(measured, min_size=1, max_size=4), st.floats(0, 1), st.sampled_from(["none", "bonferroni"]))
def test_the_same_report_and_constraints_give_the_same_bytes(
    found: list[Measurement], bound: float, family: str
) -> None:
    evidence = report({}, *[{"negative_flip_rate": item} for item in found])
    text = judge(evidence, [nfr(bound)], family=family).to_json()
    replayed = judge(Report.from_json(evidence.to_json()), [nfr(bound)], family=family)
    assert replayed.to_json() == text
    assert Verdict.from_json(text) == replayed
    assert Verdict.from_json(text).to_json() == text


@settings(deadline=None)
@given(measured, st.floats(0, 1))
def test_loosening_a_bound_or_dropping_the_family_never_turns_passed_into_held(item: Measurement, bound: float) -> None:
    evidence = report({}, {"negative_flip_rate": item}, {"negative_flip_rate": item})
    if judge(evidence, [nfr(bound)], family="bonferroni").outcome is Outcome.PASSED:
        assert judge(evidence, [nfr(bound)]).outcome is Outcome.PASSED
        assert judge(evidence, [nfr(bound + 0.1)], family="bonferroni").outcome is Outcome.PASSED


def test_a_broken_verdict_file_is_a_data_error() -> None:
    for text in ("", "[]", "{}", '{"schema": 1}', '{"schema": 1, "outcome": "maybe", "findings": [], "notes": []}'):
        with pytest.raises(DataError, match="verdict"):
            Verdict.from_json(text)


def test_the_gate_needs_floats_only() -> None:
    heavy = ("torch", "numpy", "pydantic", "yaml")
    code = f"import sys, graceful.gate; print([name for name in {heavy} if name in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


@pytest.mark.parametrize(("bound", "n"), [(0.01, 381), (0.005, 765), (0.001, 3838)])
def test_fewest_ids_that_show_a_bound_as_published(bound: float, n: int) -> None:
    assert minimum_n(bound) == n
    assert wilson(0, n)[1] <= bound < wilson(0, n - 1)[1]


def test_no_number_of_ids_shows_zero_and_one_needs_one() -> None:
    assert minimum_n(0.0) is None
    assert minimum_n(1.0) == 1


@pytest.mark.parametrize(
    ("count", "n", "upper"),
    [
        (0, 200, 1.88),
        (0, 1000, 0.38),
        (10, 1000, 1.83),
        (20, 2000, 1.54),
        (74.4, 7440, 1.25),
        (100, 10_000, 1.21),
        (500, 50_000, 1.09),
    ],
)
def test_upper_ends_of_wilson_as_published(count: float, n: int, upper: float) -> None:
    assert round(100 * wilson(count, n)[1], 2) == upper


@settings(deadline=None)
@given(st.integers(1, 10_000), st.data())
def test_wilson_is_scipys_interval_and_contains_the_value(n: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, n))
    lower, upper = wilson(count, n)
    assert (lower, upper) == pytest.approx(oracle.wilson(count, n), abs=1e-12)
    assert 0.0 <= lower <= count / n <= upper <= 1.0


def test_wilson_refuses_what_is_no_proportion() -> None:
    for count, n in ((1, 0), (2, 1), (-1, 5)):
        with pytest.raises(ValueError, match="count must be in"):
            wilson(count, n)
