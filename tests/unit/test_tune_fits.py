"""Fits are known by what determines them; the parts of a search never meet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graceful import spec as specs
from graceful import tasks
from graceful.errors import DataError
from graceful.programs.tuning import fits, splits
from graceful.programs.tuning.bench import Bench


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


def test_subset_reads_its_own_items() -> None:
    spec = spec_of()
    whole = tasks.build(spec.task).samples("validation")
    picked = np.array([5, 17, 3])
    some = splits.subset(whole, picked)
    assert some.ids.tolist() == whole.ids[picked].tolist()
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
    references = {one.digest for one in bench.untreated(seeds=[0, 1], on="search")}
    assert len(references) == 6
    assert base.digest not in references


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
    fits._write_right(work, who)
    assert np.array_equal(fits.right(work), who)


def test_half_a_note_is_no_end(tmp_path: Path) -> None:
    work = made(tmp_path).work(POINT, seed=0, on="search")
    work.place.mkdir(parents=True)
    (work.place / "search-fit.json").write_text('{"digest": "x", "sec')
    assert fits.finished(work) is None
