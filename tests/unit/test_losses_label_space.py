"""Label spaces that differ, logit displacement, focus and reduction."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from graceful.chain import label_map
from graceful.losses.logit_displacement import logit_displacement
from graceful.losses.ops import focus, label_space
from graceful.losses.ops.divergence import kl_divergence, logit_matching
from graceful.losses.ops.pair import OldVersion
from graceful.losses.ops.reduction import weighted_mean
from graceful.losses.reweighting import Reweighting
from tests.support import loss_oracles as oracle

SEEDS = st.integers(0, 2**32 - 1)
FOCI = ["all", "old_correct", "new_incorrect", "negative_flip"]


def normal(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(0, 3, shape)).float()


# --- label space ------------------------------------------------------------------------------------------------------


def test_two_new_classes_join_into_one_old_class_by_hand():
    space = label_space.build(torch.tensor([1, -1, 1, 0]), old_size=3)
    new = torch.log(torch.tensor([[1.0, 9.0, 2.0, 5.0]]))
    torch.testing.assert_close(space.new(new).exp(), torch.tensor([[5.0, 3.0]]))
    assert space.old(torch.tensor([[7.0, 8.0, 9.0]])).tolist() == [[7.0, 8.0]], "old class 2 has no new class"
    assert space.shared_labels(torch.tensor([0, 1, 2, 3])).tolist() == [1, -1, 1, 0]
    assert space.old_labels(torch.tensor([0, 1, 2, 3])).tolist() == [1, -1, 1, 0]
    assert space.size == 2


def test_places_in_the_shared_space_differ_from_old_labels_when_an_old_class_is_retired():
    space = label_space.build(label_map(["c", "new", "a"], ["a", "gone", "c"]), old_size=3)
    labels = torch.tensor([0, 1, 2])
    assert space.old_labels(labels).tolist() == [2, -1, 0]
    assert space.shared_labels(labels).tolist() == [1, -1, 0]
    assert space.new(torch.tensor([[10.0, 20.0, 30.0]])).tolist() == [[30.0, 10.0]]


@given(seed=SEEDS, old_size=st.integers(1, 8), new_size=st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_shared_logits_match_their_oracle(seed, old_size, new_size):
    mapping = np.random.default_rng(seed).integers(-1, old_size, new_size)
    if (mapping < 0).all():
        mapping[0] = 0
    new, old = normal(6, new_size, seed=seed), normal(6, old_size, seed=seed + 1)
    space = label_space.build(torch.from_numpy(mapping), old_size=old_size)
    expected_new, expected_old = oracle.shared_logits(new, old, mapping.tolist())
    np.testing.assert_allclose(space.new(new), expected_new, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(space.old(old), expected_old)


@pytest.mark.parametrize("mapping", [[0, 1, 2], [0, 0, 1], [2, -1, 2], [-1, 1, 0]])
def test_joining_passes_gradcheck(mapping):
    space = label_space.build(torch.tensor(mapping), old_size=3)
    assert torch.autograd.gradcheck(space.new, (normal(3, 3).double().requires_grad_(),))


def test_joining_is_stable_for_large_logits():
    space = label_space.build(torch.tensor([0, 0, 1]), old_size=2)
    new = torch.tensor([[65_000.0, 65_000.0, -65_000.0]], requires_grad=True)
    space.new(new).sum().backward()
    assert torch.isfinite(new.grad).all()
    torch.testing.assert_close(new.grad, torch.tensor([[0.5, 0.5, 1.0]]))


@given(seed=SEEDS)
@settings(max_examples=25, deadline=None)
def test_the_order_of_classes_changes_nothing(seed):
    rng = np.random.default_rng(seed)
    new_classes, old_classes = list("abcdefg"), list("gxbeaz")
    new, old = normal(5, 7, seed=seed), normal(5, 6, seed=seed + 1)

    def losses(new_order, old_order):
        names = [new_classes[i] for i in new_order], [old_classes[i] for i in old_order]
        space = label_space.build(label_map(*names), old_size=6)
        z, w = space.new(new[:, new_order]), space.old(old[:, old_order])
        return torch.stack(
            [
                kl_divergence(z, w, temperature=100.0),
                logit_matching(z, w),
                logit_displacement(z, w, margin=0.5, top_k=2),
            ]
        )

    shuffled = losses(rng.permutation(7), rng.permutation(6))
    torch.testing.assert_close(shuffled, losses(np.arange(7), np.arange(6)), rtol=1e-5, atol=1e-6)


def test_disjoint_classes_give_zero_with_a_graph():
    space = label_space.build(label_map(["a", "b"], ["c", "d", "e"]), old_size=3)
    new = normal(4, 2).requires_grad_()
    z, w = space.new(new), space.old(normal(4, 3))
    assert z.shape == w.shape == (4, 0)
    for values in (kl_divergence(z, w, temperature=100.0), logit_matching(z, w), logit_displacement(z, w, margin=0.5)):
        assert values.tolist() == [0.0] * 4
        values.sum().backward(retain_graph=True)
    assert (new.grad == 0.0).all()


@pytest.mark.parametrize("mapping", [torch.tensor([0, 3]), torch.tensor([-2, 0]), torch.tensor([[0, 1]])])
def test_maps_outside_the_old_space_are_refused(mapping):
    with pytest.raises(ValueError, match="label_map"):
        label_space.build(mapping, old_size=3)


# --- logit displacement -----------------------------------------------------------------------------------------------


def test_displacement_by_hand():
    new, old = torch.tensor([[1.0, 5.0, 0.0]]), torch.tensor([[1.4, 2.0, 1.0]])
    # |differences| 0.4, 3, 1; beyond 0.5: 0, 2.5, 0.5
    assert logit_displacement(new, old, margin=0.5).item() == pytest.approx((6.25 + 0.25) / 3)
    assert logit_displacement(new, old, margin=0.5, power=1.0).item() == pytest.approx(1.0)
    assert logit_displacement(new, old, margin=0.5, top_k=1).item() == pytest.approx(6.25)
    assert logit_displacement(new, old, margin=0.5, exclude_labels=torch.tensor([1])).item() == pytest.approx(0.125)


@pytest.mark.parametrize("top_k", [None, 1, 3, 6, 50])
@pytest.mark.parametrize("exclude", [False, True])
@pytest.mark.parametrize(("margin", "power"), [(0.0, 2.0), (0.5, 2.0), (2.0, 1.0)])
def test_displacement_matches_its_oracle(top_k, exclude, margin, power):
    new, old, labels = normal(9, 6), normal(9, 6, seed=1), torch.arange(9) % 6
    value = logit_displacement(
        new, old, margin=margin, power=power, top_k=top_k, exclude_labels=labels if exclude else None
    )
    expected = oracle.displacement(
        new, old, margin=margin, power=power, top_k=top_k, labels=labels.tolist() if exclude else None
    )
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)


def test_displacement_without_margin_is_twice_lm_of_centred_logits():
    new, old = normal(9, 6), normal(9, 6, seed=1)
    old = old + (new - old).mean(-1, keepdim=True)
    torch.testing.assert_close(logit_displacement(new, old, margin=0.0), 2 * logit_matching(new, old))


def test_top_k_runs_over_classes_so_that_samples_do_not_compete():
    new, old = normal(9, 6), normal(9, 6, seed=1)
    together = logit_displacement(new, old, margin=0.5, top_k=2)
    alone = torch.cat([logit_displacement(new[i : i + 1], old[i : i + 1], margin=0.5, top_k=2) for i in range(9)])
    torch.testing.assert_close(together, alone)


def test_excluding_the_only_class_leaves_zero():
    value = logit_displacement(normal(3, 1), normal(3, 1, seed=1), margin=0.0, exclude_labels=torch.tensor([0, -1, 0]))
    assert value[0] == value[2] == 0.0
    assert value[1] > 0.0, "label -1 excludes nothing"


@pytest.mark.parametrize("options", [{}, {"top_k": 3}, {"exclude_labels": torch.arange(5)}])
def test_displacement_passes_gradcheck(options):
    old = normal(5, 6, seed=1).double()
    new = normal(5, 6).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: logit_displacement(z, old, margin=0.5, **options), (new,))


# --- focus ------------------------------------------------------------------------------------------------------------

OLD_RIGHT = torch.tensor([True, True, False, False])
NEW_RIGHT = torch.tensor([True, False, True, False])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("all", [1, 1, 1, 1]),
        ("old_correct", [6, 6, 1, 1]),
        ("new_incorrect", [1, 6, 1, 6]),
        ("negative_flip", [1, 6, 1, 1]),
    ],
)
def test_focus_by_hand_and_by_oracle(name, expected):
    weights = focus.raw_weights(name, alpha=1.0, beta=5.0, old_correct=OLD_RIGHT, new_correct=NEW_RIGHT)
    assert weights.tolist() == expected
    by_oracle = oracle.focus_weights(
        name, alpha=1, beta=5, old_correct=OLD_RIGHT.tolist(), new_correct=NEW_RIGHT.tolist()
    )
    assert by_oracle.tolist() == expected


def test_old_correct_does_not_look_at_the_new_model():
    chosen = [
        focus.raw_weights("old_correct", alpha=1.0, beta=5.0, old_correct=OLD_RIGHT, new_correct=new)
        for new in (NEW_RIGHT, ~NEW_RIGHT)
    ]
    torch.testing.assert_close(*chosen)


@given(share=st.floats(0.0, 1.0), alpha=st.floats(0.1, 5.0), beta=st.floats(0.0, 10.0), name=st.sampled_from(FOCI[:2]))
@settings(max_examples=40, deadline=None)
def test_static_weights_have_mean_one(share, alpha, beta, name):
    right = torch.arange(1000) < round(share * 1000)
    raw = focus.raw_weights(name, alpha=alpha, beta=beta, old_correct=right, new_correct=right)
    mean = focus.static_mean(name, alpha=alpha, beta=beta, old_correct_share=right.float().mean().item())
    assert focus.normalise(raw, mean=mean).double().mean().item() == pytest.approx(1.0, rel=1e-5)


def test_a_dynamic_focus_has_no_static_mean():
    with pytest.raises(ValueError, match="running"):
        focus.static_mean("negative_flip", alpha=1.0, beta=5.0, old_correct_share=0.5)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        focus.static_mean("old_correct", alpha=1.0, beta=5.0, old_correct_share=float("nan"))


def test_focus_that_never_fires_gives_zeros_and_no_division():
    weights = focus.normalise(torch.zeros(3), mean=0.0)
    assert weights.tolist() == [0.0, 0.0, 0.0]
    assert focus.mean_of(torch.zeros(2, 2)).tolist() == [0.0, 0.0]


def test_running_mean_of_the_first_batch_is_the_batch_mean_and_two_workers_equal_one():
    weights, mask = torch.tensor([1.0, 6.0, 6.0, 100.0]), torch.tensor([True, True, True, False])
    whole = focus.batch_moments(weights, participates=mask)
    halves = [focus.batch_moments(weights[i : i + 2], participates=mask[i : i + 2]) for i in (0, 2)]
    torch.testing.assert_close(sum(halves), whole)
    state = focus.advance(torch.zeros(2), batch=whole)
    assert focus.mean_of(state).item() == pytest.approx(13 / 3)


def test_running_mean_follows_a_change_and_ignores_empty_batches():
    state = torch.zeros(2)
    for _ in range(50):
        state = focus.advance(state, batch=torch.tensor([60.0, 10.0]))
    assert focus.mean_of(state).item() == pytest.approx(6.0)
    for _ in range(1000):
        state = focus.advance(state, batch=torch.tensor([10.0, 10.0]))
    assert focus.mean_of(state).item() == pytest.approx(1.0, abs=1e-3)
    torch.testing.assert_close(focus.advance(state, batch=torch.zeros(2)), state)
    assert focus.mean_of(torch.tensor(json.loads(json.dumps(state.tolist())))) == focus.mean_of(state)


# --- reduction and reweighting ----------------------------------------------------------------------------------------


def test_weighted_mean_by_hand():
    values, weights = torch.tensor([1.0, 2.0, 4.0, 8.0]), torch.tensor([1.0, 3.0, 1.0, 1.0])
    participates = torch.tensor([True, True, False, True])
    assert weighted_mean(values).item() == 3.75
    assert weighted_mean(values, weights=weights).item() == 19 / 4
    assert weighted_mean(values, weights=weights, participates=participates).item() == 15 / 4, "B counts everybody"


def test_weights_of_ones_are_the_plain_mean():
    values = normal(17)
    torch.testing.assert_close(weighted_mean(values, weights=torch.ones(17)), values.mean())


@given(seed=SEEDS)
@settings(max_examples=20, deadline=None)
def test_permuting_samples_with_their_weights_changes_nothing(seed):
    values, weights = normal(9, seed=seed), normal(9, seed=seed + 1).abs()
    order = torch.from_numpy(np.random.default_rng(seed).permutation(9))
    shuffled = weighted_mean(values[order], weights=weights[order])
    torch.testing.assert_close(shuffled, weighted_mean(values, weights=weights))


@pytest.mark.parametrize("shape", [(4, 1), (1, 4), (1,), (5,)])
def test_weights_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match="weights must have shape"):
        weighted_mean(torch.ones(4), weights=torch.ones(shape))
    with pytest.raises(ValueError, match="participates must have shape"):
        weighted_mean(torch.ones(4), participates=torch.ones(shape, dtype=torch.bool))
    with pytest.raises(ValueError, match="values must have shape"):
        weighted_mean(torch.ones(4, 1))


@pytest.mark.parametrize("size", [0, 3])
def test_nobody_participates_gives_zero_with_a_graph(size):
    values = torch.ones(size, requires_grad=True)
    loss = weighted_mean(values, weights=torch.ones(size), participates=torch.zeros(size, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0.0
    assert values.grad.tolist() == [0.0] * size


def test_reweighting_has_mean_one_and_favours_what_was_right():
    version = OldVersion(name="v1", classes=("a", "b"), embedding_size=2, correct_share=0.75)
    pair = SimpleNamespace(old_correct=torch.tensor([True, True, True, False]), version=version)
    emphasis, mean = Reweighting(weight=2.0).emphasis([pair])
    weights = (1.0 + emphasis) / (1.0 + mean)
    assert weights.mean().item() == pytest.approx(1.0)
    assert weights[0] == 3 * weights[3]
    assert Reweighting(weight=0.0).emphasis([pair])[0].tolist() == [0.0] * 4
