"""The catalogue of metrics, and the side of a bound that follows from it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from graceful import constraints, gate, spec
from graceful.constraints import COMPARISON_METRICS, OWN_METRICS, UNMEASURED, Constraint, Direction
from graceful.errors import SpecError
from graceful.report import Comparison, Measurement, Report

SEARCHES = ("recall_at_1", "recall_at_10", "mrr", "ndcg_at_10", "map")
DESCRIBES_THE_OLD = ("old_error_rate", *(f"old_old_{name}" for name in SEARCHES))
HIGHER = (
    *(f"self_test_{name}" for name in SEARCHES),
    "positive_flip_rate",
    "backward_trust",
    "backward_error",
    "shared_class_coverage",
    *(f"cross_test_{name}" for name in SEARCHES),
    "cross_test_gain_recall_at_1",
    "cross_test_gain_map",
)
LOWER = tuple(
    name for name in (*OWN_METRICS, *COMPARISON_METRICS) if name not in (*HIGHER, *DESCRIBES_THE_OLD, *UNMEASURED)
)


def asked(**constraint: Any) -> spec.RefreshSpec:
    document = {"model": "digits", "name": "v2", "task": {"kind": "digits"}}
    return spec.parse({**document, "gate": {"constraints": [constraint]}})


def report(metric: str, value: float) -> Report:
    measured = {metric: Measurement(value=value, lower=value - 0.01, upper=value + 0.01, n=10_000)}
    against = Comparison(against="v1", model_id="m-1", distance=1, measurements=measured)
    return Report(model="digits", version="v2", data={}, measurements=measured, comparisons=(against,))


@pytest.mark.parametrize("metric", [*HIGHER, *LOWER])
def test_a_bound_without_a_direction_holds_what_is_on_its_bad_side_and_passes_what_is_not(metric: str) -> None:
    (bound,) = asked(metric=metric, bound=0.9 if metric in HIGHER else 0.1).gate.constraints
    outcomes = [gate.judge(report(metric, value), [bound.constraint()]).outcome for value in (0.05, 0.95)]
    assert outcomes == (["held", "passed"] if metric in HIGHER else ["passed", "held"])


@pytest.mark.parametrize(
    ("metric", "direction"),
    [(metric, "at_most") for metric in HIGHER]
    + [(metric, direction) for metric in LOWER for direction in ("at_least", "above")],
)
def test_a_direction_that_contradicts_the_metric_is_refused_with_the_reason(metric: str, direction: str) -> None:
    better = "higher is better" if metric in HIGHER else "lower is better"
    with pytest.raises(SpecError, match=rf"gate.constraints.0.direction .*{metric}, of which {better}.*{direction}"):
        asked(metric=metric, direction=direction, bound=0.5)


@pytest.mark.parametrize("metric", DESCRIBES_THE_OLD)
def test_a_metric_of_which_either_side_makes_sense_needs_a_direction(metric: str) -> None:
    with pytest.raises(SpecError, match=r"direction .*must be written"):
        asked(metric=metric, bound=0.5)
    for direction in Direction:
        assert asked(metric=metric, direction=direction, bound=0.5).gate.constraints[0].direction is direction


def test_the_implied_direction_is_said_and_changes_no_digest() -> None:
    """The digests are those of specs that are older than the catalogue."""
    flips = asked(metric="negative_flip_rate", bound=0.05)
    assert flips == spec.parse(json.loads(json.dumps(flips.dump())))
    assert flips.dump()["gate"]["constraints"][0]["direction"] == "at_most"
    assert flips.digest() == asked(metric="negative_flip_rate", direction="at_most", bound=0.05).digest()
    assert flips.digest() == "7968b2ec636e8dfb8cb37f7e7863e3a11fd5cefe418a6f06ec33b73317986ee7"
    recall = asked(metric="self_test_recall_at_1", direction="at_least", bound=0.9)
    assert recall.digest() == asked(metric="self_test_recall_at_1", direction=None, bound=0.9).digest()
    assert recall.digest() == "e49f8f045d3c8594b6391cdaaeb0a8698b1ef2d862ef3845056f6b3c004589f7"


def test_a_recorded_verdict_is_judged_as_it_was() -> None:
    """A constraint of an earlier release may have a direction for which a spec is refused now."""
    recorded = Constraint(metric="self_test_recall_at_1", direction=Direction.AT_MOST, bound=0.99, against="self")
    verdict = gate.judge(report("self_test_recall_at_1", 0.737), [recorded])
    assert gate.Verdict.from_json(verdict.to_json()) == verdict
    assert verdict.outcome == "passed"


def test_bounds_lie_in_the_range_of_their_metric() -> None:
    with pytest.raises(SpecError, match=r"bound .*must be in \[0, 1\], got 2; write 0.02 for 2 percent"):
        asked(metric="chain_max_nfr", bound=2)
    with pytest.raises(SpecError, match=r"bound .*must be in \[-1, 1\], got -5"):
        asked(metric="error_rate_change", bound=-5)
    assert asked(metric="cumulative_negative_flips", bound=250).gate.constraints[0].bound == 250
    assert constraints.implied_direction("no_metric") is None
