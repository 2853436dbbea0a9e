"""Programs with finished parts: which are shared, which are run, and the report. No registry, no Ray."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from graceful import spec, targets, tasks
from graceful.chain import Predecessor
from graceful.chain.old_labels import OldLabels
from graceful.errors import DataError, IntegrityError, SpecError
from graceful.learners import Classifier
from graceful.models import bundle
from graceful.programs.evaluation.evaluate import evaluate
from graceful.programs.fitting.finishing import Trained
from graceful.programs.outputs import model_outputs
from graceful.programs.preparation.constraint_checks import require_judgeable
from graceful.tasks.base import Task
from graceful.training import batches, versions
from tests.support import training_task
from tests.support.runs import job_of, train

RECIPE = {"epochs": 1, "batch_size": 24, "engine": {"kind": "torch"}, "num_workers": 0}
FULL = {"against": "all", "losses": [{"kind": "focal_distillation"}], "targets": {"views": 2}}


def parse(name: str, *, model: str = "blobs", classes: int = 3, **sections: Any) -> spec.RefreshSpec:
    task = {"kind": "python", "file": training_task.__file__, "options": {"classes": classes}}
    recipe = {**RECIPE, **sections.pop("train", {})}
    return spec.parse({"model": model, "name": name, "task": task, "train": recipe, **sections})


def trained(document: spec.RefreshSpec, home: Path, *ancestors: Path, task: Task | None = None) -> Trained:
    return train(document, run_dir=home / document.run_id, home=home, ancestors=ancestors, task=task)


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A version that knows two of the three classes."""
    return trained(parse("v1", classes=2), tmp_path_factory.mktemp("old")).folder


def caches(home: Path) -> list[Path]:
    return sorted(path.parent for path in home.glob("targets/*/meta.json"))


def materials(document: spec.RefreshSpec, old: Path, cache: Path | None) -> batches.Materials:
    return batches.gather(
        job_of(document, Path(), [old], [cache]), tasks.build(document.task), device=torch.device("cpu")
    )


def test_families_share_reference_runs_and_a_larger_timeout_keeps_them(tmp_path: Path) -> None:
    section = {"reference": {"runs": 2}, "targets": {"views": 1}}
    trained(parse("v1", compatibility=section), tmp_path)
    trained(parse("v1", model="other", compatibility=section, train={"timeout": 99.0}), tmp_path)
    assert len(list((tmp_path / "references").iterdir())) == 2, "one for each seed, not for each family"
    assert len(caches(tmp_path)) == 2


@pytest.mark.parametrize(
    ("losses", "wanted"),
    [
        ([{"kind": "influence", "prototypes": False}], 0),
        ([{"kind": "influence"}], 1),
        ([{"kind": "reweighting"}], 1),
        ([{"kind": "embedding_regression"}], 1),
    ],
)
def test_outputs_are_cached_only_where_a_loss_reads_them(
    tmp_path: Path, old: Path, losses: list[dict[str, Any]], wanted: int
) -> None:
    trained(parse("v2", compatibility={"losses": losses, "targets": {"views": 1}}), tmp_path, old)
    assert len(caches(tmp_path)) == wanted


def test_prototypes_are_those_of_the_clean_view_whatever_is_cached(tmp_path: Path, old: Path) -> None:
    losses = [{"kind": "influence"}, {"kind": "focal_distillation"}]
    keyed = parse("v2", compatibility={"losses": losses, "targets": {"views": 2}})
    done = trained(keyed, tmp_path, old)
    (cache,) = caches(tmp_path)
    live = parse("v2", compatibility={"losses": losses, "targets": {"mode": "live"}})
    (from_cache,), (from_live,) = (materials(*one).versions for one in ((keyed, old, cache), (live, old, None)))
    assert done.notes == ()
    assert from_cache.prototypes is not None
    assert from_live.prototypes is not None
    torch.testing.assert_close(from_cache.prototypes, from_live.prototypes, rtol=0, atol=0, equal_nan=True)
    samples = tasks.build(keyed.task).samples("train")
    version = bundle.load(old, augment_like=keyed.task)
    third = version(samples.read(np.flatnonzero(samples.labels == 2))).embedding
    expected = torch.nn.functional.normalize(torch.nn.functional.normalize(third, dim=1).mean(0), dim=0)
    torch.testing.assert_close(from_live.prototypes[2], expected)


def test_the_focus_mean_counts_every_cached_view(tmp_path: Path, old: Path) -> None:
    document = parse("v2", compatibility={**FULL, "targets": {"views": 3}})
    trained(document, tmp_path, old)
    (cache,) = caches(tmp_path)
    (version,) = materials(document, old, cache).versions
    samples = tasks.build(document.task).samples("train")
    opened, known = targets.Cache.open(cache), samples.labels < 2
    right = [opened.rows(np.arange(len(samples)), view).logits.argmax(1).numpy() == samples.labels for view in range(3)]
    assert version.correct_share == pytest.approx(np.mean([hits[known].mean() for hits in right]))
    assert version.known_share == pytest.approx(known.mean())
    (live,) = materials(document, old, None).versions
    clean = training_task.opened(old)(samples.read(np.arange(len(samples)))).logits.argmax(1).numpy()
    assert live.correct_share == pytest.approx((clean == samples.labels)[known].mean())
    broken = training_task.opened(old)
    next(broken.network.parameters()).fill_(torch.nan)
    nothing = versions._correct_share(
        targets.Live(predecessor=broken), samples, OldLabels(old_label_of=np.arange(3), labels=samples.labels)
    )
    assert nothing == 0.0, "an answer that is not finite is none, not the first class"


class Grown(training_task.Blobs):
    """The same task after its training data was relabelled."""

    def samples(self, split: Any) -> Any:
        found = super().samples(split)
        return replace(found, digest=found.digest[::-1]) if split == "train" else found


def test_a_run_whose_training_data_changed_is_refused(tmp_path: Path) -> None:
    document = parse("v1")
    trained(document, tmp_path)
    changed = Grown(classes=3, die_in_rank=0, die_at=None, marker=None, poison=None)
    with pytest.raises(SpecError, match=r"data: run blobs-v1 was started with .*; choose another name"):
        trained(document, tmp_path, task=changed)
    job = batches.TrainingJob(spec=document, run_dir=tmp_path, data="0" * 64)
    with pytest.raises(DataError, match="are not those this run began with"):
        batches.gather(job, tasks.build(document.task), device=torch.device("cpu"))


def test_a_cache_that_is_not_that_version_s_is_refused_and_gaps_are_noted(
    tmp_path: Path, old: Path, monkeypatch: Any
) -> None:
    document = parse("v2", compatibility=FULL)
    trained(document, tmp_path, old)
    monkeypatch.setattr(targets.Cache, "coverage", lambda *_: 0.75)
    (note,) = trained(document, tmp_path, old).notes
    assert note == "v1: its outputs are finite on 75.0% of the training samples"
    report = evaluate(document, training_task.opened(old), [], notes=[note]).report
    assert report.notes[0] == note
    monkeypatch.setattr(targets.Cache, "check", lambda *_: targets.Agreement(argmax=0.5, mean_kl=1.0, count=10))
    with pytest.raises(IntegrityError, match=r"v1: cached and live outputs agree on 50\.0%"):
        trained(document, tmp_path, old)


def constant(name: str, answer: int, **changes: Any) -> Predecessor:
    """A version that always says the same class."""
    classes = ("blob-0", "blob-1", "blob-2")
    network = training_task.BlobNet(3).eval()
    with torch.no_grad():
        network.head.weight.zero_()
        network.head.bias.copy_(torch.nn.functional.one_hot(torch.tensor(answer), 3).float())
    learner = Classifier(lambda items, _: torch.from_numpy(np.array(items)))
    facts = {"learner": learner, "transform_digest": "t", **changes}
    return Predecessor(
        name=name, model_id=f"m-{name}", digest=name, classes=classes, embedding_size=8, network=network, **facts
    )


def test_each_ancestor_is_compared_under_its_own_name_nearest_first() -> None:
    chain = [constant("v2", 1), constant("v1", 0)]
    report = evaluate(parse("v3"), constant("v3", 0), chain).report
    assert [(item.against, item.model_id, item.distance) for item in report.comparisons] == [
        ("v2", "m-v2", 1),
        ("v1", "m-v1", 2),
    ]
    rates = [item.measurements["negative_flip_rate"].value for item in report.comparisons]
    assert rates == [pytest.approx(1 / 3), 0.0]
    assert report.measurements["step_nfr"].value == pytest.approx(1 / 3)
    found = evaluate(parse("v3"), constant("v3", 0), chain)
    assert {flip.against for flip in found.flips} == {"v2"}


class Watched(training_task.Blobs):
    """A task that records which splits are read."""

    def __init__(self, **options: Any) -> None:
        self.splits: list[str] = []
        super().__init__(**options)

    def samples(self, split: Any) -> Any:
        self.splits.append(split)
        return super().samples(split)


def test_the_gate_is_fed_by_the_test_split_alone() -> None:
    task = Watched(classes=3, die_in_rank=0, die_at=None, marker=None, poison=None)
    report = evaluate(parse("v2"), constant("v2", 0), [constant("v1", 1)], task=task).report
    assert set(task.splits) == {"test", "query", "gallery"}
    assert report.data == dict.fromkeys(("test", "query", "gallery"), task.samples("test").digest)


def test_training_reads_its_own_splits_and_watches_validation_alone() -> None:
    task = Watched(classes=3, die_in_rank=0, die_at=None, marker=None, poison=None)
    job = batches.TrainingJob(spec=parse("v1"), run_dir=Path())
    found = batches.gather(job, task, device=torch.device("cpu"))
    assert set(task.splits) == {"train", "validation"}
    assert {name.partition("/")[0] for name in found.validation.ids.tolist()} == {"validation"}


def test_the_test_split_is_answered_once_where_it_stands_in_for_query_and_gallery(monkeypatch: Any) -> None:
    calls: list[str] = []
    real = model_outputs.answers_on_split

    def counted(version: Any, *rest: Any, **options: Any) -> Any:
        calls.append(version.name)
        return real(version, *rest, **options)

    monkeypatch.setattr(model_outputs, "answers_on_split", counted)
    evaluate(parse("v2"), constant("v2", 0), [constant("v1", 1)])
    assert calls == ["v2", "v1"]


def test_test_ids_in_training_data_are_noted() -> None:
    seen = tasks.build(parse("v2").task).samples("test").ids[:7]

    def gone() -> Any:
        raise DataError("task.root: /gone is not a folder; check the path")

    chain = [constant("v1", 1, training_ids=lambda: seen), constant("v0", 1, training_ids=gone)]
    notes = evaluate(parse("v2"), constant("v2", 0, training_ids=lambda: np.array(["x"])), chain).report.notes
    assert [note.partition(";")[0] for note in notes] == [
        "v1: 7 of 60 test ids are in its training data",
        "v0: whether test ids are in its training data is unknown (task.root: /gone is not a folder",
    ]


def test_a_bundle_knows_the_ids_it_was_trained_on(old: Path) -> None:
    version = training_task.opened(old)
    assert version.training_ids is not None
    assert version.training_ids().tolist() == tasks.build(parse("v1").task).samples("train").ids.tolist()


def test_retrieval_that_is_switched_off_cannot_be_constrained() -> None:
    gate = {"constraints": [{"metric": "cross_test_gain_map", "direction": "above", "bound": 0.0}]}
    require_judgeable(parse("v1", gate=gate), [])
    with pytest.raises(SpecError, match=r"gate\.constraints\.0\.metric: cross_test_gain_map is not measured"):
        require_judgeable(parse("v1", gate=gate, evaluate={"retrieval": False}), [])
    for metric in ("error_rate", "negative_flip_rate"):
        allowed = {"constraints": [{"metric": metric, "bound": 0.1}]}
        require_judgeable(parse("v1", gate=allowed, evaluate={"retrieval": False}), [])
