"""The journal of a search: trials, constraints, trials of a killed driver, half-written lines; and the search loop."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest

from graceful import spec as specs
from graceful.errors import IntegrityError, StorageError
from graceful.programs.tuning import search as searching
from graceful.programs.tuning import space
from graceful.programs.tuning.bench import Bench
from graceful.programs.tuning.fits import Fit, Work
from graceful.programs.tuning.scoring import Score
from graceful.programs.tuning.study import Study, Tried
from graceful.training import search as running


def wanted(**tune: Any) -> specs.RefreshSpec:
    section = {"space": {"compare": ["displacement"], "runs": [0]}, **tune}
    return specs.parse({"model": "m", "name": "v2", "task": {"kind": "digits"}, "tune": section})


def opened(folder: Path, **tune: Any) -> Study:
    spec = wanted(**tune)
    assert spec.tune is not None
    return Study(folder / "journal.jsonl", tune=spec.tune, space=space.parameters(spec), seed=0)


def scored(nfr: float, violation: float) -> Score:
    return Score(
        error=0.1,
        limit=0.1,
        excess=violation,
        excess_upper=violation,
        violation=violation,
        nfr=nfr,
        nfr_lower=0.0,
        nfr_upper=1.0,
        against={"v1": nfr},
        reference_nfr=0.1,
    )


def facts(seconds: float = 1.0) -> dict[str, Any]:
    return {"seconds": seconds, "digest": "d", "failed": None}


def test_best_is_the_best_feasible_one(tmp_path: Path) -> None:
    study = opened(tmp_path)
    for nfr, violation in ((0.01, 0.5), (0.03, -0.1), (0.02, -0.1)):
        number, _ = study.ask()
        study.tell(number, scored(nfr, violation), facts())
    assert study.study.best_trial.number == 2
    assert [one.feasible for one in study.trials()] == [False, True, True]


def test_failed_trial_has_no_value_and_counts(tmp_path: Path) -> None:
    study = opened(tmp_path)
    number, _ = study.ask()
    study.tell(number, None, {**facts(), "failed": "CollapsedError: at chance"})
    (one,) = opened(tmp_path).trials()
    assert (one.state, one.record["failed"]) == ("failed", "CollapsedError: at chance")
    assert study.ended() == 1
    assert study.study.trials[0].values is None


def test_another_process_continues_and_sees_everything(tmp_path: Path) -> None:
    first = opened(tmp_path)
    number, point = first.ask()
    first.tell(number, scored(0.02, -0.1), facts())
    left, left_point = first.ask()
    second = opened(tmp_path)
    assert [(one.number, one.state) for one in second.trials()] == [(number, "complete"), (left, "running")]
    assert second.trials()[0].point == point
    (zombie,) = second.interrupted()
    second.again(zombie.number)
    assert second.trials()[left].state == "abandoned"
    again, same = second.ask()
    assert (again, same) == (left + 1, left_point)
    assert second.ended() == 1


def test_continued_search_does_not_repeat_its_draws(tmp_path: Path) -> None:
    _, point = opened(tmp_path, sampler="random").ask()
    assert opened(tmp_path, sampler="random").ask()[1] != point


def test_half_a_line_at_the_end_is_forgotten(tmp_path: Path) -> None:
    study = opened(tmp_path)
    number, _ = study.ask()
    study.tell(number, scored(0.02, -0.1), facts())
    journal = tmp_path / "journal.jsonl"
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code": 5, "wor')
    again = opened(tmp_path)
    assert journal.read_bytes().startswith(whole)
    assert b"wor\n" not in journal.read_bytes()
    again.ask()
    assert len(opened(tmp_path).trials()) == 2


def test_known_points_are_enqueued_once(tmp_path: Path) -> None:
    point = {"compare": "displacement", "displacement": 3.0, "margin": 0.5, "runs": 0}
    study = opened(tmp_path)
    study.enqueue([point])
    assert study.ask()[1] == point
    again = opened(tmp_path)
    again.enqueue([point])
    assert again.ask()[1] != point


def test_importances_need_trials(tmp_path: Path) -> None:
    study = opened(tmp_path, sampler="random")
    assert study.importances() == {}
    draw = random.Random(0)
    for _ in range(24):
        number, point = study.ask()
        study.tell(number, scored(float(point["displacement"]) / 100 + 0.001 * draw.random(), -0.1), facts())
    shares = study.importances()
    assert max(shares, key=lambda name: shares[name]) == "displacement"


def test_front_has_no_constraint(tmp_path: Path) -> None:
    study = opened(tmp_path, objectives="front")
    for nfr, violation in ((0.01, 0.5), (0.03, -0.1)):
        number, _ = study.ask()
        study.tell(number, scored(nfr, violation), {**facts(), "retrieval": nfr})
    assert len(study.study.best_trials) == 2
    assert all(not one.constraints for one in study.study.trials)


@pytest.mark.parametrize("where", ["first", "middle", "last"])
@pytest.mark.parametrize(
    "line",
    [
        b'{"op_code":4,"work',
        b"\x00" * 40,
        b"caf\xe9",
        b"",
        b"[1, 2]",
        b"7",
        b"{}",
        b'{"op_code": 99}',
        b'{"op_code": "x"}',
    ],
)
def test_a_damaged_line_is_refused_with_its_number_and_the_remedy(tmp_path: Path, line: bytes, where: str) -> None:
    study, journal = opened(tmp_path), tmp_path / "journal.jsonl"
    for nfr in (0.03, 0.02):
        number, _ = study.ask()
        study.tell(number, scored(nfr, -0.1), facts())
    lines = journal.read_bytes().splitlines()
    at = {"first": 1, "middle": len(lines) // 2, "last": len(lines)}[where]
    lines[at - 1] = line
    journal.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(IntegrityError) as raised:
        opened(tmp_path)
    assert raised.value.message.startswith(f"{journal}:{at}: damaged")
    assert f"head -n {at - 1}" in raised.value.message
    assert "\n" not in raised.value.message
    journal.write_bytes(b"".join(one + b"\n" for one in lines[: at - 1]))
    assert opened(tmp_path).ask()[0] <= 2


def test_optuna_still_keeps_constraints_where_we_set_them() -> None:
    study = optuna.create_study()
    trial = study.ask()
    trial.set_constraint("error", 0.5)
    study.tell(trial, 1.0)
    assert study.trials[0].constraints == {"error": 0.5}


# --- the loop ---------------------------------------------------------------------------------------------------------


class Pretended(Bench):
    """Fits that cost nothing: the answer is a function of the point."""

    def make(self, works: Any, progress: Any, *, stage: str, trained: bool = False) -> None:
        """Reference runs are not needed."""

    def judge(self, works: Any, *, seeds: Any, on: Any) -> Score:
        (loss,) = specs.parse(works[0].spec).compatibility.losses
        return scored(loss.weight / 100, loss.weight - 5.0)

    def run(self, *, ask: Any, tell: Any) -> None:
        def function(told: Mapping[str, Any]) -> dict[str, Any]:
            seed = len(told["key"]) and int(told["key"][:2], 16)
            failed = "CollapsedError: at chance" if seed % 5 == 0 else None
            return {"digest": told["key"], "seconds": 0.1, "failed": failed, "retrieval": None}

        def told() -> dict[str, Any] | None:
            work = ask()
            return None if work is None else {"key": work.folder_path.name}

        running.here(function, ask=told, tell=tell)


def bench(folder: Path, **tune: Any) -> Pretended:
    spec = wanted(**tune)
    assert spec.tune is not None
    return Pretended(
        spec=spec,
        task=None,
        folder=folder / "fits",
        home=folder,
        ancestors=(),
        tune=spec.tune,
        references=1,  # type: ignore[arg-type]
    )


def silent(row: Mapping[str, object]) -> None:
    """Nothing."""


def test_as_many_trials_as_asked_and_every_end_is_told(tmp_path: Path) -> None:
    told: list[Tried] = []
    study = opened(tmp_path, trials=9)
    searching.search(bench(tmp_path, trials=9), study, listener=told.append, progress=silent)
    assert study.ended() == 9
    assert [one.state for one in told].count("running") == 9
    assert {one.number for one in told if one.state != "running"} == set(range(9))
    searching.search(bench(tmp_path, trials=12), study, listener=told.append, progress=silent)
    assert study.ended() == 12


def test_zombies_are_told_if_their_fit_has_finished_and_else_tried_again(tmp_path: Path) -> None:
    from graceful.storage import write_json

    killed, made = opened(tmp_path, trials=2), bench(tmp_path, trials=2)
    _, point = killed.ask()
    work: Work = made.work(point, seed=0, on="search")
    write_json(work.folder_path / "search-fit.json", vars(Fit(digest=work.digest, seconds=7.0)))
    lost, lost_point = killed.ask()
    study = opened(tmp_path, trials=2)
    searching.search(made, study, listener=lambda tried: None, progress=silent)
    first, second, third = study.trials()
    assert (first.state, first.record["seconds"]) == ("complete", 7.0)
    assert (second.number, second.state) == (lost, "abandoned")
    assert third.point == lost_point
    assert study.ended() == 2


def test_another_limit_judges_anew_and_makes_nothing_again(tmp_path: Path) -> None:
    from graceful.storage import write_json

    made, first = bench(tmp_path, trials=4), opened(tmp_path, trials=4)
    searching.search(made, first, listener=lambda tried: None, progress=silent)
    for one in first.trials()[:3]:
        work = made.work(one.point, seed=0, on="search")
        write_json(work.folder_path / "search-fit.json", vars(Fit(digest=work.digest, seconds=7.0)))
    (tmp_path / "other").mkdir()
    second = opened(tmp_path / "other", trials=3)
    few = bench(tmp_path, trials=3)
    searching.search(few, second, listener=lambda tried: None, progress=silent, before=first.trials())
    assert [one.point for one in second.trials()] == [one.point for one in first.trials()[:3]]
    assert all(one.record["seconds"] == 7.0 for one in second.trials())


def test_a_trial_stands_for_the_best_share_of_the_old_weights(tmp_path: Path) -> None:
    """One training, measured at every share: its record, and what people are told, are those of the best one."""
    from graceful.storage import write_json

    class Mixing(Pretended):
        def run(self, *, ask: Any, tell: Any) -> None:
            while (work := ask()) is not None:
                ended = [Fit(digest=work.digest, seconds=1.0 + share, retrieval=share) for share in (0.0, *work.shares)]
                for share, fit in zip(work.shares, ended[1:], strict=True):
                    write_json(work.folder_path / f"{work.at(share).measured}-fit.json", vars(fit))
                tell(work.digest, vars(ended[0]))

        def judge(self, works: Any, *, seeds: Any, on: Any) -> Score:
            return scored(
                0.02 - works[0].share / 100, works[0].share - 0.35
            )  # more of the old: fewer flips, more errors

    made = bench(tmp_path, trials=2)
    started = {**made.spec.dump(), "train": {"start": "latest"}}
    mixing = Mixing(
        **{**{name: getattr(made, name) for name in made.__dataclass_fields__}, "spec": specs.parse(started)}
    )
    study, told = opened(tmp_path, trials=2), list[Tried]()
    searching.search(mixing, study, listener=told.append, progress=silent)
    ended = [one for one in told if one.state == "complete"]
    assert [one.point["interpolation"] for one in ended] == [0.3, 0.3]
    assert all(one.record["nfr"] == pytest.approx(0.017) for one in ended)
    assert all((one.record["seconds"], one.record["retrieval"]) == (1.0, 0.3) for one in ended)
    assert "interpolation" not in study.trials()[0].point  # nothing that the sampler draws


def test_trials_of_another_limit_keep_their_own_fits(tmp_path: Path) -> None:
    """Also where an early one has no fit, and points wait to be tried."""
    from graceful.storage import write_json

    before, made = opened(tmp_path / "other", trials=6), bench(tmp_path, trials=5)
    for number in range(6):
        _, point = before.ask()
        work = made.work(point, seed=0, on="search")
        if number != 1:
            write_json(work.folder_path / "search-fit.json", vars(Fit(digest=work.digest, seconds=float(number))))
    tried = before.trials()
    study = opened(tmp_path, trials=5)
    study.enqueue([tried[1].point])
    study.again(study.ask()[0])
    searching.search(
        made, study, listener=lambda one: None, progress=silent, before=tried, first=lambda: [tried[0].point]
    )
    ended = [one for one in study.trials() if one.state == "complete"]
    assert sorted(one.record["seconds"] for one in ended) == [0.0, 2.0, 3.0, 4.0, 5.0]
    for one in ended:
        assert one.point == tried[int(one.record["seconds"])].point
        assert one.record["digest"] == made.work(one.point, seed=0, on="search").digest


def test_the_best_share_keeps_the_error_rate_and_else_exceeds_it_least() -> None:
    kept = {0.0: scored(0.03, -0.1), 0.1: scored(0.02, -0.1), 0.2: scored(0.02, 0.0), 0.3: scored(0.0, 0.1)}
    assert searching.best_share(kept) == 0.1
    assert searching.best_share({0.1: scored(0.0, 0.3), 0.4: scored(0.5, 0.2)}) == 0.4


def test_what_befalls_every_fit_ends_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(told: Mapping[str, Any]) -> dict[str, Any]:
        raise StorageError("the disk is full")

    monkeypatch.setattr(searching.fits, "fit", full)
    made = bench(tmp_path, max_concurrent=1)
    study = opened(tmp_path)
    real = Bench(**{name: getattr(made, name) for name in made.__dataclass_fields__})
    with pytest.raises(StorageError, match="disk is full"):
        real.run(ask=lambda: made.work(study.ask()[1], seed=0, on="search"), tell=lambda key, answer: None)
    assert study.ended() == 0


def test_random_search_is_a_baseline_without_known_points(tmp_path: Path) -> None:
    study = opened(tmp_path, trials=5, sampler="random")
    searching.search(bench(tmp_path, trials=5, sampler="random"), study, listener=lambda tried: None, progress=silent)
    assert len({one.point["displacement"] for one in study.trials()}) == 5
