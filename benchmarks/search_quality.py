"""Does the search pay? Against fixed weights and against random search, on test families that no search has seen.

    python -m benchmarks.search_quality                  # 5 repetitions, about 30 minutes on two cores; writes
                                                         # benchmarks/results/search_quality.json
    python -m benchmarks.search_quality --home FOLDER    # what is finished there is not repeated
    python -m benchmarks.search_quality --quick          # 1 repetition of few short trainings, prints only

The update is that of `glyphs_flips`: the old version is `xs` on 40 % of the training families, the new one `s2` on all
of them. A repetition is a split by family and a seed. `graceful` and `random` have the same space, number of trials and
final selection; `paper` is focal distillation as published (KL, temperature 100, alpha 1, beta 5, lambda 1). Each is
measured with the same fresh seeds on test families, next to reference runs of these seeds. Where a search finds no
point that keeps the error rate, its row has no numbers and counts as infeasible.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")

from benchmarks import results, runs
from benchmarks.glyphs_flips import NEW, OLD, RECIPE
from graceful import spec as specs
from graceful.programs.runs.run import Run
from graceful.programs.tuning import final, space
from graceful.programs.tuning.bench import Bench
from graceful.programs.tuning.scoring import Score
from graceful.programs.tuning.search import search
from graceful.programs.tuning.study import Study, Tried

METHODS = ("graceful", "random", "paper")
REPETITIONS, TRIALS = 5, 24
PAPER = {
    "compare": "distillation",
    "distillation": 1.0,
    "temperature": "100",
    "focus_share": 5 / 6,
    "runs": 0,
}
OWED = {
    "losses": [{"kind": "focal_distillation", "temperature": 2, "allow_low_temperature": True, "weight": 5}],
    "reference": {"runs": 3, "weight": 10},
}
"""Low temperatures are opted in, as in `glyphs_flips`; all else is the default space of these losses."""


def tuned_spec(repetition: int, sampler: str, *, quick: bool) -> specs.RefreshSpec:
    """Return the spec of one search."""
    train = {"num_workers": 0, "engine": {"kind": "torch"}, "seed": 50_000 + 101 * repetition, **recipe(quick)}
    section = {
        "trials": 4 if quick else TRIALS,
        "sampler": sampler,
        "space": {"runs": [1] if quick else [3]},
        "final": {"candidates": 1 if quick else 3, "seeds": 2 if quick else 3},
    }
    task = {**NEW, "split": repetition}
    return specs.parse(
        {"model": "bench", "name": "new", "task": task, "train": train, "compatibility": OWED, "tune": section}
    )


def recipe(quick: bool) -> dict[str, Any]:
    """Return how long to train."""
    return {"epochs": 1} if quick else RECIPE


def repeated(repetition: int, home: Path, *, quick: bool) -> list[dict[str, Any]]:
    """Return one repetition: the old version, then every method."""
    old_task = runs.task_of({**OLD, "split": repetition})
    wanted = runs.refresh_spec("old", task={**OLD, "split": repetition}, seed=repetition, train=recipe(quick))
    old, _ = runs.trained(wanted, folder=home / f"old-{repetition}", task=old_task)
    rows = []
    for method in METHODS:
        row_file = home / f"row-{repetition}-{method}.json"
        if not row_file.exists():
            row = measured(method, repetition, home, old, quick=quick)
            row_file.write_text(json.dumps(row))
        rows.append(json.loads(row_file.read_text()))
        print(json.dumps(rows[-1]), flush=True)
    return rows


def measured(method: str, repetition: int, home: Path, old: Path, *, quick: bool) -> dict[str, Any]:
    """Search (or not), choose, test; one row."""
    spec = tuned_spec(repetition, "random" if method == "random" else "tpe", quick=quick)
    assert spec.tune is not None
    parameters = space.parameters(spec)
    bench = Bench(
        spec=spec,
        task=runs.task_of({**NEW, "split": repetition}),
        folder=home / f"fits-{repetition}",  # shared: reference runs and fits that two methods ask for are made once
        home=home,
        ancestors=tuple(Run.of(spec, home=home).chain([old])),
        tune=spec.tune,
        references=space.most_runs(parameters),
    )
    started = time.perf_counter()
    if method == "paper":
        point: dict[str, Any] | None = dict(PAPER)
        spent = {"trials": 0, "promised_nfr": None}
    else:
        journal = home / f"journal-{repetition}-{method}.jsonl"
        draws = spec.train.seed + METHODS.index(method)  # else both would begin with the same random points
        study = Study(journal, tune=spec.tune, space=parameters, seed=draws)
        if method == "graceful":
            study.enqueue(space.known_points(spec, parameters))
        search(bench, study, listener=told, progress=silent)
        count = spec.tune.final.candidates
        _, chosen = final.select(study.trials(), count, lambda few: final.retrain(bench, few, silent))
        kept = chosen is not None and chosen.held_back is not None and chosen.held_back.feasible
        point = chosen.point if chosen is not None and kept else None
        promised = chosen.promised["nfr"] if chosen is not None else None
        spent = {"trials": study.ended(), "promised_nfr": None if promised is None else round(100 * promised, 3)}
    score = None if point is None else on_test(bench, point)
    return row_of(method, repetition, point, score, spent, seconds=time.perf_counter() - started)


def on_test(bench: Bench, point: Mapping[str, Any]) -> Score:
    """Fresh seeds on the test split; what the final selection trained already is not trained again."""
    seeds = final.fresh_seeds(bench)
    works = [bench.work(point, seed=seed, on="test") for seed in seeds]
    bench.make([*bench.reference_works(seeds=seeds, on="test"), *works], silent, stage="test")
    return bench.judge(works, seeds=seeds, on="test")


def row_of(
    method: str,
    repetition: int,
    point: Mapping[str, Any] | None,
    score: Score | None,
    spent: Mapping[str, Any],
    *,
    seconds: float,
) -> dict[str, Any]:
    """Return a row of the result, rates in percent."""
    rates = {"reference_error": None, "reference_nfr": None, "error": None, "nfr": None}
    more: dict[str, Any] = {"feasible_on_test": False, "excess_upper": None}
    if score is not None:
        found = (score.limit, score.reference_nfr, score.error, score.nfr)
        rates = {name: round(100 * rate, 3) for name, rate in zip(rates, found, strict=True)}
        more = {"feasible_on_test": score.error <= score.limit, "excess_upper": round(100 * score.excess_upper, 3)}
    return {
        "method": method,
        "repetition": repetition,
        **spent,
        **rates,
        **more,
        "point": point,
        "seconds": round(seconds, 1),
    }


def told(tried: Tried) -> None:
    """One line a trial."""
    if tried.state == "complete":
        record = tried.record
        print(
            f"  trial {tried.number}: error {100 * record['error']:.2f} (limit {100 * record['limit']:.2f},"
            f" excess at most {100 * record['excess_upper']:+.2f}), NFR {100 * record['nfr']:.2f} {tried.point}",
            flush=True,
        )


def silent(row: Mapping[str, object]) -> None:
    """No progress."""


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Medians over the repetitions."""
    lines = [
        f"{'method':<10}{'trials':>7}{'error':>8}{'untreated':>11}{'NFR':>7}{'untreated':>11}{'fall':>7}{'kept':>7}"
    ]
    for method in METHODS:
        own = [row for row in rows if row["method"] == method]
        able = [row for row in own if row["nfr"] is not None]
        kept = sum(row["feasible_on_test"] for row in own)
        if not able:
            lines.append(f"{method:<10}{'no point kept the error rate':>40}")
            continue
        keys = ("error", "reference_error", "nfr", "reference_nfr")
        middle = {key: statistics.median(row[key] for row in able) for key in keys}
        fall = statistics.median(1 - row["nfr"] / row["reference_nfr"] for row in able)
        lines.append(
            f"{method:<10}{own[0]['trials']:>7}{middle['error']:8.2f}{middle['reference_error']:11.2f}"
            f"{middle['nfr']:7.2f}{middle['reference_nfr']:11.2f}{100 * fall:6.0f}%{kept:>4}/{len(own)}"
        )
    return "\n".join(lines)


def main() -> None:
    """Run all repetitions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one repetition, few short trainings, nothing written")
    parser.add_argument("--home", type=Path, help="folder to keep and to resume from")
    options = parser.parse_args()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        home = (options.home or Path(scratch)).resolve()
        home.mkdir(parents=True, exist_ok=True)
        rows = [
            row
            for repetition in range(1 if options.quick else REPETITIONS)
            for row in repeated(repetition, home, quick=options.quick)
        ]
    print(table(rows))
    if not options.quick:
        print(results.write("search_quality", rows, seconds=time.perf_counter() - started))


if __name__ == "__main__":
    main()
