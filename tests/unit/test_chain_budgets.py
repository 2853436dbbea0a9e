"""Budgets: what is refused, what follows from what, and how multipliers move."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graceful import spec
from graceful.chain.budgets import Budget, Standing, Status, plan, require_evidence, require_feasible
from graceful.chain.contract import Correctness, flips_between
from graceful.chain.multipliers import Measured, advance, initial, rank, strengths
from graceful.errors import SpecError
from graceful.losses.focal_distillation import FocalDistillation
from graceful.losses.influence import Influence
from graceful.losses.logit_displacement import LogitDisplacement
from graceful.losses.reweighting import Reweighting
from tests.support.runs import contract_of

N = 10_000


def standing(name: str, error: float, *, n: int = N, reference: float = 0.10) -> Standing:
    return Standing(name=name, n=n, error=error, reference_error=reference)


def statuses(budgets: Any) -> list[str]:
    return [str(budget.status) for budget in budgets]


# --- what can be asked ------------------------------------------------------------------------------------------------


def test_a_relative_budget_is_a_share_of_independent_flips() -> None:
    (near, far) = plan([standing("v2", 0.12), standing("v1", 0.20)], relative=0.2, growth=0.5)
    assert near.bound == pytest.approx(0.2 * 0.88 * 0.10)
    assert far.bound == pytest.approx(0.3 * 0.80 * 0.10)
    assert statuses((near, far)) == ["active", "active"]


def test_a_budget_below_the_loss_of_accuracy_is_refused_with_both_numbers() -> None:
    budgets = plan([standing("v1", 0.05)], relative=0.15)
    assert statuses(budgets) == ["infeasible"]
    message = (
        r"v1: a budget of 1\.4. % is below 5\.00 %, by which the unconstrained error 10\.00 % exceeds its error 5\.00 %"
    )
    with pytest.raises(SpecError, match=message):
        require_feasible(budgets)
    require_feasible(plan([standing("v1", 0.05)], relative=0.6))


def test_a_budget_that_too_few_ids_can_show_is_refused_with_the_number_it_needs() -> None:
    budgets = plan([standing("v1", 0.12, n=100)], relative=0.15)
    with pytest.raises(SpecError, match=r"a budget of 1\.32 % cannot be shown on 100 ids .* it needs 288"):
        require_feasible(budgets)
    assert statuses(plan([standing("v1", 0.12, n=288)], relative=0.15)) == ["active"]


def test_of_several_refused_budgets_the_first_is_told_and_all_are_facts() -> None:
    budgets = plan([standing("v2", 0.05), standing("v1", 0.06), standing("v0", 0.2)], relative=0.15)
    with pytest.raises(SpecError) as raised:
        require_feasible(budgets)
    assert raised.value.message.startswith("compatibility.weighting: v2: a budget of 1.4")
    assert "exceeds its error 5.00 % (and 1 more); raise" in raised.value.message
    assert list(raised.value.facts["infeasible"]) == ["v2", "v1"]  # type: ignore[call-overload]


@given(share=st.floats(0.01, 1.0), error=st.floats(0.0, 0.99), reference=st.floats(0.01, 0.99), n=st.integers(2, 3000))
def test_what_is_refused_before_the_unconstrained_run_is_refused_after_it(
    share: float, error: float, reference: float, n: int
) -> None:
    chain = [standing("v1", error, n=n, reference=reference)]
    try:
        require_evidence(chain, relative=share)
    except SpecError:
        assert statuses(plan(chain, relative=share)) == ["infeasible"]
    else:
        assert n >= 3.84 * (1.0 / (share * (1.0 - error)) - 1.0) - 1.0, "fewer ids could never show the largest budget"


def test_too_few_ids_are_refused_before_an_unconstrained_run_is_trained() -> None:
    require_evidence([standing("v1", 0.1, n=29)], relative=0.15)
    with pytest.raises(SpecError, match=r"v1: a budget of 13\.50 % cannot be shown on 24 ids"):
        require_evidence([standing("v1", 0.1, n=24)], relative=0.15)
    with pytest.raises(SpecError, match=r"v1: a budget of 1\.00 % cannot be shown on 300 ids"):
        require_evidence([standing("v1", 0.1, n=300)], relative=0.15, bounds={"v1": 0.01})


def test_a_budget_nobody_can_break_is_vacuous() -> None:
    assert statuses(plan([standing("v1", 0.5)], relative=0.1, bounds={"v1": 0.10})) == ["vacuous"]
    assert statuses(plan([standing("v1", 0.5)], relative=0.1, bounds={"v1": 0.099})) == ["active"]


def test_a_bound_for_nobody_is_refused() -> None:
    with pytest.raises(SpecError, match=r"weighting\.bounds: 'v9' is not a predecessor in training, which are v1"):
        plan([standing("v1", 0.1)], relative=0.1, bounds={"v9": 0.1})


CHAIN = [standing("v3", 0.11), standing("v2", 0.12), standing("v1", 0.13)]
LOOSE = {"v3": 0.02, "v2": 0.04, "v1": 0.06}


def test_an_intact_chain_with_loose_budgets_needs_the_latest_alone() -> None:
    upper = {("v3", "v2"): 0.015, ("v3", "v1"): 0.03, ("v2", "v1"): 0.015}
    budgets = plan(CHAIN, relative=0.1, bounds=LOOSE, upper=upper)
    assert statuses(budgets) == ["active", "implied", "implied"]
    assert [budget.implied_by for budget in budgets] == [None, "v3", "v3"]
    assert budgets[1].reason == "follows from v3: 2.00 % and at most 1.50 % between the two stay within 4.00 %"


def test_a_broken_release_brings_older_budgets_back() -> None:
    upper = {("v3", "v2"): 0.05, ("v3", "v1"): 0.07, ("v2", "v1"): 0.015}
    assert statuses(plan(CHAIN, relative=0.1, bounds=LOOSE, upper=upper)) == ["active", "active", "implied"]


def test_what_is_not_known_or_has_other_ids_implies_nothing() -> None:
    assert statuses(plan(CHAIN, relative=0.1, bounds=LOOSE)) == ["active"] * 3
    fewer = [CHAIN[0], replace(CHAIN[1], n=N // 4), CHAIN[2]]
    upper = {("v3", "v2"): 0.005}
    assert statuses(plan(fewer, relative=0.1, bounds=LOOSE, upper=upper))[1] == "active", "2 % of N are 8 % of N / 4"


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.02, 0.5), st.integers(2, 6))
def test_whoever_keeps_the_active_budgets_keeps_the_implied_ones(seed: int, share: float, count: int) -> None:
    random = np.random.default_rng(seed)
    base = random.random(2000) < 0.85
    right = np.array([base ^ (random.random(2000) < random.random() * share) for _ in range(count + 1)])
    new, old = right[0], right[1:]
    names = [f"v{index}" for index in range(count)]
    chain = [
        Standing(name=name, n=2000, error=1 - ok.mean(), reference_error=0.5)
        for name, ok in zip(names, old, strict=True)
    ]
    known = np.ones(2000, dtype=bool)
    upper = flips_between([Correctness(name=name, right=ok, known=known) for name, ok in zip(names, old, strict=True)])
    rates = {name: float((ok & ~new).mean()) for name, ok in zip(names, old, strict=True)}
    bounds = {name: max(rate, 0.003) * (1 + 2 * random.random()) for name, rate in rates.items()}
    for budget in plan(chain, relative=0.1, bounds=bounds, upper=upper):
        if budget.status is Status.IMPLIED:
            assert rates[budget.name] <= budget.bound + 1e-12


def test_flips_between_leaves_out_pairs_with_classes_the_nearer_does_not_know() -> None:
    right = np.array([[1, 0, 0, 0], [1, 1, 0, 1], [1, 1, 0, 0]], dtype=bool)
    known = np.array([[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 0]], dtype=bool)
    chain = [Correctness(name=f"v{3 - index}", right=right[index], known=known[index]) for index in range(3)]
    found = flips_between(chain)
    assert set(found) == {("v3", "v1"), ("v2", "v1")}
    assert found["v3", "v1"] > 1 / 3 > found["v2", "v1"] - 0.6


# --- how multipliers move ---------------------------------------------------------------------------------------------


def active(name: str, bound: float, status: Status = Status.ACTIVE) -> Budget:
    return Budget(name=name, bound=bound, status=status, reason="", standing=standing(name, 0.1))


BUDGETS = (active("v3", 0.01), active("v2", 0.02), active("v1", 0.04))
RULE = spec.Adaptive(step=0.3, largest_total=10.0, error_margin=0.03)


def moved(
    mu: Any, rates: Any, *, budgets: Any = BUDGETS, error: float = 0.1, pace: float = 1.0, rule: Any = RULE
) -> Any:
    names = [budget.name for budget in budgets]
    measured = Measured(flips=dict(zip(names, rates, strict=True)), error=error)
    before = dict(zip(names, mu, strict=True))
    after = advance(before, budgets=budgets, measured=measured, reference_error=0.1, pace=pace, weighting=rule)
    assert list(after) == names
    return tuple(after.values())


def test_training_starts_with_the_nearest_active_predecessor_alone() -> None:
    implied = (active("v3", 0.01, Status.VACUOUS), *BUDGETS[1:])
    assert initial(BUDGETS, start=1.5) == {"v3": 1.5, "v2": 0.0, "v1": 0.0}
    assert initial(implied, start=1.5) == {"v3": 0.0, "v2": 1.5, "v1": 0.0}
    assert initial([active("v1", 0.1, Status.IMPLIED)], start=1.0) == {"v1": 0.0}


def test_broken_budgets_pull_more_and_kept_ones_less() -> None:
    assert moved((1.0, 1.0, 1.0), (0.015, 0.02, 0.02)) == pytest.approx((1.15, 1.0, 0.85))
    assert moved((1.0, 0.1, 0.0), (0.5, 0.0, 0.0)) == pytest.approx((1.3, 0.0, 0.0)), "clipped, and never below 0"


def test_budgets_that_are_not_active_have_no_multiplier() -> None:
    budgets = (BUDGETS[0], active("v2", 0.02, Status.IMPLIED), active("v1", 0.04, Status.INFEASIBLE))
    assert moved((1.0, 0.0, 0.0), (0.01, 0.5, 0.5), budgets=budgets) == (1.0, 0.0, 0.0)


def test_the_guard_shrinks_all_and_the_cap_keeps_their_ratios() -> None:
    assert moved((2.0, 1.0, 0.0), (0.01, 0.02, 0.04), error=0.104) == (1.5, 0.75, 0.0)
    assert moved((2.0, 1.0, 0.0), (0.01, 0.02, 0.04), error=0.103) == (2.0, 1.0, 0.0)
    capped = moved((8.0, 4.0, 0.0), (0.01, 0.02, 0.04), rule=spec.Adaptive(largest_total=6.0))
    assert capped == pytest.approx((4.0, 2.0, 0.0))


def test_an_early_epoch_is_compared_with_the_same_epoch_of_the_unconstrained_run() -> None:
    assert moved((1.0, 1.0, 1.0), (0.02, 0.04, 0.08), error=0.2, pace=2.0) == (1.0, 1.0, 1.0)
    contract = contract_of(BUDGETS)
    assert contract.pace_of(5) == 1.0
    assert [replace(contract, pace=(3.0, 1.5, 1.0)).pace_of(epoch) for epoch in (0, 1, 2, 7)] == [3.0, 1.5, 1.0, 1.0]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 5), st.floats(0, 0.2), st.floats(0.005, 0.1)), min_size=1, max_size=8), st.randoms()
)
def test_the_order_of_predecessors_changes_nothing(rows: Any, random: Any) -> None:
    def step(order: list[int]) -> dict[int, float]:
        mus, rates, bounds = zip(*(rows[index] for index in order), strict=True)
        budgets = [active(f"v{index}", bound) for index, bound in zip(order, bounds, strict=True)]
        found = moved(mus, rates, budgets=budgets, error=0.2)
        return dict(zip(order, found, strict=True))

    order = list(range(len(rows)))
    other = random.sample(order, len(order))
    assert step(order) == pytest.approx(step(other))
    assert math.fsum(step(order).values()) <= RULE.largest_total * (1 + 1e-12)


def test_the_lowest_error_among_feasible_checkpoints_is_chosen_else_the_least_violation() -> None:
    kept, broken, worse = (
        Measured(flips=dict.fromkeys(("v3", "v2", "v1"), rate), error=0.1) for rate in (0.01, 0.02, 0.05)
    )
    ranked = [rank(kept, BUDGETS, error=0.12), rank(kept, BUDGETS, error=0.13), rank(broken, BUDGETS, error=0.01)]
    ranked += [rank(worse, BUDGETS, error=0.01)]
    assert ranked == sorted(ranked)
    implied = [active("v3", 0.01, Status.IMPLIED)]
    assert rank(Measured(flips={"v3": 0.5}, error=0.1), implied, error=0.1)[0] == 0.0


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 60), st.floats(0.1, 1.0))
def test_fixed_strengths_add_up_to_one_however_long_the_chain(count: int, factor: float) -> None:
    names = [f"v{index}" for index in range(count)]
    assert math.fsum(strengths(spec.Equal(), names).values()) == pytest.approx(1.0)
    decayed = list(strengths(spec.Decay(factor=factor), names).values())
    assert math.fsum(decayed) == pytest.approx(1.0)
    assert decayed == sorted(decayed, reverse=True)


@pytest.mark.parametrize("loss", [FocalDistillation(), FocalDistillation(form="lm"), LogitDisplacement(top_k=40)])
def test_losses_that_read_all_logits_refuse_caches_of_the_largest(loss: Any) -> None:
    with pytest.raises(ValueError, match=r"targets\.top: 32 logits are not what .* leave top out, or write t"):
        spec.Compatibility(losses=(loss,), targets=spec.Targets(top=32))
    low = FocalDistillation(temperature=2.0, allow_low_temperature=True)
    spec.Compatibility(losses=(low, LogitDisplacement(top_k=8), Influence()), targets=spec.Targets(top=32))


def test_adaptive_weighting_without_a_loss_to_strengthen_is_refused() -> None:
    with pytest.raises(ValueError, match="adaptive needs a loss that it can strengthen"):
        spec.Compatibility(weighting=spec.Adaptive(), losses=(Reweighting(),))
