"""What to label next: the decision against the gate, the order against the best of all procedures."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from graceful import gate
from graceful.constraints import Constraint, Direction
from graceful.metrics.intervals import Evidence, proportion
from graceful.metrics.next_labels import Standing, flip_probability, labels_until_decided, largest_count, order
from graceful.report import Comparison, Report


def verdict(flips: int, samples: int, bound: float) -> str:
    hits = np.arange(samples) < flips
    measured = {"negative_flip_rate": proportion(hits, Evidence())}
    compared = Comparison(against="v1", model_id="m-1", distance=1, measurements=measured)
    report = Report(model="a", version="v2", data={}, measurements={}, comparisons=(compared,))
    bounded = Constraint(metric="negative_flip_rate", direction=Direction.AT_MOST, bound=bound)
    return str(gate.judge(report, [bounded]).outcome)


@pytest.mark.parametrize(("samples", "bound"), [(500, 0.02), (1000, 0.05), (60, 0.5)])
def test_the_most_flips_are_those_with_which_the_gate_passes(samples: int, bound: float) -> None:
    most = largest_count(samples, bound)
    assert verdict(most, samples, bound) == "passed"
    assert verdict(most + 1, samples, bound) == "held"


def test_too_few_samples_say_how_many_are_needed() -> None:
    few = Standing.of(samples=200, disagree=10, flips=0, no_flips=0, bound=0.01)
    assert (few.state, few.samples_needed) == ("too few", 381)


def test_a_bound_is_decided_when_no_label_could_change_it() -> None:
    """Whatever the unlabelled disagreements are, the gate says the same; one label earlier it could say either."""
    samples, disagree, bound = 1000, 60, 0.05
    most = largest_count(samples, bound)
    for flips, no_flips in [(most + 1, 0), (0, disagree - most), (most, disagree - most - 1), (most, disagree - most)]:
        standing = Standing.of(samples=samples, disagree=disagree, flips=flips, no_flips=no_flips, bound=bound)
        possible = {verdict(count, samples, bound) for count in (flips, disagree - no_flips)}
        assert standing.state == (possible.pop() if len(possible) == 1 else "open")
    fresh = Standing.of(samples=samples, disagree=disagree, flips=0, no_flips=0, bound=bound)
    assert fresh.to_hold + fresh.to_pass == disagree + 1
    assert fresh.range == (0.0, 0.06)
    assert Standing.of(samples=samples, disagree=most, flips=0, no_flips=0, bound=bound).state == "passed"


def fewest_expected(probabilities: tuple[float, ...], to_hold: int) -> float:
    """The expected number of looks of the best procedure there is, by trying all of them."""

    @functools.cache
    def best(left: tuple[float, ...], needed: int) -> float:
        if needed <= 0 or needed > len(left):
            return 0.0
        options = []
        for index, p in enumerate(left):
            rest = left[:index] + left[index + 1 :]
            options.append(1.0 + p * best(rest, needed - 1) + (1.0 - p) * best(rest, needed))
        return min(options)

    return best(tuple(sorted(probabilities)), to_hold)


@pytest.mark.parametrize("to_hold", [1, 3, 5, 7])
def test_no_procedure_needs_fewer_labels(to_hold: int) -> None:
    probabilities = np.array([0.05, 0.2, 0.35, 0.5, 0.6, 0.8, 0.9])
    looks = labels_until_decided(probabilities, to_hold=to_hold, to_pass=8 - to_hold, draws=40_000, seed=1)
    assert looks.mean() == pytest.approx(fewest_expected(tuple(probabilities), to_hold), abs=0.02)
    assert looks.min() >= min(to_hold, 8 - to_hold)
    assert looks.max() <= 7


def test_the_order_begins_at_the_most_useful_one_and_spreads() -> None:
    probabilities = np.array([0.1, 0.9, 0.5, 0.7, 0.3])
    assert order(probabilities, to_hold=3)[0] == 2
    assert order(probabilities, to_hold=1).tolist() == [1, 3, 2, 4, 0]
    assert order(probabilities, to_hold=9)[0] == 0
    assert sorted(order(probabilities, to_hold=3).tolist()) == [0, 1, 2, 3, 4]


def test_a_flip_is_likelier_where_the_old_version_is_surer() -> None:
    found = flip_probability(np.array([0.9, 0.5, 0.1, 1.0]), np.array([0.1, 0.5, 0.9, 1.0]))
    assert found[0] > found[1] > found[2]
    np.testing.assert_allclose(found[:3], [0.81 / 0.91, 0.25 / 0.75, 0.01 / 0.91])
    assert np.isfinite(found).all()
