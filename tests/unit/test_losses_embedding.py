"""Influence, prototypes, regression, alignment: losses on embeddings."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from graceful.losses.embedding_regression import embedding_regression
from graceful.losses.influence import influence
from graceful.losses.ops.alignment import align, normalise
from graceful.losses.ops.prototypes import prototypes
from tests.support import loss_oracles as oracle


def normal(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(0, 1, shape)).float()


def linear(inputs, outputs, seed=0):
    head = nn.Linear(inputs, outputs).requires_grad_(False)
    head.weight.copy_(normal(outputs, inputs, seed=seed))
    head.bias.copy_(normal(outputs, seed=seed + 1))
    return head


# --- alignment --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 4, 6, 9])
def test_align_slices_or_pads(size):
    e = normal(3, 6)
    np.testing.assert_array_equal(align(e, size=size).double(), oracle.aligned(e, size))


def test_normalise_comes_after_slicing():
    e = torch.tensor([[3.0, 4.0, 100.0]])
    torch.testing.assert_close(normalise(align(e, size=2)), torch.tensor([[0.6, 0.8]]))
    torch.testing.assert_close(normalise(align(e[:, :2], size=4)), torch.tensor([[0.6, 0.8, 0.0, 0.0]]))


def test_zero_vectors_stay_zero_with_zero_gradient():
    e = torch.zeros(2, 3, requires_grad=True)
    normalise(e).sum().backward()
    assert (normalise(e) == 0.0).all()
    assert (e.grad == 0.0).all()


# --- influence --------------------------------------------------------------------------------------------------------


def test_influence_of_the_same_head_is_cross_entropy():
    head, e, labels = linear(8, 5), normal(20, 8), torch.arange(20) % 5
    torch.testing.assert_close(influence(e, labels, head=head), F.cross_entropy(head(e), labels, reduction="none"))


@pytest.mark.parametrize("d_new", [5, 8, 12])
def test_influence_dimension_table(d_new):
    d_old, classes = 8, 5
    head, e, labels = linear(d_old, classes), normal(10, d_new, seed=3), torch.arange(10) % classes
    value = influence(align(e, size=d_old), labels, head=head)
    logits = oracle.aligned(e, d_old) @ head.weight.double().numpy().T + head.bias.double().numpy()
    np.testing.assert_allclose(value, oracle.cross_entropy(logits, labels.tolist()), rtol=1e-5)


def test_gradient_reaches_the_used_components_only():
    e = normal(4, 12).requires_grad_()
    influence(align(e, size=8), torch.zeros(4, dtype=torch.int64), head=linear(8, 5)).sum().backward()
    assert (e.grad[:, :8] != 0.0).any()
    assert (e.grad[:, 8:] == 0.0).all()


def test_a_linear_head_sees_raw_embeddings_and_prototypes_see_directions():
    head, e, labels = linear(8, 5), normal(4, 8), torch.tensor([0, 1, 2, 3])
    assert (influence(2 * e, labels, head=head) - influence(e, labels, head=head)).abs().max() > 0.01
    rows = normalise(normal(6, 8, seed=5))
    alone = [influence(k * e, labels, head=None, prototypes=rows) for k in (1.0, 2.0)]
    torch.testing.assert_close(*alone)


def test_influence_with_prototypes_by_oracle():
    head, rows = linear(8, 3), normalise(normal(2, 8, seed=5))
    e, labels = normal(6, 8, seed=2), torch.tensor([0, 1, 2, 3, 4, -1])
    value = influence(e, labels, head=head, prototypes=rows, scale=16.0)
    old = e.double() @ head.weight.double().T + head.bias.double()
    cosines = np.stack([oracle.cosine(e, row.expand_as(e)) for row in rows], 1)
    expected = oracle.cross_entropy(np.concatenate([old.numpy(), 16.0 * cosines], 1)[:5], labels[:5].tolist())
    np.testing.assert_allclose(value[:5], expected, rtol=1e-5, atol=1e-6)
    assert value[5] == 0.0, "neither head nor prototypes know the class"


def test_influence_passes_gradcheck():
    head, rows = linear(6, 3).double(), normalise(normal(2, 6, seed=5)).double()
    e, labels = normal(5, 6).double().requires_grad_(), torch.tensor([0, 1, 2, 3, -1])
    assert torch.autograd.gradcheck(lambda e: influence(e, labels, head=head, prototypes=rows), (e,))


def test_influence_is_fp32_under_autocast():
    head, e, labels = linear(64, 5), normal(10, 64), torch.arange(10) % 5
    outside = influence(e, labels, head=head)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = influence(e, labels, head=head)
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside, outside, rtol=0, atol=0)


def test_influence_without_any_classifier_is_zero_with_a_graph():
    e = normal(3, 4).requires_grad_()
    value = influence(e, torch.full((3,), -1), head=None, prototypes=torch.empty(0, 4))
    value.sum().backward()
    assert value.tolist() == [0.0, 0.0, 0.0]
    assert (e.grad == 0.0).all()


# --- prototypes -------------------------------------------------------------------------------------------------------


def test_prototypes_match_their_oracle_with_small_and_empty_classes():
    labels = torch.tensor([0] * 7 + [1] * 5 + [2] * 4 + [4])
    e = normal(len(labels), 6)
    rows, counts = prototypes(e, labels, 5)
    assert counts.tolist() == [7, 5, 4, 0, 1]
    np.testing.assert_allclose(rows, oracle.prototypes(e, labels, 5, 5), rtol=1e-5, atol=1e-6)
    assert rows[3].isnan().all()


def test_a_large_class_keeps_its_mean_and_a_small_one_is_pulled_to_the_middle():
    e = torch.cat([torch.tensor([[2.0, 0.0]]).repeat(50, 1), torch.tensor([[0.0, 3.0]])])
    labels = torch.tensor([0] * 50 + [1])
    rows, _ = prototypes(e, labels, 2)
    torch.testing.assert_close(rows[0], torch.tensor([1.0, 0.0]))
    assert rows[1][0] > rows[1][1] > 0.0
    unshrunk, _ = prototypes(e, labels, 2, minimum=1)
    torch.testing.assert_close(unshrunk[1], torch.tensor([0.0, 1.0]))


def test_length_of_embeddings_does_not_weigh_in_prototypes():
    e, labels = normal(30, 6), torch.arange(30) % 3
    stretched = e * torch.linspace(0.1, 10.0, 30).unsqueeze(1)
    torch.testing.assert_close(prototypes(stretched, labels, 3)[0], prototypes(e, labels, 3)[0])


# --- regression -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d_new", [4, 8, 12])
@pytest.mark.parametrize(("distance", "factor"), [("cosine", 1.0), ("l2", 2.0)])
def test_regression_matches_its_oracle(d_new, distance, factor):
    new, old = normal(20, d_new), normal(20, 8, seed=1)
    expected = factor * (1 - oracle.cosine(oracle.aligned(new, 8), old))
    np.testing.assert_allclose(embedding_regression(new, old, distance=distance), expected, rtol=1e-5, atol=1e-6)


def test_cosine_uses_the_euclidean_norm():
    new, old = torch.tensor([[3.0, 4.0]]), torch.tensor([[4.0, 3.0]])
    assert embedding_regression(new, old).item() == pytest.approx(1 - 24 / 25, rel=1e-5)


def test_cosine_distance_keeps_its_precision_near_zero():
    old = normal(20, 64)
    new = old + 1e-4 * normal(20, 64, seed=1)
    a, b = new.double(), old.double()
    exact = 0.5 * (a / a.norm(dim=1, keepdim=True) - b / b.norm(dim=1, keepdim=True)).square().sum(1)
    torch.testing.assert_close(embedding_regression(new, old).double(), exact, rtol=5e-3, atol=0)


def test_zero_vectors_have_cosine_zero_and_no_gradient():
    new, old = torch.zeros(2, 4, requires_grad=True), torch.stack([torch.zeros(4), torch.ones(4)])
    value = embedding_regression(new, old)
    value.sum().backward()
    assert value.tolist() == [1.0, 1.0]
    assert (new.grad == 0.0).all()
    assert embedding_regression(new.detach(), old, distance="l2").tolist() == [2.0, 2.0]


@pytest.mark.parametrize("distance", ["cosine", "l2"])
@pytest.mark.parametrize("d_new", [4, 6, 8])
def test_regression_passes_gradcheck(distance, d_new):
    old = normal(5, 6, seed=1).double()
    new = normal(5, d_new).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda e: embedding_regression(e, old, distance=distance), (new,))


def test_merged_embedding_has_the_gradient_of_all_predecessors():
    weights, olds = normal(4, 6).abs(), normalise(normal(4, 6, 8, seed=1).double())
    weights = weights.double()
    new = normal(6, 8, seed=2).double().requires_grad_()
    each = sum(weights[k] * embedding_regression(new, olds[k]) for k in range(4)).sum()
    merged = (weights.unsqueeze(-1) * olds).sum(0) / weights.sum(0).unsqueeze(-1)
    together = (weights.sum(0) * (1 - (normalise(new) * merged).sum(-1))).sum()
    gradients = [torch.autograd.grad(loss, new)[0] for loss in (each, together)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)
