"""Focal distillation and its relatives against oracles written from the formulas."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from graceful.losses.ops.divergence import kl_divergence, logit_matching
from graceful.losses.ops.reference import mean_logits, reference_divergence
from tests.support import loss_oracles as oracle

SEEDS = st.integers(0, 2**32 - 1)


def logits(*shape, rms=3.0, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(0, rms, shape)).float()


def old_and_new(batch, classes, *, rms, step, seed=0):
    rng = np.random.default_rng(seed)
    old = rng.normal(0, rms, (batch, classes)).astype(np.float32)
    new = (old + rng.normal(0, step, (batch, classes))).astype(np.float32)
    return torch.from_numpy(old), torch.from_numpy(new)


def worst_error(value, truth):
    """Largest error of a sample, relative to its value plus one percent of the batch mean."""
    return float((np.abs(value.double().numpy() - truth) / (truth + 0.01 * truth.mean())).max())


# --- KL ---------------------------------------------------------------------------------------------------------------


def test_kl_of_two_classes_by_hand():
    new, old = torch.tensor([[0.0, 0.0]]), torch.tensor([[np.log(3.0), 0.0]])
    by_hand = 0.75 * np.log(0.75 / 0.5) + 0.25 * np.log(0.25 / 0.5)
    assert kl_divergence(new, old, temperature=1.0).item() == pytest.approx(by_hand, rel=1e-6)
    assert kl_divergence(new.repeat(1, 1), old * 4.0, temperature=4.0).item() == pytest.approx(16 * by_hand, rel=1e-6)


def test_kl_takes_the_old_distribution_first():
    new, old = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 5.0]])
    forward, backward = kl_divergence(new, old, temperature=1.0), kl_divergence(old, new, temperature=1.0)
    np.testing.assert_allclose(forward, oracle.kl(new, old, 1.0), rtol=1e-6)
    assert abs(forward - backward).item() > 0.1


@pytest.mark.parametrize(
    ("classes", "temperature", "step", "rms"),
    list(itertools.product([2, 10, 100, 1000], [1.0, 20.0, 100.0, 1000.0], [0.001, 0.01, 0.5, 10.0], [1.0, 10.0])),
)
def test_kl_error_of_a_sample_in_fp32(classes, temperature, step, rms):
    old, new = old_and_new(32, classes, rms=rms, step=step)
    assert worst_error(kl_divergence(new, old, temperature=temperature), oracle.kl(new, old, temperature)) < 5e-6


@pytest.mark.parametrize(("classes", "temperature"), list(itertools.product([2, 10, 1000], [2.0, 100.0, 1000.0])))
def test_kl_error_of_a_batch_mean_in_fp32(classes, temperature):
    old, new = old_and_new(256, classes, rms=3.0, step=0.5)
    truth = oracle.kl(new, old, temperature).mean()
    assert kl_divergence(new, old, temperature=temperature).double().mean().item() == pytest.approx(truth, rel=2e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("classes", "temperature"), list(itertools.product([10, 1000], [2.0, 100.0])))
def test_kl_of_half_precision_inputs_is_exact_for_the_values_they_hold(dtype, classes, temperature):
    old, new = (x.to(dtype) for x in old_and_new(64, classes, rms=3.0, step=0.5))
    value = kl_divergence(new, old, temperature=temperature)
    assert value.dtype == torch.float32
    assert worst_error(value, oracle.kl(new.float(), old.float(), temperature)) < 5e-6


def test_the_textbook_form_would_not_pass_these_bounds():
    old, new = old_and_new(64, 1000, rms=3.0, step=0.01)
    log_p, log_q = torch.log_softmax(new / 100, -1), torch.log_softmax(old / 100, -1)
    textbook = 1e4 * (log_q.exp() * (log_q - log_p)).sum(-1)
    assert worst_error(textbook, oracle.kl(new, old, 100.0)) > 0.1


@pytest.mark.parametrize("temperature", [2.0, 100.0])
def test_kl_gradient_matches_its_closed_form(temperature):
    old, new = old_and_new(64, 50, rms=3.0, step=0.5)
    new.requires_grad_()
    kl_divergence(new, old, temperature=temperature).sum().backward()
    truth = oracle.kl_gradient(new.detach(), old, temperature)
    assert np.abs(new.grad.numpy() - truth).max() < 1e-6 * np.abs(truth).max()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 100.0])
def test_kl_passes_gradcheck_in_float64(temperature):
    old = logits(4, 6).double()
    new = logits(4, 6, seed=1).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: kl_divergence(z, old, temperature=temperature), (new,))


def test_kl_passes_gradcheck_across_its_branches():
    old = torch.tensor([[0.0, 0.0, 0.0], [45.0, 0.0, -20.0], [0.0, 1.0, 2.0]]).double()
    new = torch.tensor([[0.3, 0.8, -2.0], [-10.0, 30.0, 44.0], [90.0, 0.0, -90.0]]).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: kl_divergence(z, old, temperature=1.0), (new,), rtol=1e-4)


@pytest.mark.parametrize(("size", "temperature"), list(itertools.product([300.0, 65_000.0], [1.0, 20.0, 100.0])))
def test_kl_is_finite_for_extreme_logits(size, temperature):
    old = torch.tensor([[size, -size, 0.0], [0.0, 0.0, 0.0], [-size, -size, size], [size, size, -size]])
    new = torch.tensor([[-size, size, 0.0], [size, 0.0, -size], [size, size, -size], [size, size, -size]])
    new.requires_grad_()
    value = kl_divergence(new, old, temperature=temperature)
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert torch.isfinite(new.grad).all()
    np.testing.assert_allclose(value.detach(), oracle.kl(new.detach(), old, temperature), rtol=1e-5, atol=1e-6)
    truth = oracle.kl_gradient(new.detach(), old, temperature)
    np.testing.assert_allclose(
        new.grad, truth, rtol=5e-3, atol=1e-6 * temperature
    )  # one rounding of 65000 is 0.4 percent of a probability


@given(seed=SEEDS, classes=st.integers(1, 40), temperature=st.sampled_from([1.0, 20.0, 100.0, 1000.0]))
@settings(max_examples=40, deadline=None)
def test_kl_is_never_negative_and_ignores_constants_and_class_order(seed, classes, temperature):
    old, new = logits(8, classes, seed=seed), logits(8, classes, seed=seed + 1)
    value = kl_divergence(new, old, temperature=temperature)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(classes))
    assert (value >= 0.0).all()
    torch.testing.assert_close(kl_divergence(new[:, order], old[:, order], temperature=temperature), value)
    torch.testing.assert_close(
        kl_divergence(new + 3.0, old - 1.0, temperature=temperature), value, rtol=1e-4, atol=1e-5
    )
    assert (kl_divergence(old, old, temperature=temperature) == 0.0).all()


def test_no_gradient_reaches_the_old_logits():
    old, new = logits(4, 5).requires_grad_(), logits(4, 5, seed=1).requires_grad_()
    (kl_divergence(new, old, temperature=100.0) + logit_matching(new, old)).sum().backward()
    assert old.grad is None
    assert new.grad.abs().sum() > 0


# --- LM and the limit -------------------------------------------------------------------------------------------------


def test_lm_by_hand():
    new, old = torch.tensor([[1.0, 2.0, 6.0]]), torch.tensor([[0.0, 0.0, 0.0]])
    assert logit_matching(new, old).item() == pytest.approx((4 + 1 + 9) / 6)  # mean 3, C = 3


def test_lm_matches_its_oracle_and_gradcheck():
    old, new = logits(16, 7), logits(16, 7, seed=1)
    np.testing.assert_allclose(logit_matching(new, old), oracle.lm(new, old), rtol=1e-5)
    z = new.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: logit_matching(z, old.double()), (z,))


@pytest.mark.parametrize(
    ("classes", "rms", "of_mean", "of_sample"),
    [(10, 3.0, 0.002, 0.06), (10, 10.0, 0.02, 0.20), (100, 3.0, 0.002, 0.013)],
)
def test_kl_at_temperature_100_is_close_to_lm(classes, rms, of_mean, of_sample):
    old, new = logits(20_000, classes, rms=rms).double(), logits(20_000, classes, rms=rms, seed=1).double()
    kl, lm = kl_divergence(new, old, temperature=100.0), logit_matching(new, old)
    assert abs(kl.mean() / lm.mean() - 1).item() < of_mean
    assert (kl / lm - 1).abs().quantile(0.99).item() < of_sample


def test_lm_is_the_limit_of_kl():
    old, new = logits(64, 10).double(), logits(64, 10, seed=1).double()
    lm = logit_matching(new, old)
    gaps = [(kl_divergence(new, old, temperature=t) / lm - 1).abs().max().item() for t in (1e2, 1e3, 1e4)]
    assert gaps[1] < 0.2 * gaps[0]
    assert gaps[2] < 0.2 * gaps[1]


def test_temperature_squared_keeps_the_scale():
    old, new = old_and_new(64, 10, rms=1.0, step=0.1)
    at_20, at_1000 = (kl_divergence(new, old, temperature=t).mean().item() for t in (20.0, 1000.0))
    assert at_20 == pytest.approx(at_1000, rel=0.02)


@pytest.mark.parametrize("classes", [0, 1])
def test_nothing_to_compare_is_zero_with_a_graph(classes):
    old, new = logits(4, classes), logits(4, classes, seed=1).requires_grad_()
    for value in (kl_divergence(new, old, temperature=100.0), logit_matching(new, old)):
        value.sum().backward()
        assert value.tolist() == [0.0] * 4
    assert (new.grad == 0.0).all()


# --- merged targets ---------------------------------------------------------------------------------------------------


@given(seed=SEEDS, versions=st.integers(1, 10), classes=st.integers(2, 12), temperature=st.sampled_from([2.0, 100.0]))
@settings(max_examples=25, deadline=None)
def test_one_merged_target_has_the_gradient_of_all_predecessors(seed, versions, classes, temperature):
    rng = np.random.default_rng(seed)
    olds, weights = rng.normal(0, 3, (versions, 5, classes)), rng.uniform(0.05, 2.0, (versions, 5))
    new = torch.from_numpy(rng.normal(0, 3, (5, classes))).requires_grad_()
    w = torch.from_numpy(weights)

    def gradient(losses):
        return torch.autograd.grad(losses.sum(), new)[0]

    mean = torch.from_numpy(oracle.merged_logits(olds, weights))
    mixture = torch.from_numpy(oracle.merged_mixture(olds, weights, temperature))
    for distance, target in (
        (logit_matching, mean),
        (lambda n, o: kl_divergence(n, o, temperature=temperature), mixture),
    ):
        each = sum(w[k] * distance(new, torch.from_numpy(olds[k])) for k in range(versions))
        merged = w.sum(0) * distance(new, target)
        torch.testing.assert_close(gradient(merged), gradient(each), rtol=1e-6, atol=1e-9)
        constant = (each - merged).detach()
        assert (constant > -1e-9).all(), "the dropped constant is the disagreement of the predecessors"


def test_the_mixture_of_probabilities_is_not_the_mean_of_logits():
    olds = np.array([[[6.0, 0.0, 0.0]], [[0.0, 6.0, 0.0]]])
    weights = np.ones((2, 1))
    assert (
        np.abs(oracle.merged_mixture(olds, weights, 2.0) - (m := oracle.merged_logits(olds, weights)) + m.mean()).max()
        > 0.1
    )


# --- reference --------------------------------------------------------------------------------------------------------


def test_weights_all_ones_are_the_plain_mean():
    runs = [logits(6, 5, seed=seed) for seed in range(3)]
    plain = torch.stack(runs).mean(0)
    torch.testing.assert_close(mean_logits(runs), plain)
    torch.testing.assert_close(mean_logits(runs, weights=[1.0, 1.0, 1.0]), plain)


def test_every_run_counts_the_first_one_too():
    runs = [torch.tensor([[6.0]]), torch.tensor([[0.0]]), torch.tensor([[3.0]])]
    assert mean_logits(runs, weights=[2.0, 1.0, 1.0]).item() == pytest.approx(15.0 / 4)
    assert mean_logits(runs, weights=[1.0, 0.0, 0.0]).item() == 6.0


@pytest.mark.parametrize("weights", [[1.0], [0.0, 0.0], [1.0, -1.0]])
def test_weights_that_do_not_fit_are_refused(weights):
    with pytest.raises(ValueError, match="weights must be 2"):
        mean_logits([torch.zeros(1, 2), torch.zeros(1, 2)], weights=weights)
    with pytest.raises(ValueError, match="at least one run"):
        mean_logits([])


def test_reference_divergence_is_kl_to_the_mean():
    runs, new = [logits(6, 5, seed=seed) for seed in range(3)], logits(6, 5, seed=9)
    target = np.mean([run.numpy() for run in runs], axis=0)
    value = reference_divergence(new, mean_logits(runs), temperature=4.0)
    np.testing.assert_allclose(value, oracle.kl(new, target, 4.0), rtol=1e-5)
