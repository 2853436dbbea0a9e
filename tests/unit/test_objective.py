"""The objective: what it adds up, with which weights, and what it does when something is missing."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from graceful import spec
from graceful.chain import OldOutputs
from graceful.errors import SpecError
from graceful.losses.embedding_regression import EmbeddingRegression
from graceful.losses.focal_distillation import FocalDistillation
from graceful.losses.influence import Influence
from graceful.losses.logit_displacement import LogitDisplacement
from graceful.losses.ops import focus
from graceful.losses.reweighting import Reweighting
from graceful.models.base import Outputs
from graceful.training.objective import Objective, OldVersion, needs
from tests.support import loss_oracles as oracle

CLASSES = ("a", "b", "c", "d")
OLD_CLASSES = ("c", "gone", "a")
LABEL_MAP = [2, -1, 0, -1]
KD = FocalDistillation(weight=0.5)
EVERY_LOSS = (
    FocalDistillation(),
    FocalDistillation(form="lm", focus="negative_flip"),
    LogitDisplacement(),
    LogitDisplacement(top_k=1, exclude_label=True),
    Influence(),
    EmbeddingRegression(),
    EmbeddingRegression(distance="l2"),
)
BATCH = 12


def normal(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(0, 2, shape)).float()


def head(inputs=6, outputs=3, seed=0):
    layer = nn.Linear(inputs, outputs).requires_grad_(False)
    layer.weight.copy_(normal(outputs, inputs, seed=seed))
    layer.bias.copy_(normal(outputs, seed=seed + 1))
    return layer


def version(name="v1", **changes):
    rows = F.normalize(normal(4, 6, seed=7), dim=1)
    rows[0] = torch.nan
    options = {
        "name": name,
        "classes": OLD_CLASSES,
        "embedding_size": 6,
        "head": head(),
        "correct_share": 0.5,
        "known_share": 0.5,
        "prototypes": rows,
    }
    return OldVersion(**(options | changes))


def batch(seed=0, *, size=BATCH, width=8, classes=4, old_classes=3):
    outputs = Outputs(
        normal(size, width, seed=seed).requires_grad_(), normal(size, classes, seed=seed + 1).requires_grad_()
    )
    old = OldOutputs(
        normal(size, old_classes, seed=seed + 2), normal(size, 6, seed=seed + 3), torch.ones(size, dtype=torch.bool)
    )
    return outputs, torch.arange(size) % classes, old


def objective(*losses, versions=None, reference=None, classes=CLASSES, **options):
    section = spec.Compatibility(losses=losses, reference=reference)
    return Objective(section, classes, [version()] if versions is None else versions, **options)


def gradients(value, outputs):
    tensors = outputs[:2]
    found = torch.autograd.grad(value.total, tensors, allow_unused=True, retain_graph=True)
    return [torch.zeros_like(o) if g is None else g for g, o in zip(found, tensors, strict=True)]


# --- what is added up -------------------------------------------------------------------------------------------------


def test_without_predecessors_the_total_is_cross_entropy():
    outputs, labels, _ = batch()
    value = objective(versions=[])(outputs, labels)
    torch.testing.assert_close(value.total, F.cross_entropy(outputs.logits, labels))
    assert set(value.parts) == {"task"}
    assert value.correct.item() == (outputs.logits.argmax(-1) == labels).sum()


def test_total_is_the_weighted_sum_of_its_parts():
    outputs, labels, old = batch()
    bound = objective(*EVERY_LOSS, versions=[version("v2"), version("v1")], reference=spec.Reference(weight=2.0))
    value = bound(outputs, labels, [old, batch(seed=20)[2]], reference_outputs(normal(BATCH, 4, seed=9)))
    assert len(value.parts) == 2 * len(EVERY_LOSS) + 2
    assert set(value.parts) == set(bound.weights)
    by_hand = sum(bound.weights[key] * part for key, part in value.parts.items())
    torch.testing.assert_close(value.total.detach(), by_hand)
    assert bound.weights["reference"] == 2.0
    assert bound.weights["embedding_regression-2/v1"] == 2.5, "the weight of a loss is shared by its versions"
    assert not any(part.requires_grad for part in value.parts.values())


def test_more_versions_do_not_add_weight():
    outputs, labels, old = batch()
    once = objective(*EVERY_LOSS)(outputs, labels, [old])
    thrice = objective(*EVERY_LOSS, versions=[version(f"v{k}") for k in range(3)])(outputs, labels, [old] * 3)
    torch.testing.assert_close(thrice.total, once.total)


def test_focal_distillation_by_oracle():
    outputs, labels, old = batch()
    value = objective(KD)(outputs, labels, [old])
    new_shared, old_shared = oracle.shared_logits(outputs.logits.detach(), old.logits, LABEL_MAP)
    distances = oracle.kl(new_shared, old_shared, 100.0)
    total = 0.0
    for i, label in enumerate(labels.tolist()):
        known = LABEL_MAP[label]
        right = known >= 0 and old.logits[i].argmax().item() == known
        total += (known >= 0) * (1 + 5 * right) / (1 + 5 * 0.5) * distances[i]
    assert value.parts["focal_distillation/v1"].item() == pytest.approx(total / BATCH, rel=1e-5)


def test_the_weight_multiplies_its_own_sample_only():
    """mean(F * KL), not mean(F) * mean(KL): the gradient of a sample carries its own weight."""
    outputs, labels, old = batch(classes=4, old_classes=4)
    old = old._replace(logits=F.one_hot(torch.where(torch.arange(BATCH) < 6, labels, (labels + 1) % 4), 4) * 3.0)
    known = version(classes=CLASSES, head=head(6, 4))
    plain, focal = (
        gradients(objective(FocalDistillation(weight=1, focus=f), versions=[known])(outputs, labels, [old]), outputs)[1]
        for f in ("all", "old_correct")
    )
    task = gradients(objective(versions=[])(outputs, labels), outputs)[1]
    ratio = ((focal - task) / (plain - task)).median(-1).values
    torch.testing.assert_close(ratio[:6], torch.full((6,), 6 / 3.5), rtol=1e-3, atol=0)
    torch.testing.assert_close(ratio[6:], torch.full((6,), 1 / 3.5), rtol=1e-3, atol=0)


def test_displacement_regression_and_influence_by_oracle():
    outputs, labels, old = batch()
    losses = (LogitDisplacement(top_k=1, exclude_label=True), EmbeddingRegression(), Influence())
    parts = objective(*losses)(outputs, labels, [old]).parts
    new_shared, old_shared = oracle.shared_logits(outputs.logits.detach(), old.logits, LABEL_MAP)
    known = np.array([LABEL_MAP[y] >= 0 for y in labels.tolist()])
    place = [{2: 1, -1: -1, 0: 0}[LABEL_MAP[y]] for y in labels.tolist()]  # shared old classes: c, a
    moved = oracle.displacement(new_shared, old_shared, margin=0.5, power=2.0, top_k=1, labels=place)
    assert parts["logit_displacement/v1"].item() == pytest.approx((moved * known).sum() / BATCH, rel=1e-5)

    aligned = oracle.aligned(outputs.embedding.detach(), 6)
    distance = 1 - oracle.cosine(aligned, old.embedding)
    assert parts["embedding_regression/v1"].item() == pytest.approx(distance.mean(), rel=1e-5), "needs no class"

    frozen = version()
    logits = aligned @ frozen.head.weight.double().numpy().T + frozen.head.bias.double().numpy()
    cosines = [16 * oracle.cosine(aligned, np.tile(frozen.prototypes[c], (BATCH, 1))) for c in (1, 3)]
    target = [{0: 2, 1: 3, 2: 0, 3: 4}[y] for y in labels.tolist()]
    expected = oracle.cross_entropy(np.concatenate([logits, np.stack(cosines, 1)], 1), target).mean()
    assert parts["influence/v1"].item() == pytest.approx(expected, rel=1e-5)


def test_influence_of_the_new_head_itself_is_cross_entropy():
    layer = head(6, 4)
    e, labels = normal(BATCH, 6), torch.arange(BATCH) % 4
    same = version(classes=CLASSES, head=layer, prototypes=None)
    parts = objective(Influence(), versions=[same])(Outputs(e, layer(e)), labels).parts
    torch.testing.assert_close(parts["influence/v1"], parts["task"])


def test_a_lost_head_is_replaced_by_prototypes_of_all_classes():
    outputs, labels, _ = batch()
    rows = F.normalize(normal(4, 6, seed=7), dim=1)
    headless = version(head=None, prototypes=rows)
    parts = objective(Influence(scale=4.0), versions=[headless])(outputs, labels).parts
    aligned = oracle.aligned(outputs.embedding.detach(), 6)
    cosines = np.stack([4 * oracle.cosine(aligned, np.tile(row, (BATCH, 1))) for row in rows], 1)
    assert parts["influence/v1"].item() == pytest.approx(
        oracle.cross_entropy(cosines, labels.tolist()).mean(), rel=1e-5
    )


def reference_outputs(logits, *, present=None):
    known = torch.ones(len(logits), dtype=torch.bool) if present is None else present
    return OldOutputs(logits, logits.new_zeros(len(logits), 0), known.to(logits.device))


def test_reference_is_tempered_divergence_over_everybody():
    outputs, labels, _ = batch()
    target = normal(BATCH, 4, seed=9)
    bound = objective(versions=[], reference=spec.Reference(weight=3.0, temperature=20.0))
    value = bound(outputs, labels, reference=reference_outputs(target))
    expected = oracle.kl(outputs.logits.detach(), target, 20.0)
    assert value.parts["reference"].item() == pytest.approx(expected.mean(), rel=1e-5)
    torch.testing.assert_close(value.total.detach(), value.parts["task"] + 3 * value.parts["reference"])
    present = torch.arange(BATCH) % 3 > 0
    value = bound(outputs, labels, reference=reference_outputs(target, present=present))
    assert value.parts["reference"].item() == pytest.approx(expected[present.numpy()].sum() / BATCH, rel=1e-5)


def test_reweighting_changes_the_task_and_adds_no_term():
    outputs, labels, old = batch()
    value = objective(Reweighting(weight=2.0))(outputs, labels, [old])
    each = oracle.cross_entropy(outputs.logits.detach(), labels.tolist())
    right = [old.logits[i].argmax().item() == LABEL_MAP[y] for i, y in enumerate(labels.tolist())]
    expected = sum((1 + 2 * r) / (1 + 2 * 0.25) * ce for r, ce in zip(right, each, strict=True)) / BATCH
    assert set(value.parts) == {"task"}
    assert value.total.item() == pytest.approx(expected, rel=1e-5)


# --- label spaces and missing facts -----------------------------------------------------------------------------------


def test_the_order_of_classes_changes_nothing():
    outputs, labels, old = batch()
    order, old_order = [2, 0, 3, 1], [1, 2, 0]
    straight = objective(*EVERY_LOSS)(outputs, labels, [old])
    moved = version()
    moved_head = head()
    moved_head.weight.copy_(moved.head.weight[old_order])
    moved_head.bias.copy_(moved.head.bias[old_order])
    moved = version(
        classes=tuple(OLD_CLASSES[k] for k in old_order), head=moved_head, prototypes=moved.prototypes[order]
    )
    permuted = objective(*EVERY_LOSS, versions=[moved], classes=tuple(CLASSES[k] for k in order))(
        Outputs(outputs.embedding, outputs.logits[:, order]),
        torch.tensor([order.index(y) for y in labels.tolist()]),
        [old._replace(logits=old.logits[:, old_order])],
    )
    for key, part in straight.parts.items():
        torch.testing.assert_close(permuted.parts[key], part, rtol=1e-4, atol=1e-5, msg=key)


@pytest.mark.parametrize("loss", EVERY_LOSS, ids=lambda loss: loss.kind)
def test_absent_samples_weigh_nothing_whatever_their_rows_hold(loss):
    outputs, labels, old = batch()
    present = torch.arange(BATCH) % 3 != 0
    garbage = torch.where(present.unsqueeze(1), 0.0, torch.nan)
    broken = OldOutputs(old.logits + garbage, old.embedding + garbage, present)
    value = objective(loss)(outputs, labels, [broken])
    assert torch.isfinite(value.total)
    task = gradients(objective(versions=[])(outputs, labels), outputs)
    for found, free in zip(gradients(value, outputs), task, strict=True):
        assert torch.isfinite(found).all()
        torch.testing.assert_close(found[~present], free[~present])
    assert any((a[present] != b[present]).any() for a, b in zip(gradients(value, outputs), task, strict=True))


@pytest.mark.parametrize("losses", [EVERY_LOSS, *[(loss,) for loss in EVERY_LOSS]])
def test_a_batch_of_which_nothing_is_known_keeps_the_graph(losses):
    outputs, labels, old = batch()
    value = objective(*losses)(outputs, labels, [old._replace(present=torch.zeros(BATCH, dtype=torch.bool))])
    assert all(part.item() == 0.0 for key, part in value.parts.items() if key != "task")
    torch.testing.assert_close(value.total.detach(), value.parts["task"])
    torch.testing.assert_close(gradients(value, outputs)[1], gradients(objective()(outputs, labels), outputs)[1])


def test_disjoint_classes_leave_regression_and_prototypes():
    outputs, labels, old = batch()
    stranger = version(classes=("x", "y", "z"), prototypes=F.normalize(normal(4, 6), dim=1), correct_share=0.0)
    value = objective(*EVERY_LOSS, versions=[stranger])(outputs, labels, [old])
    value.total.backward()
    silent = {key for key, part in value.parts.items() if part.item() == 0.0}
    assert silent == {
        f"{k}/v1" for k in ("focal_distillation", "focal_distillation-2", "logit_displacement", "logit_displacement-2")
    }
    assert torch.isfinite(outputs.logits.grad).all()


def test_no_shared_class_in_the_batch_is_zero():
    outputs, _, old = batch()
    value = objective(KD)(outputs, torch.ones(BATCH, dtype=torch.int64), [old])
    assert value.parts["focal_distillation/v1"].item() == 0.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_outputs_are_computed_in_fp32(dtype):
    outputs, labels, old = batch()
    half = Outputs(*(x.detach().to(dtype).requires_grad_() for x in outputs[:2]))
    full = Outputs(*(x.detach().float() for x in half[:2]))
    value = objective(*EVERY_LOSS)(half, labels, [old])
    assert value.total.dtype == torch.float32
    torch.testing.assert_close(value.total, objective(*EVERY_LOSS)(full, labels, [old]).total)
    value.total.backward()
    assert half.logits.grad.dtype == dtype
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = objective(*EVERY_LOSS)(full, labels, [old]).total
    torch.testing.assert_close(inside, value.total.detach(), rtol=1e-6, atol=0)


def test_a_step_reads_no_value_back_and_stays_on_its_device():
    """Tensors on `meta` have no values: reading one back, or mixing in a CPU tensor, fails."""
    outputs, labels, old = batch()
    bound = objective(
        *EVERY_LOSS,
        Reweighting(),
        versions=[version(head=head().to("meta")), version("v0", head=head().to("meta"), classes=("c", "c2", "a"))],
        reference=spec.Reference(),
        device="meta",
    )
    away = Outputs(*(x.detach().to("meta").requires_grad_() for x in outputs[:2]))
    moved = OldOutputs(*(x.to("meta") for x in old[:3]))
    value = bound(away, labels.to("meta"), [moved, moved], reference_outputs(normal(BATCH, 4).to("meta")))
    value.total.backward()
    assert away.logits.grad.device.type == value.correct.device.type == "meta"


def test_extreme_logits_stay_finite():
    outputs, labels, old = batch()
    big = Outputs(outputs.embedding, (outputs.logits.detach().sign() * 300).requires_grad_())
    value = objective(*EVERY_LOSS)(big, labels, [old._replace(logits=old.logits.sign() * -300)])
    assert torch.isfinite(value.total)
    assert all(torch.isfinite(g).all() for g in gradients(value, big))


# --- dynamic focus ----------------------------------------------------------------------------------------------------

DYNAMIC = FocalDistillation(focus="new_incorrect", weight=1.0)


def test_dynamic_focus_has_mean_one_in_the_first_batch():
    outputs, labels, old = batch()
    bound = objective(DYNAMIC)
    bound(outputs, labels, [old])
    wrong = outputs.logits.argmax(-1) != labels
    known = torch.tensor([LABEL_MAP[y] >= 0 for y in labels.tolist()])
    assert bound.state_dict()["focus"] == {
        "focal_distillation/v1": [float((1 + 5 * wrong[known].float()).sum()), float(known.sum())]
    }


@pytest.mark.parametrize("name", ["old_correct", "new_incorrect", "negative_flip", "all"])
def test_a_predecessor_near_chance_pulls_only_where_it_is_right_unless_there_is_no_focus(name):
    outputs, labels, old = batch()
    loss = FocalDistillation(focus=name)
    (near,) = gradients(objective(loss, versions=[version(near_chance=True)])(outputs, labels, [old]), [outputs.logits])
    (task,) = gradients(objective()(outputs, labels), [outputs.logits])
    pulled = (near - task).abs().sum(1) > 1e-6
    known = torch.tensor(LABEL_MAP)[labels]
    right = (known >= 0) & (old.logits.argmax(1) == known)
    chosen = {"all": known >= 0, "old_correct": right}.get(name, right & (outputs.logits.argmax(1) != labels))
    assert pulled.tolist() == chosen.tolist()
    assert pulled.any()


def test_focus_means_survive_a_checkpoint():
    first, second = objective(DYNAMIC), objective(DYNAMIC)
    for seed in range(3):
        outputs, labels, old = batch(seed)
        first(outputs, labels, [old])
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    outputs, labels, old = batch(99)
    torch.testing.assert_close(
        first(outputs, labels, [old]).total, second(outputs, labels, [old]).total, rtol=0, atol=0
    )
    assert first.state_dict() == second.state_dict()
    fresh = objective(DYNAMIC)(outputs, labels, [old]).total
    assert fresh.item() != first(outputs, labels, [old]).total.item()


def test_a_checkpoint_of_other_losses_is_refused():
    with pytest.raises(SpecError, match="focal_distillation/v1"):
        objective(KD).load_state_dict(objective(DYNAMIC).state_dict())
    objective(KD).load_state_dict(objective(KD).state_dict())


def test_two_workers_equal_one():
    outputs, labels, old = batch()
    whole = objective(DYNAMIC)(outputs, labels, [old]).total
    halves = [slice(0, BATCH // 2), slice(BATCH // 2, BATCH)]

    def part_of(batch_slice, everybody):
        bound = objective(DYNAMIC, sum_over_workers=everybody)
        cut = Outputs(*(x[batch_slice] for x in outputs[:2]))
        return bound(cut, labels[batch_slice], [OldOutputs(*(x[batch_slice] for x in old[:3]))]).total

    sent = []
    for one in halves:
        part_of(one, lambda moments: sent.append(moments.clone()) or moments)
    totals = [part_of(one, lambda moments: sent[0] + sent[1]) for one in halves]
    torch.testing.assert_close(sum(totals) / 2, whole)


def test_workers_are_asked_only_when_a_focus_is_dynamic():
    def refuse(moments):
        raise AssertionError("no sum over workers is needed")

    outputs, labels, old = batch()
    static = objective(KD, Influence(), sum_over_workers=refuse)(outputs, labels, [old])
    torch.testing.assert_close(static.total, objective(KD, Influence())(outputs, labels, [old]).total)
    with pytest.raises(AssertionError, match="no sum over workers is needed"):
        objective(DYNAMIC, sum_over_workers=refuse)(outputs, labels, [old])


def test_running_mean_looks_back_about_a_hundred_batches():
    assert pytest.approx(100) == 1 / (1 - focus.DECAY)


# --- what it refuses --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ((), set()),
        ((FocalDistillation(),), {"logits", "correctness"}),
        ((FocalDistillation(focus="all"),), {"logits"}),
        ((FocalDistillation(focus="negative_flip"), EmbeddingRegression()), {"logits", "embedding"}),
        ((LogitDisplacement(),), {"logits"}),
        ((Influence(),), {"head", "prototypes"}),
        ((Influence(prototypes=False),), {"head"}),
        ((Reweighting(),), {"logits", "correctness"}),
    ],
)
def test_needs(losses, expected):
    assert needs(spec.Compatibility(losses=losses)) == expected


def test_influence_needs_no_old_outputs():
    outputs, labels, old = batch()
    bound = objective(Influence())
    torch.testing.assert_close(bound(outputs, labels).total, bound(outputs, labels, [old]).total)


def test_old_outputs_that_do_not_fit_are_refused():
    outputs, labels, old = batch()
    with pytest.raises(ValueError, match="one entry for each of 1 versions"):
        objective(KD)(outputs, labels)
    with pytest.raises(ValueError, match="one entry for each of 1 versions"):
        objective(KD)(outputs, labels, [old, old])
    with pytest.raises(ValueError, match="no reference logits"):
        objective(reference=spec.Reference())(outputs, labels)
    with pytest.raises(ValueError, match="is not set"):
        objective()(outputs, labels, reference=reference_outputs(outputs.logits))


@pytest.mark.parametrize(
    ("changes", "loss", "message"),
    [
        ({"prototypes": None}, Influence(), "has no prototypes for them"),
        ({"prototypes": torch.zeros(3, 6)}, Influence(), r"must have shape \(4, 6\)"),
        ({"head": None}, Influence(prototypes=False), "has no head"),
        ({"head": nn.Linear(6, 3)}, Influence(), "must be frozen"),
        ({"correct_share": None}, KD, "correct_share of v1"),
        ({"correct_share": float("nan")}, Reweighting(), "correct_share of v1"),
    ],
)
def test_versions_that_lack_what_a_loss_needs_are_refused(changes, loss, message):
    with pytest.raises(ValueError, match=message):
        objective(loss, versions=[version(**changes)])
