"""Merging predecessors: the gradient of the merged term is the sum's, and the order of predecessors does not matter."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from graceful import spec
from graceful.chain import OldOutputs, label_map
from graceful.chain.merging import Merged, Mixer
from graceful.losses.embedding_regression import EmbeddingRegression, embedding_regression
from graceful.losses.focal_distillation import FocalDistillation
from graceful.losses.influence import Influence
from graceful.losses.logit_displacement import LogitDisplacement
from graceful.losses.ops import focus
from graceful.losses.ops.divergence import kl_divergence, logit_matching
from graceful.models.base import Outputs
from graceful.targets.mixture import Member, Mixture
from graceful.training.merging import plan, unmerged
from graceful.training.objective import Objective, OldVersion

BATCH, CLASSES = 7, 6
FORMS = ("kl", "lm", "embedding")
COUNTS = st.integers(1, 16)


def chain_of(count: int, seed: int, scale: float = 3.0) -> tuple[Tensor, Tensor, Tensor]:
    """New values [B, C], old ones [k, B, C], weights [k, B] with zeros among them; float64."""
    random = np.random.default_rng(seed)
    new, old = random.normal(0, scale, (BATCH, CLASSES)), random.normal(0, scale, (count, BATCH, CLASSES))
    weights = random.exponential(1.0, (count, BATCH)) * (random.random((count, BATCH)) < 0.8)
    return torch.from_numpy(new), torch.from_numpy(old), torch.from_numpy(weights)


def distance(form: str, new: Tensor, old: Tensor, tau: float) -> Tensor:
    if form == "kl":
        return kl_divergence(new, old, temperature=tau)
    return logit_matching(new, old) if form == "lm" else embedding_regression(new, old)


def mixed(form: Any, old: Tensor, weights: Tensor, tau: float) -> tuple[Merged, Tensor]:
    mixer = Mixer(form, temperature=tau)
    for values, weight in zip(old, weights, strict=True):
        mixer.add(values, weight)
    return mixer.merged()


def merged_distance(form: str, new: Tensor, target: Tensor, tau: float) -> Tensor:
    if form == "embedding":
        return 1.0 - (torch.nn.functional.normalize(new, dim=-1) * target).sum(-1)
    return distance(form, new, target, tau)


# --- the algebra ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tau", [0.5, 2.0, 100.0])
@settings(max_examples=15, deadline=None)
@given(count=COUNTS, seed=st.integers(0, 10_000))
def test_the_merged_gradient_is_the_sum_of_the_gradients(form: str, tau: float, count: int, seed: int) -> None:
    new, old, weights = chain_of(count, seed)
    new.requires_grad_()
    each = sum((w * distance(form, new, z, tau)).sum() for z, w in zip(old, weights, strict=True))
    (wanted,) = torch.autograd.grad(each, new)
    merged, conflict = mixed(form, old, weights, tau)
    one = (merged.weight * merged_distance(form, new, merged.target, tau)).sum()
    (found,) = torch.autograd.grad(one, new)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9 * max(1.0, tau))
    if form != "embedding":
        torch.testing.assert_close(one + (merged.weight * conflict).sum(), each, rtol=1e-6, atol=1e-6)
    assert (conflict >= 0).all()


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=15, deadline=None)
@given(count=COUNTS, seed=st.integers(0, 10_000))
def test_the_order_of_predecessors_and_of_classes_changes_nothing(form: str, count: int, seed: int) -> None:
    _, old, weights = chain_of(count, seed)
    random = np.random.default_rng(seed)
    order, classes = random.permutation(count), random.permutation(CLASSES)
    merged, conflict = mixed(form, old, weights, 2.0)
    other, other_conflict = mixed(form, old[order][:, :, classes], weights[order], 2.0)
    torch.testing.assert_close(other.target, merged.target[:, classes], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(other.weight, merged.weight, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(other_conflict, conflict, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_rows_that_are_not_finite_or_weigh_nothing_leave_no_trace(form: str) -> None:
    _, old, weights = chain_of(3, 1)
    weights[1] = 0.0
    weights[:, 0] = 0.0
    kept, _ = mixed(form, old[[0, 2]], weights[[0, 2]], 2.0)
    old[1] = torch.nan
    old[:, 0] = torch.inf
    merged, conflict = mixed(form, old, weights, 2.0)
    torch.testing.assert_close(merged, kept)
    assert merged.target[0].eq(0).all()
    assert merged.weight[0] == 0
    assert conflict[0] == 0


@pytest.mark.parametrize("form", FORMS)
def test_one_predecessor_is_its_own_target_and_agrees_with_itself(form: str) -> None:
    _, old, _ = chain_of(1, 5)
    merged, conflict = mixed(form, old, torch.full((1, BATCH), 2.0), 2.0)
    normal = old[0] / old[0].norm(dim=-1, keepdim=True)
    expected = normal if form == "embedding" else old[0] - old[0].mean(-1, keepdim=True)
    torch.testing.assert_close(merged.target, expected)
    torch.testing.assert_close(conflict, torch.zeros(BATCH, dtype=torch.float64), atol=1e-9, rtol=0)


def test_far_logits_at_a_low_temperature_stay_finite() -> None:
    old = torch.tensor([[[30_000.0, 0.0, -30_000.0]], [[0.0, -60_000.0, 0.0]]], dtype=torch.float64)
    merged, conflict = mixed("kl", old, torch.ones(2, 1), 0.5)
    assert merged.target.isfinite().all()
    assert conflict.isfinite().all()


def test_predecessors_that_contradict_each_other_have_a_larger_conflict() -> None:
    agree = torch.tensor([[[4.0, 0.0]], [[4.0, 0.0]]], dtype=torch.float64)
    contradict = torch.tensor([[[4.0, 0.0]], [[0.0, 4.0]]], dtype=torch.float64)
    weights = torch.ones(2, 1)
    assert mixed("kl", agree, weights, 2.0)[1] < 1e-9 < mixed("kl", contradict, weights, 2.0)[1]


# --- the plan ---------------------------------------------------------------------------------------------------------


def planned(losses: tuple[Any, ...], known: list[list[int]], cached: list[bool] | None = None) -> list[Any]:
    section = spec.Compatibility(losses=losses)
    yes = cached or [True] * len(known)
    return list(plan(section, known=known, sizes=[8] * len(known), cached=yes))


def test_versions_with_the_same_classes_merge_whatever_the_order_of_their_heads() -> None:
    (group,) = planned((FocalDistillation(),), [[0, 1, -1], [1, 0, -1], [4, 2, -1]])
    assert group.versions == (0, 1, 2)
    assert group.columns == (0, 1)


def test_versions_with_other_classes_make_another_group_and_a_lone_one_keeps_its_term() -> None:
    groups = planned((FocalDistillation(),), [[0, 1, -1], [0, 1, 2], [1, 0, -1], [2, 1, 0], [-1, 0, -1]])
    assert [(group.key, group.versions) for group in groups] == [
        ("focal_distillation/chain", (0, 2)),
        ("focal_distillation/chain-2", (1, 3)),
    ]


def test_what_follows_the_new_model_runs_live_or_shares_no_class_does_not_merge() -> None:
    known = [[0, 1], [0, 1]]
    for loss in (FocalDistillation(focus="negative_flip"), LogitDisplacement(), Influence()):
        assert loss.merge is None
        assert planned((loss,), known) == []
    assert planned((FocalDistillation(),), known, [True, False]) == []
    assert planned((FocalDistillation(),), [[-1, -1], [-1, -1]]) == []


def test_outputs_of_a_version_are_asked_for_only_where_a_term_did_not_merge() -> None:
    merging = spec.Compatibility(losses=(FocalDistillation(), Influence(), EmbeddingRegression()))
    groups = plan(merging, known=[[0], [0], [-1]], sizes=[8, 8, 8], cached=[True] * 3)
    assert unmerged(merging, groups, 3) == {2}
    mixed_losses = spec.Compatibility(losses=(FocalDistillation(), LogitDisplacement()))
    groups = plan(mixed_losses, known=[[0], [0]], sizes=[8, 8], cached=[True] * 2)
    assert unmerged(mixed_losses, groups, 2) == {0, 1}


# --- caches, mixed ----------------------------------------------------------------------------------------------------

NEW = ("a", "b", "c", "d")
HEADS = (("c", "a", "gone"), ("a", "c"), ("gone", "a", "c"), ("a", "b", "c", "d"))
SAMPLES = 80


@dataclass
class FakeCache:
    """Rows in float64, in place of fp16 files, so that what is compared is the algebra."""

    outputs: OldOutputs
    views: None = None

    @property
    def embeddings(self) -> NDArray[Any]:
        return self.outputs.embedding.numpy()[None]

    def __len__(self) -> int:
        return len(self.outputs.logits)

    def rows(self, positions: NDArray[np.int64], view: int, device: str) -> OldOutputs:
        return OldOutputs(*(column[torch.from_numpy(positions)] for column in self.outputs[:3]))

    def view_of(self, positions: NDArray[np.int64], views: Any, view_index: int) -> int:
        return 0


def chain_with_heads(count: int, seed: int, labels: NDArray[np.int64]) -> tuple[list[OldVersion], list[OldOutputs]]:
    random = np.random.default_rng(seed)
    """Every third version is near chance, every ninth nearly always wrong, so that its weights meet their bound."""
    versions, outputs = [], []
    for index in range(count):
        classes = HEADS[index % len(HEADS)]
        logits = torch.from_numpy(random.normal(0, 3, (SAMPLES, len(classes))).astype(np.float32))
        embedding = torch.from_numpy(random.normal(0, 1, (SAMPLES, 5)).astype(np.float32))
        present = torch.from_numpy(random.random(SAMPLES) < 0.9)
        wanted = label_map(NEW, classes)[torch.from_numpy(labels)]
        known = present & (wanted >= 0)
        if index % 9 == 2:
            (first, *others) = torch.nonzero(known).flatten().tolist()
            logits[others, wanted[others]] = -20.0
            logits[first, wanted[first]] = 20.0
        share = float((logits.argmax(1) == wanted)[known].double().mean())
        version = OldVersion(
            name=f"v{index}", classes=classes, embedding_size=5, correct_share=share, near_chance=index % 3 == 2
        )
        versions.append(version)
        outputs.append(OldOutputs(logits, embedding, present))
    return versions, outputs


LOSSES = (
    FocalDistillation(temperature=100.0),
    FocalDistillation(form="lm", focus="all", weight=2.0),
    EmbeddingRegression(),
    EmbeddingRegression(distance="l2"),
    LogitDisplacement(weight=0.1),
)


def mixtures_of(
    groups: Any, versions: Any, outputs: Any, labels: Any, strengths: Any, *, folder: Any = None
) -> dict[str, Any]:
    found = {}
    for group in groups:
        members = []
        for index in group.versions:
            known = label_map(NEW, versions[index].classes).numpy()
            columns = None if group.columns is None else known[list(group.columns)]
            member = Member(
                name=versions[index].name,
                cache=FakeCache(outputs[index]),  # type: ignore[arg-type]
                columns=columns,
                labels=known[labels],
                correct_share=versions[index].correct_share,
                near_chance=versions[index].near_chance,
            )
            members.append(member)
        mixture = Mixture(group.loss, members, scratch=folder)
        mixture.remix(strengths)
        found[group.key] = mixture
    return found


@pytest.mark.parametrize("count", [2, 3, 7, 16])
def test_merged_objective_has_the_gradient_of_the_unmerged_one(count: int) -> None:
    random = np.random.default_rng(count)
    labels = random.integers(0, len(NEW), SAMPLES)
    versions, outputs = chain_with_heads(count, count, labels)
    section = spec.Compatibility(losses=LOSSES)
    known = [label_map(NEW, one.classes).tolist() for one in versions]
    groups = plan(section, known=known, sizes=[5] * count, cached=[True] * count)
    shares = (random.random(count) / count).tolist()
    strengths = {one.name: shares[index] for index, one in enumerate(versions)}
    new = Outputs(
        torch.from_numpy(random.normal(size=(SAMPLES, 8))).requires_grad_(),
        torch.from_numpy(random.normal(0, 3, (SAMPLES, 4))).requires_grad_(),
    )
    apart = Objective(section, NEW, versions, strengths=strengths)
    wanted = torch.autograd.grad(apart(new, torch.from_numpy(labels), outputs).total, new[:2])
    together = Objective(section, NEW, versions, groups=groups, strengths=strengths)
    positions = np.arange(SAMPLES)
    mixtures = mixtures_of(groups, versions, outputs, labels, strengths)
    merged = {key: one.fetch(positions, None, 0) for key, one in mixtures.items()}
    value = together(new, torch.from_numpy(labels), outputs, merged=merged)
    found = torch.autograd.grad(value.total, new[:2])
    for left, right in zip(found, wanted, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-7)
    assert len(value.parts) < 1 + len(LOSSES) * count
    assert set(value.parts) == set(together.weights)


@settings(max_examples=8, deadline=None)
@given(count=st.integers(2, 16), seed=st.integers(0, 10_000))
def test_the_order_of_versions_and_of_their_classes_changes_neither_loss_nor_gradient(count: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    labels = random.integers(0, len(NEW), SAMPLES)
    versions, outputs = chain_with_heads(count, seed, labels)
    shares = (random.random(count) / count).tolist()
    strengths = {one.name: shares[index] for index, one in enumerate(versions)}
    values = (random.normal(size=(SAMPLES, 8)), random.normal(0, 3, (SAMPLES, 4)))

    def loss(order: Any, heads: Any) -> tuple[float, dict[str, float], list[Tensor]]:
        chain, said = [], []
        for index in order:
            old, shuffled = versions[index], heads[index]
            chain.append(replace(old, classes=tuple(old.classes[place] for place in shuffled)))
            said.append(outputs[index]._replace(logits=outputs[index].logits[:, shuffled]))
        known = [label_map(NEW, one.classes).tolist() for one in chain]
        section = spec.Compatibility(losses=LOSSES)
        groups = plan(section, known=known, sizes=[5] * count, cached=[True] * count)
        mixtures = mixtures_of(groups, chain, said, labels, strengths)
        merged = {key: one.fetch(np.arange(SAMPLES), None, 0) for key, one in mixtures.items()}
        new = Outputs(*(torch.from_numpy(value).requires_grad_() for value in values))
        objective = Objective(section, NEW, chain, groups=groups, strengths=strengths)
        found = objective(new, torch.from_numpy(labels), said, merged=merged)
        own = {key: float(value) for key, value in found.parts.items() if "/v" in key}
        return float(found.total.detach()), own, list(torch.autograd.grad(found.total, new[:2]))

    same = [np.arange(len(one.classes)) for one in versions]
    total, parts, gradient = loss(range(count), same)
    other, other_parts, other_gradient = loss(
        random.permutation(count).tolist(), [random.permutation(len(one.classes)) for one in versions]
    )
    assert other == pytest.approx(total, rel=1e-6)
    assert other_parts == pytest.approx(parts, rel=1e-6)
    for left, right in zip(other_gradient, gradient, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-8)


def test_a_predecessor_near_chance_pulls_only_where_it_is_right_and_never_above_the_bound() -> None:
    labels = np.arange(SAMPLES) % 4
    versions, outputs = chain_with_heads(12, 3, labels)
    section = spec.Compatibility(losses=(FocalDistillation(),))
    known = [label_map(NEW, one.classes).tolist() for one in versions]
    groups = plan(section, known=known, sizes=[5] * 12, cached=[True] * 12)
    for group in groups:
        for index in group.versions:
            alone = {version.name: float(other == index) for other, version in enumerate(versions)}
            (mixture,) = mixtures_of([group], versions, outputs, labels, alone).values()
            weight = mixture.fetch(np.arange(SAMPLES), None, 0).weight
            said, old = outputs[index], versions[index]
            wanted = label_map(NEW, old.classes)[torch.from_numpy(labels)]
            right = said.present & (wanted >= 0) & (said.logits.argmax(1) == wanted)
            assert bool((weight > 0).equal(right)) == old.near_chance
            assert float(weight.max()) <= focus.LARGEST
            if index % 9 == 2:
                assert int(right.sum()) == 1
                assert float(weight.max()) == focus.LARGEST


def test_a_mixture_too_large_for_memory_lies_in_an_unnamed_file(tmp_path: Path, monkeypatch: Any) -> None:
    labels = np.arange(SAMPLES) % 4
    versions, outputs = chain_with_heads(4, 0, labels)
    section = spec.Compatibility(losses=(EmbeddingRegression(),))
    groups = plan(section, known=[[0, 1, 2, 3]] * 4, sizes=[5] * 4, cached=[True] * 4)
    positions = np.arange(SAMPLES)
    quarters = {version.name: 0.25 for version in versions}
    (small,) = mixtures_of(groups, versions, outputs, labels, quarters).values()
    monkeypatch.setattr("graceful.targets.mixture._IN_MEMORY", 10)
    (large,) = mixtures_of(groups, versions, outputs, labels, quarters, folder=tmp_path).values()
    torch.testing.assert_close(large.fetch(positions, None, 0), small.fetch(positions, None, 0))
    assert list(tmp_path.iterdir()) == []


def test_members_of_different_shapes_are_refused() -> None:
    labels = np.arange(SAMPLES) % 4
    versions, outputs = chain_with_heads(2, 0, labels)
    outputs[1] = outputs[1]._replace(embedding=torch.zeros(SAMPLES, 9))
    section = spec.Compatibility(losses=(EmbeddingRegression(),))
    groups = plan(section, known=[[0], [0]], sizes=[5, 5], cached=[True, True])
    with pytest.raises(ValueError, match="one shape"):
        mixtures_of(groups, versions, outputs, labels, {version.name: 0.5 for version in versions})
