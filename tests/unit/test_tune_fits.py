"""Fits are identified by what determines them; the parts of a search share no sample."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graceful import spec as specs
from graceful import tasks
from graceful.errors import DataError, GracefulError, IntegrityError
from graceful.models import bundle
from graceful.programs.runs.run import Run
from graceful.programs.tuning import fits, splits, teacher
from graceful.programs.tuning import program as tuning
from graceful.programs.tuning.bench import Bench
from graceful.programs.tuning.program import require_runnable
from tests.support import training_task
from tests.support.runs import train


def spec_of(**sections: Any) -> specs.RefreshSpec:
    return specs.parse({"model": "m", "name": "v2", "task": {"kind": "glyphs"}, **sections})


ADAPTIVE = {"losses": [{"kind": "focal_distillation"}], "weighting": {"kind": "adaptive"}}


@pytest.mark.parametrize(
    "sections", [{}, {"compatibility": ADAPTIVE}, {"tune": {"far": 0.01}}], ids=["plain", "adaptive", "verification"]
)
def test_no_group_is_in_two_parts(sections: dict[str, Any]) -> None:
    spec = spec_of(**sections)
    task = tasks.build(spec.task)
    parts = [splits.part(task, spec, name) for name in ("search", "held_back", "test")]
    parts += [task.samples("train"), *([task.samples("constraint")] if sections else [])]
    seen: set[str] = set()
    for samples in parts:
        groups = set(samples.groups.tolist())
        assert not groups & seen
        seen |= groups


def test_some_of_the_samples_have_their_own_items_and_weights() -> None:
    spec = spec_of()
    whole = tasks.build(spec.task).samples("validation")
    whole = replace(whole, weights=np.linspace(0.5, 2.0, len(whole)))
    picked = np.array([5, 17, 3])
    some = whole.at(picked)
    assert some.ids.tolist() == whole.ids[picked].tolist()
    assert whole.weights is not None
    assert some.weights is not None
    assert some.weights.tolist() == whole.weights[picked].tolist()
    assert some.digest == whole.digest
    assert np.array_equal(some.read(np.array([2, 0])), whole.read(np.array([3, 5])))


def test_too_few_ids_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splits, "LEAST", 300)
    spec = specs.parse({"model": "m", "name": "v2", "task": {"kind": "digits"}, "tune": {"far": 0.01}})
    with pytest.raises(DataError, match="ids are left for search, need at least 300"):
        splits.part(tasks.build(spec.task), spec, "search")


def made(folder: Path) -> Bench:
    spec = spec_of(tune={})
    assert spec.tune is not None
    return Bench(
        spec=spec,
        task=None,  # type: ignore[arg-type]
        folder=folder,
        home=folder,
        ancestors=(),
        tune=spec.tune,
        references=3,
    )


POINT = {"compare": "displacement", "displacement": 1.0, "margin": 0.5, "runs": 0}


def test_fits_differ_by_point_and_seed_alone(tmp_path: Path) -> None:
    bench = made(tmp_path)
    base = bench.work(POINT, seed=0, on="search")
    assert bench.work(POINT, seed=0, on="test").digest == base.digest
    assert bench.work(POINT, seed=1, on="search").digest != base.digest
    assert bench.work({**POINT, "margin": 0.6}, seed=0, on="search").digest != base.digest
    references = {one.digest for one in bench.reference_works(seeds=[0, 1], on="search")}
    assert len(references) == 6
    assert base.digest not in references


def test_shares_of_the_old_weights_are_one_training_with_several_answers(tmp_path: Path) -> None:
    spec = spec_of(tune={}, train={"start": "latest"}, compatibility={"interpolation": 0.2})
    bench = replace(made(tmp_path), spec=spec)
    base = bench.work({**POINT, "interpolation": 0.0}, seed=0, on="search", shares=(0.1, 0.3))
    other = bench.work({**POINT, "interpolation": 0.3}, seed=0, on="search")
    assert (base.digest, base.share, base.measured) == (other.digest, 0.0, "search")
    assert (other.share, other.measured) == (0.3, "search-0.3")
    assert base.at(0.3) == other
    assert other.at(0.0).measured == "search"
    (reference,) = {one.share for one in bench.reference_works(seeds=[0], on="search")}
    assert reference == 0.0
    plain = made(tmp_path).work(POINT, seed=0, on="search")
    assert plain.digest != base.digest  # it starts elsewhere


def test_a_fit_is_trained_once_and_asked_with_every_share(tmp_path: Path) -> None:
    optimizer = {"kind": "adamw", "lr": 0.01}
    recipe = {"num_workers": 0, "engine": {"kind": "torch"}, "optimizer": optimizer, "epochs": 2, "batch_size": 128}
    document = {"model": "m", "task": {"kind": "digits"}, "train": recipe, "home": str(tmp_path), "tune": {}}
    first = specs.parse({**document, "name": "v1"})
    old = train(first, run_dir=tmp_path / "v1", home=tmp_path).folder
    spec = specs.parse({**document, "name": "v2", "train": {**recipe, "start": "latest", "optimizer": {"lr": 0.2}}})
    bench = replace(
        made(tmp_path),
        spec=spec,
        task=tasks.build(spec.task),
        ancestors=tuple(Run.of(spec, home=tmp_path).chain([old])),
    )
    work = bench.work({**POINT, "interpolation": 0.0}, seed=0, on="search", shares=(0.999,))
    assert fits.fit(work.document())["failed"] is None
    assert not (work.folder_path / "model").exists()
    before = bundle.load(old)
    was_right = fits.correct_answers(before, splits.part(bench.task, spec, "search"), spec, bench.task)
    assert np.mean(fits.right(work.at(0.999)) != was_right) < 0.01 < np.mean(fits.right(work) != was_right)
    done = fits.finished(work.at(0.999))
    assert done is not None
    assert done.digest == work.digest
    assert fits.finished(work.at(0.5)) is None


def test_a_search_of_a_blend_begins_at_the_front_of_its_teacher(tmp_path: Path) -> None:
    """Before its reference runs are trained the front is not known, and nothing is trained to know it."""
    optimizer = {"kind": "adamw", "lr": 0.01}
    recipe = {"num_workers": 0, "engine": {"kind": "torch"}, "optimizer": optimizer, "epochs": 2, "batch_size": 128}
    document = {"model": "m", "task": {"kind": "digits"}, "train": recipe, "home": str(tmp_path), "tune": {}}
    old = train(specs.parse({**document, "name": "v1"}), run_dir=tmp_path / "v1", home=tmp_path).folder
    spec = specs.parse({**document, "name": "v2", "compatibility": {"blend": {"runs": 2}}})
    run = tuning.run_of(spec)
    ancestors, task = run.chain([old]), tasks.build(spec.task)
    assert teacher.front_of(run, ancestors, task) == "not known, 2 of 2 reference runs are not trained yet"
    assert not list(tmp_path.glob("references/*"))
    bench = replace(made(tmp_path), spec=spec, task=task, ancestors=tuple(ancestors), references=2)
    points = teacher.known_points(bench)
    assert len(points) > 1
    assert all(point["compare"] == "blend" and point["runs"] == 2 and 0 <= point["share"] <= 0.8 for point in points)
    rows = teacher.front_of(run, ancestors, task)
    assert [row["share"] for row in rows] == [round(0.1 * index, 1) for index in range(10)]
    assert rows[0]["worst_nfr"] >= rows[-1]["worst_nfr"]


def test_trials_on_one_machine_train_in_their_own_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    train = made(tmp_path).work(POINT, seed=0, on="search").spec["train"]
    assert (train["num_workers"], train["engine"]) == (0, {"kind": "torch"})
    monkeypatch.setenv("RAY_ADDRESS", "somewhere:6379")
    train = made(tmp_path).work(POINT, seed=0, on="search").spec["train"]
    assert (train["num_workers"], train["engine"]["kind"]) == (2, "deepspeed")


@pytest.mark.parametrize("n", [1, 8, 1001])
def test_answers_come_back_bit_for_bit(tmp_path: Path, n: int) -> None:
    work = made(tmp_path).work(POINT, seed=0, on="search")
    who = np.random.default_rng(n).random(n) < 0.7
    fits._write_correct(work, who)
    assert np.array_equal(fits.right(work), who)


def test_answers_that_announce_more_than_there_are_take_no_memory(tmp_path: Path) -> None:
    work = made(tmp_path).work(POINT, seed=0, on="search")
    fits._write_correct(work, np.ones(9, dtype=np.bool_))
    path = work.folder_path / f"{work.measured}-{fits.RIGHT}"
    path.write_bytes(path.read_bytes().replace((9).to_bytes(8, "little"), (10**15).to_bytes(8, "little")))
    with pytest.raises(IntegrityError, match=r"damaged \(announces 1000000000000000 answers and holds fewer\)"):
        fits.right(work)


def test_a_search_over_an_ancestor_whose_code_is_not_trusted_is_refused_before_it_trains(tmp_path: Path) -> None:
    section = specs.PythonTask(file=training_task.__file__)
    recorded = specs.RefreshSpec(model="m", name="v1", task=section)
    network = tasks.build(section).network(("a", "b"))
    folder = tmp_path / "v1"
    bundle.save(folder, network=network, spec=recorded, classes=("a", "b"))
    asked = specs.RefreshSpec(model="m", name="v2", task=specs.DigitsTask())
    with pytest.raises(DataError, match=f"v1 cannot be run, .* --trust-code {training_task.DIGEST}"):
        require_runnable(Run.of(asked, home=tmp_path).chain([folder]))
    trust = specs.Trust(code_digests=(training_task.DIGEST,))
    require_runnable(Run.of(asked.model_copy(update={"trust": trust}), home=tmp_path).chain([folder]))


@pytest.mark.parametrize(
    ("task", "train", "said"),
    [
        ({}, {"batch_size": 9999}, r"train\.batch_size must be at most the \d+ training samples, got 9999"),
        ({}, {"precision": "fp16", "use_gpu": False}, r"train\.precision: fp16 needs a GPU"),
        ({}, {"start": "latest"}, r"train\.start: latest needs the network of v1, but"),
        ({"share": 0.05}, {"batch_size": 16}, r"tune: \d+ ids are left for search, need at least 999999"),
    ],
)
def test_what_cannot_be_searched_is_refused_before_the_search_has_a_folder_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: dict[str, Any], train: dict[str, Any], said: str
) -> None:
    sections = {"home": str(tmp_path), "train": {"num_workers": 0, "engine": {"kind": "torch"}, **train}}
    spec = specs.parse({"model": "m", "name": "v2", "task": {"kind": "digits", **task}, **sections})
    old = specs.RefreshSpec(model="m", name="v1", task=specs.DigitsTask(network=specs.Network(embedding=32)))
    built = tasks.build(old.task)
    bundle.save(tmp_path / "v1", network=built.network(built.classes), spec=old, classes=built.classes)
    monkeypatch.setattr("graceful.programs.runs.ancestry.read", lambda *_, **__: [])
    monkeypatch.setattr("graceful.programs.runs.ancestry.fetch", lambda run, _: run.chain([tmp_path / "v1"]))
    if "share" in task:
        monkeypatch.setattr(splits, "LEAST", 999_999)
    with pytest.raises(GracefulError, match=said):
        tuning.tune(tuning.run_of(spec))
    assert not (tuning.folder_of(spec) / tuning.IDENTITY).exists()


def test_half_a_note_is_no_end(tmp_path: Path) -> None:
    work = made(tmp_path).work(POINT, seed=0, on="search")
    work.folder_path.mkdir(parents=True)
    (work.folder_path / "search-fit.json").write_text('{"digest": "x", "sec')
    assert fits.finished(work) is None
