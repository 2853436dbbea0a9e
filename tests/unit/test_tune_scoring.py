"""Error against its limit and flips, from who is right; and fronts, areas, pictures of them."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
from numpy.typing import NDArray

from graceful.errors import DataError
from graceful.metrics.retrieval import Embeddings
from graceful.programs.tuning import pictures, result
from graceful.programs.tuning.final import Candidate, best, choose, closest, select
from graceful.programs.tuning.scoring import Baseline, Limit, Old, Score, front, hypervolume, mean_bounds, score
from graceful.programs.tuning.study import Tried
from graceful.programs.tuning.verify import accepted, genuine_pairs
from graceful.spec import Tune

REFERENCE = Limit(absolute=None, tolerance=0.0, confidence=0.8)


def mask(*rows: str) -> NDArray[np.bool_]:
    return np.array([[letter == "1" for letter in row] for row in rows])


def base(reference: NDArray[np.bool_], *old: str, known: str | None = None) -> Baseline:
    n = reference.shape[1]
    seen = mask(known)[0] if known else np.ones(n, dtype=np.bool_)
    chain = tuple(Old(name=f"v{index}", right=mask(row)[0], known=seen) for index, row in enumerate(old))
    return Baseline(reference=reference, chain=chain, units=np.arange(n))


def test_worst_predecessor_counts_and_unknown_classes_do_not() -> None:
    found = score(mask("1100"), base(mask("1111"), "1110", "1111"), REFERENCE)
    assert found.against == {"v0": 0.25, "v1": 0.5}
    assert found.nfr == 0.5
    partly = score(mask("1100"), base(mask("1111"), "1111", known="1110"), REFERENCE)
    assert partly.nfr == pytest.approx(1 / 3)


def test_error_is_compared_with_the_mean_of_the_reference_runs() -> None:
    found = score(mask("1100"), base(mask("1110", "1000"), "1111"), REFERENCE)
    assert (found.error, found.limit, found.excess) == (0.5, 0.5, 0.0)
    assert found.reference_nfr == 0.5
    assert not found.feasible
    assert found.excess_upper > 0.0


def test_absolute_limit_and_relative_tolerance() -> None:
    right = mask("1" * 90 + "0" * 10)
    asked = Limit(absolute=0.1, tolerance=0.5, confidence=0.5)
    found = score(right, base(right, "1" * 100), asked)
    assert found.limit == pytest.approx(0.1)
    assert found.violation == pytest.approx(-0.05)
    assert found.feasible


def test_pairing_makes_the_bound_narrow() -> None:
    rng = np.random.default_rng(0)
    hard = rng.random(3000) < 0.1
    same = score(~hard[None], base(~hard[None], "1" * 3000), REFERENCE)
    other = score(rng.permutation(~hard)[None], base(~hard[None], "1" * 3000), REFERENCE)
    assert 0.0 < same.excess_upper < 0.001
    assert other.excess_upper - other.excess > 5 * (same.excess_upper - same.excess)


def test_bound_of_independent_ids_is_the_normal_one() -> None:
    values = (np.arange(1000) % 10 == 0).astype(np.float64)[None]
    lower, mean, upper = mean_bounds(values, np.arange(1000), 0.9)
    half = NormalDist().inv_cdf(0.9) * math.sqrt((1000 * 0.1 * 0.9 + 1) / 1000**2)
    assert mean == pytest.approx(0.1)
    assert upper - mean == pytest.approx(mean - lower) == pytest.approx(half, rel=2e-3)


def test_groups_and_seeds_widen_the_bound() -> None:
    values = np.repeat([1.0, 0.0], 50)[None]
    alone = mean_bounds(values, np.arange(100), 0.8)[2]
    grouped = mean_bounds(values, np.repeat(np.arange(10), 10), 0.8)[2]
    assert grouped > alone
    seeds = np.stack([np.zeros(100), np.ones(100)])
    assert mean_bounds(seeds, np.arange(100), 0.8)[2] > mean_bounds(seeds[:1] + 0.5, np.arange(100), 0.8)[2]


def test_half_confidence_is_the_measured_error() -> None:
    lower, mean, upper = mean_bounds(np.eye(5), np.arange(5), 0.5)
    assert lower == mean == upper == pytest.approx(0.2)


def test_front_and_area() -> None:
    points = [(1.0, 3.0), (2.0, 2.0), (3.0, 1.0), (3.0, 3.0), (2.0, 2.0)]
    assert front(points) == [0, 1, 2, 4]
    assert hypervolume([(1.0, 3.0), (2.0, 2.0), (3.0, 1.0)], (4.0, 4.0)) == 6.0
    assert hypervolume([(5.0, 0.0), (0.0, 5.0)], (4.0, 4.0)) == 0.0


# --- candidates and results -------------------------------------------------------------------------------------------


def scored(nfr: float, violation: float) -> Score:
    return Score(
        error=0.1 + violation,
        limit=0.1,
        excess=violation - 0.01,
        excess_upper=violation,
        violation=violation,
        nfr=nfr,
        nfr_lower=nfr / 2,
        nfr_upper=2 * nfr,
        against={"v1": nfr},
        reference_nfr=0.04,
    )


def tried(number: int, nfr: float, violation: float) -> Tried:
    record = {**scored(nfr, violation).document(), "seconds": 1.0, "digest": f"d{number}"}
    point = {"compare": "displacement", "displacement": 1.0, "margin": 0.5, "runs": 1, "reference": 2.0}
    return Tried(number=number, point=point, state="complete", record=record)


FAILED = Tried(number=9, point={"compare": "distillation"}, state="failed", record={"failed": "CollapsedError: <x>"})
TRIALS = [tried(0, 0.010, 0.002), tried(1, 0.030, -0.002), tried(2, 0.020, -0.001), FAILED]


def test_best_are_feasible_and_closest_violates_least() -> None:
    assert [one.number for one in best(TRIALS, 3)] == [2, 1]
    assert [one.number for one in best(TRIALS, 1)] == [2]
    near = closest(TRIALS[:1])
    assert near is not None
    assert near.number == 0
    assert closest([FAILED]) is None


def candidate(number: int, held: Score | None) -> Candidate:
    return Candidate(number=number, point=TRIALS[0].point, promised=dict(TRIALS[0].record), held_back=held)


def test_what_was_kept_decides_not_what_was_promised() -> None:
    kept, better, broke = scored(0.02, -0.1), scored(0.01, -0.1), scored(0.001, 0.1)
    able = [candidate(0, kept), candidate(1, better), candidate(2, broke), candidate(3, None)]
    assert choose(able) == able[1]
    assert choose(able[2:]) == able[2]
    assert choose([able[3]]) is None
    assert choose([]) is None


@pytest.mark.parametrize(("keeps", "asked", "chosen"), [(2, [2], 2), (1, [2, 1], 1), (None, [2, 1], 2)])
def test_what_has_room_is_tried_where_the_best_do_not_keep_the_error_rate(
    keeps: int | None, asked: list[int], chosen: int
) -> None:
    came: list[int] = []

    def again(trials: Sequence[Tried]) -> list[Candidate]:
        came.extend(one.number for one in trials)
        return [candidate(one.number, scored(0.02, -0.1 if one.number == keeps else 0.1)) for one in trials]

    candidates, found = select([*TRIALS, tried(3, 0.025, -0.0005)], 1, again)
    assert came == asked
    assert [one.number for one in candidates] == asked
    assert found is not None
    assert found.number == chosen
    assert select([FAILED], 1, again) == ([], None)


def tune_spec(**tune: object) -> object:
    from graceful import spec

    return spec.parse({"model": "m", "name": "v2", "task": {"kind": "digits"}, "tune": tune})


def test_unmet_names_the_closest_point_and_what_admits_it() -> None:
    found = result.as_document(
        tune_spec(),  # type: ignore[arg-type]
        trials=TRIALS[:1],
        candidates=[],
        chosen=None,
        tested=None,
        importances={},
    )
    assert found["outcome"] == result.UNMET
    assert found["closest"]["trial"] == 0
    assert found["relax"][0] == "write tune.tolerance: 0.02, which admits it"


def test_found_weights_are_a_spec_that_refresh_takes() -> None:
    import yaml

    from graceful import spec

    wanted = spec.parse({"model": "m", "name": "v2", "home": "/tmp/h", "task": {"kind": "digits"}, "tune": {}})
    text = result.spec_text(wanted, TRIALS[0].point, about="found")
    again = spec.parse(yaml.safe_load(text))
    assert text.startswith("# found\n")
    assert again.tune is None
    assert again.home is None
    assert [loss.kind for loss in again.compatibility.losses] == ["logit_displacement"]


def test_pictures_are_well_formed_and_show_every_complete_trial(tmp_path: Path) -> None:
    found = result.as_document(
        tune_spec(),  # type: ignore[arg-type]
        trials=TRIALS,
        candidates=[candidate(2, scored(0.02, -0.1))],
        chosen=candidate(2, scored(0.02, -0.1)),
        tested=None,
        importances={"reference & co": 0.7, "margin": 0.3},
    )
    assert found["outcome"] == result.MET
    files = pictures.write_pictures(tmp_path, found, TRIALS)
    assert [file.name for file in files] == ["pareto.svg", "importance.svg", "hypervolume.svg", "tune.html"]
    for file in files[:3]:
        root = ET.parse(file).getroot()
        assert root.tag.endswith("svg")
    assert (tmp_path / "pareto.svg").read_text().count("<circle") == 3
    page = (tmp_path / "tune.html").read_text()
    assert page.count("<svg") == 3
    assert "reference &amp; co" in page


def test_pictures_of_nothing_are_left_out(tmp_path: Path) -> None:
    found = result.as_document(
        tune_spec(),  # type: ignore[arg-type]
        trials=[FAILED],
        candidates=[],
        chosen=None,
        tested=None,
        importances={},
    )
    assert found["closest"] is None
    assert [file.name for file in pictures.write_pictures(tmp_path, found, [FAILED])] == ["tune.html"]


def test_front_keeps_compromises_only() -> None:
    assert [row["number"] for row in result.front_of(TRIALS, Tune())] == [1, 2, 0]
    worse = tried(4, 0.05, 0.01)
    assert 4 not in [row["number"] for row in result.front_of([*TRIALS, worse], Tune())]


# --- verification -----------------------------------------------------------------------------------------------------


def test_pairs_share_a_label_and_come_once() -> None:
    left, right = genuine_pairs(np.array(["a", "b", "a", "b", "a"]))
    found = {frozenset(pair) for pair in zip(left.tolist(), right.tolist(), strict=True)}
    assert found == {frozenset(pair) for pair in ((0, 2), (0, 4), (2, 4), (1, 3))}
    assert len(left) == 4


def embedded(n: int, spread: float) -> Embeddings:
    rng = np.random.default_rng(1)
    labels = np.arange(n) % 4
    vectors = np.eye(4)[labels] + spread * rng.standard_normal((n, 4))
    ids = np.array([f"i{index}" for index in range(n)])
    return Embeddings(ids=ids, labels=labels.astype(str), vectors=vectors.astype(np.float32), groups=None)


def test_accepted_pairs_fall_with_the_false_accept_rate() -> None:
    items = embedded(80, 0.6)
    loose, strict = (accepted(items, calibrated_on=items, far=far).mean() for far in (0.2, 0.005))
    assert 0.0 < strict < loose < 1.0
    assert accepted(embedded(80, 0.01), calibrated_on=items, far=0.1).all()


def test_too_few_impostors_to_calibrate_on() -> None:
    items = embedded(20, 0.5)
    with pytest.raises(DataError, match="impostor pairs"):
        accepted(items, calibrated_on=items, far=1e-4)
