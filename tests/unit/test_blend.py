"""A teacher of reference runs and old versions: its probabilities, the choice of shares, a small training."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from graceful import spec, targets, tasks
from graceful.chain import OldOutputs, blending, label_map, shares
from graceful.chain.shares import Evidence, OldAnswers
from graceful.errors import SpecError
from graceful.losses.ops.divergence import kl_divergence
from graceful.models import bundle
from graceful.models.base import Outputs
from graceful.programs.fitting import blend
from graceful.targets.teacher import OldSide, Teacher
from graceful.training import trace
from graceful.training.objective import Objective
from tests.support import training_task
from tests.support.runs import train

CLASSES = ("a", "b", "c", "d")
RECIPE = {"epochs": 2, "batch_size": 24, "engine": {"kind": "torch"}, "num_workers": 0}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(0, 2, shape))


def parse(name: str, *, classes: int = 3, compatibility: Mapping[str, Any], **recipe: Any) -> spec.RefreshSpec:
    task = {"kind": "python", "file": training_task.__file__, "options": {"classes": classes}}
    sections = {"train": {**RECIPE, **recipe}, "compatibility": compatibility}
    return spec.parse({"model": "blobs", "name": name, "task": task, **sections})


# --- the teacher ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("old_classes", [("c", "gone", "a"), CLASSES, ("gone",)])
def test_classes_that_an_old_version_does_not_know_keep_the_mass_of_the_reference(old_classes: tuple[str, ...]) -> None:
    reference, old = normal(5, 4), normal(5, len(old_classes), seed=1)
    r = F.softmax(reference / 2.0, 1)
    known = blending.Known.of(label_map(CLASSES, old_classes))
    p = blending.completed(blending.tempered(reference, 2.0), old, known, temperature=2.0).exp()
    torch.testing.assert_close(p.sum(1), torch.ones(5, dtype=torch.float64))
    for index, name in enumerate(CLASSES):
        if name not in old_classes:
            torch.testing.assert_close(p[:, index], r[:, index])
    both = [name for name in CLASSES if name in old_classes]
    mass = r[:, [CLASSES.index(name) for name in both]].sum(1, keepdim=True)
    own = F.softmax(old[:, [old_classes.index(name) for name in both]] / 2.0, 1)
    torch.testing.assert_close(p[:, [CLASSES.index(name) for name in both]], mass * own)


def test_a_blend_is_a_distribution_whose_divergence_is_the_weighted_sum_up_to_a_constant() -> None:
    reference, old, new = normal(6, 4), normal(6, 4, seed=1), normal(6, 4, seed=2).requires_grad_()
    r, p = (blending.tempered(logits, 2.0) for logits in (reference, old))
    share = torch.tensor([0.3] * 5 + [0.0])
    q = blending.blended(r, [p], [share])
    torch.testing.assert_close(q.exp(), (1 - share[:, None]) * r.exp() + share[:, None] * p.exp())
    assert torch.equal(q[5], r[5]), "nothing is known of this sample"
    teacher = blending.as_logits(q, temperature=2.0)
    torch.testing.assert_close(F.softmax(teacher / 2.0, 1), q.exp())
    parts = (1 - share) * kl_divergence(new, reference, temperature=2.0)
    parts = parts + share * kl_divergence(new, old, temperature=2.0)
    (expected,) = torch.autograd.grad(parts.sum(), new)
    (gradient,) = torch.autograd.grad(kl_divergence(new, teacher, temperature=2.0).sum(), new)
    torch.testing.assert_close(gradient, expected)
    far = blending.as_logits(blending.tempered(torch.tensor([[0.0, -1e6]]), 2.0), temperature=2.0)
    assert far.isfinite().all()


def test_the_objective_of_a_blend_is_bounded_distillation() -> None:
    section = spec.Compatibility(blend=spec.Blend(weight=20.0, scale=4.0, temperature=2.0))
    logits, teacher, labels = normal(6, 4).float().requires_grad_(), normal(6, 4, seed=1).float(), torch.arange(6) % 4
    present = torch.tensor([True] * 5 + [False])
    value = Objective(section, CLASSES, [])(
        Outputs(normal(6, 3).float(), logits), labels, reference=OldOutputs(teacher, teacher[:, :0], present)
    )
    kl = 4.0 * F.kl_div(F.log_softmax(logits / 2, 1), F.log_softmax(teacher / 2, 1), log_target=True, reduction="none")
    expected = 4.0 / 21.0 * (F.cross_entropy(logits, labels) + 20.0 * (kl.sum(1) * present).mean())
    torch.testing.assert_close(value.total, expected, rtol=1e-5, atol=1e-5)
    assert set(value.parts) == {"task", "blend"}


# --- the choice of shares ---------------------------------------------------------------------------------------------


def evidence(*, strength: float, samples: int = 4000, old: int = 1) -> Evidence:
    """Old versions, each with errors of its own; the reference has the strength 0.1, a larger one makes more errors."""
    random = np.random.default_rng(0)
    labels = torch.from_numpy(random.integers(0, 4, samples))

    def answers(error: float, seed: int) -> Tensor:
        noise = torch.from_numpy(np.random.default_rng(seed).gumbel(0, 1, (samples, 4)))
        logits = noise + F.one_hot(labels, 4) * -np.log(error) * 1.5
        return blending.tempered(logits, 2.0)

    reference = answers(0.1, 1)
    versions = [answers(strength * (1 + index), 2 + index) for index in range(old)]
    everyone = torch.ones(samples, dtype=torch.bool)
    return Evidence(
        reference=reference,
        reference_error=float((reference.argmax(1) != labels).double().mean()) * 1.1,
        labels=labels,
        old=tuple(
            OldAnswers(name=f"v{index}", log_p=log_p, right=log_p.argmax(1) == labels, known=everyone, present=everyone)
            for index, log_p in enumerate(versions)
        ),
    )


def test_shares_fall_as_the_margin_grows_and_the_teacher_keeps_it() -> None:
    known = evidence(strength=0.5)
    front = shares.front(known)
    totals = []
    for margin in (-0.5, 0.0, 0.05):
        bound = (1 - margin) * known.reference_error
        teacher = shares.choose(front, largest_error=bound)
        assert teacher.error <= bound
        totals.append(teacher.total)
    assert totals == sorted(totals, reverse=True)
    assert totals[0] > totals[-1]
    impossible = shares.choose(front, largest_error=0.0)
    assert impossible.error == min(teacher.error for teacher in front)


def test_the_division_among_old_versions_lowers_the_worst_flips() -> None:
    known = evidence(strength=0.1, old=3)
    best = {teacher.total: teacher for teacher in shares.front(known)}
    for total in (0.2, 0.4):
        equal = known.predicted({version.name: total / 3 for version in known.old})
        assert best[total].worst < equal.worst
        assert sum(best[total].shares.values()) == pytest.approx(total)


@pytest.mark.parametrize(
    ("share", "recorded", "expected"),
    [(0.4, None, [0.2, 0.2]), ({"v1": 0.1}, None, [0.0, 0.1]), ("auto", {"v0": 0.25, "v1": 0.0}, [0.25, 0.0])],
)
def test_written_and_recorded_shares_need_no_answers(
    share: Any, recorded: dict[str, float] | None, expected: list[float]
) -> None:
    section = spec.Blend(share=share)
    options = {"names": ("v0", "v1"), "weighting": spec.Equal(), "held_out": blend.HeldOut(parts=())}
    assert [*blend.plan(section, None, **options, recorded=recorded).shares.values()] == expected
    if share == "auto":
        with pytest.raises(SpecError, match="the weights of some are gone; write a share"):
            blend.plan(section, None, **options)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"blend": {"share": {"v1": 0.6, "v2": 0.4}}}, "must add up to less than 1, got 1"),
        ({"blend": {}, "reference": {}}, "leave reference out, and write blend.runs"),
        ({"blend": {}, "losses": [{"kind": "focal_distillation"}]}, "leave focal_distillation out of losses"),
    ],
)
def test_what_a_blend_already_has_is_refused_beside_it(section: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse("v2", compatibility=section)


# --- a small training -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With v1, which knows two of the three classes."""
    folder = tmp_path_factory.mktemp("home")
    train(parse("v1", classes=2, compatibility={}), run_dir=folder / "v1", home=folder)
    return folder


@pytest.mark.parametrize("engine", ["torch", "deepspeed"])
def test_a_blend_trains_resumes_and_says_what_was_predicted(home: Path, engine: str) -> None:
    section = {"blend": {"runs": 2}, "losses": [{"kind": "influence"}], "targets": {"views": 2}}
    recipe = {"engine": {"kind": engine}, "checkpoint_every": 4}
    document, told = parse("v2", compatibility=section, **recipe), []
    whole, parts = home / f"{engine}-whole", home / f"{engine}-parts"
    done = train(document, run_dir=whole, home=home, ancestors=[home / "v1/model"], progress=told.append)

    class StoppedError(Exception):
        pass

    def stop(row: Mapping[str, object]) -> None:
        if row.get("event") == "step" and row["step"] == 6 and "blend" in row["parts"]:
            raise StoppedError

    with pytest.raises(StoppedError):
        train(document, run_dir=parts, home=home, ancestors=[home / "v1/model"], progress=stop)
    again = train(document, run_dir=parts, home=home, ancestors=[home / "v1/model"])
    assert again.result.resumed_from == 4
    assert again.digest == done.digest
    row = next(row for row in trace.read(whole / trace.FILE) if row["event"] == "step")
    assert set(row["parts"]) == {"task", "influence/v1", "blend"}
    assert [row["epochs"] for row in trace.read(whole / trace.FILE) if row["event"] == "start"] == [4]

    (plan,) = (row for row in told if row.get("stage") == "blend")
    recorded = json.loads((whole / blend.FILE).read_text())
    assert recorded["shares"] == plan["shares"] == json.loads((whole / "spec.json").read_text())["job"]["shares"]
    assert recorded["ids"] == 120
    assert set(recorded["reached"]["nfr"]) == {"v1"}
    assert blend.recorded(whole) == done.notes
    assert [note for note in done.notes if note.startswith("blend: on 120 held-out samples the teacher has an error")]


def test_a_version_without_an_answer_is_wrong_and_large_splits_are_thinned(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = parse("v2", compatibility={})
    task, old = tasks.build(document.task), bundle.load(home / "v1/model", augment_like=document.task)
    monkeypatch.setattr(blend, "MOST", 60)
    held_out = blend.HeldOut.of_task(task)
    assert [len(positions) for _, positions in held_out.parts] == [30, 30]
    silent = replace(old, classes=task.classes, network=task.network(task.classes).eval())
    torch.nn.init.constant_(silent.network.head.bias, torch.nan)
    known = blend.evidence_of(spec.Blend(), [old], [silent], held_out, classes=task.classes, batch_size=1024)
    assert known.reference_error == known.predicted({"v1": 0.0}).error == 1.0
    assert known.old[0].right.any()


def test_the_first_version_has_nothing_to_blend_with(home: Path) -> None:
    plain, blended = (
        train(parse("v1", compatibility=section), run_dir=home / name, home=home)
        for name, section in (("plain", {}), ("blended", {"blend": {}}))
    )
    assert (
        json.loads(plain.folder.parent.joinpath("training.json").read_text())["weights_sha256"]
        == (json.loads(blended.folder.parent.joinpath("training.json").read_text())["weights_sha256"])
    )
    other = parse("v2", compatibility={"blend": {"share": {"v7": 0.1}, "runs": 2}, "targets": {"views": 2}})
    with pytest.raises(SpecError, match="'v7' is not a predecessor of this training; it has v1"):
        train(other, run_dir=home / "other", home=home, ancestors=[home / "v1/model"])


def test_the_teacher_of_training_is_the_blend_of_cached_outputs(home: Path, tmp_path: Path) -> None:
    document = parse("v2", compatibility={})
    task = tasks.build(document.task)
    samples = task.samples("train")
    views = targets.key_views(samples.ids, seed=0, count=2)
    old = bundle.load(home / "v1/model", augment_like=document.task)
    torch.manual_seed(3)
    runs = [
        replace(old, name=f"r{i}", digest=f"{i}", classes=task.classes, network=task.network(task.classes).eval())
        for i in range(2)
    ]
    old_cache, *caches = (
        targets.build(version, samples, views=views, root=tmp_path / "targets") for version in (old, *runs)
    )
    known = blending.Known.of(label_map(task.classes, old.classes))
    side = OldSide(name="v1", cache=old_cache, known=known)
    teacher = Teacher(caches, [side], shares={"v1": 0.4}, temperature=2.0)
    positions = np.array([7, 0, 100])
    fetched = teacher.fetch(positions, None, views[1, positions], 1)
    mean = torch.stack([cache.rows(positions, 1).logits for cache in caches]).mean(0)
    r = blending.tempered(mean, 2.0)
    p = blending.completed(r, old_cache.rows(positions, 1).logits, known, temperature=2.0)
    torch.testing.assert_close(F.softmax(fetched.logits / 2.0, 1), (0.6 * r.exp() + 0.4 * p.exp()).float())
    assert fetched.present.all()
