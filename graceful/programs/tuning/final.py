"""Choose the winner: the best trials again with fresh seeds on ids that the search never saw, then test, once. Driver.

Of many noisy trials the best one looks better than it is. What a point promised in the search is therefore set against
what it kept: with other seeds on the held-back part, which decides, and on the test split, which only reports.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from graceful.losses.search import Point, Value
from graceful.programs.runs.run import Progress
from graceful.programs.tuning import fits
from graceful.programs.tuning.bench import Bench
from graceful.programs.tuning.fits import Work
from graceful.programs.tuning.scoring import Score
from graceful.programs.tuning.search import require_trained
from graceful.programs.tuning.splits import Part
from graceful.programs.tuning.study import Tried

STRIDE = 7919
"""Fresh seed j is the spec's + j x stride: no multiple of the reference runs' stride within any search."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One of the best trials, trained again.

    Attributes:
        number: The number of the trial.
        point: Its parameters.
        promised: Its record in the search.
        held_back: What it kept with fresh seeds; None: a training failed.
        failed: Why.
    """

    number: int
    point: dict[str, Value]
    promised: dict[str, Any]
    held_back: Score | None
    failed: str | None = None


def select(
    trials: Sequence[Tried], count: int, retrain: Callable[[Sequence[Tried]], list[Candidate]]
) -> tuple[list[Candidate], Candidate | None]:
    """Train the best trials again and choose; where none of them keeps the error rate, those that kept it by most.

    The best of many lie close to the limit, where half of them got by luck; a second round is made of what has room.

    Args:
        trials: The trials of the search.
        count: How many in a round.
        again: Trains trials again, see `retrain`.

    Returns:
        Every candidate, and the chosen one; see `choose`.
    """
    candidates = retrain(best(trials, count))
    chosen = choose(candidates)
    if candidates and (chosen is None or chosen.held_back is None or not chosen.held_back.feasible):
        tried_numbers = {trial.number for trial in candidates}
        candidates += retrain(furthest_within([trial for trial in trials if trial.number not in tried_numbers], count))
        chosen = choose(candidates)
    return candidates, chosen


def best(trials: Sequence[Tried], count: int) -> list[Tried]:
    """Return the feasible trials with the lowest negative flip rate; of equal ones those with less error."""
    feasible = [trial for trial in trials if trial.feasible]
    return sorted(feasible, key=lambda trial: (trial.record["nfr"], trial.record["violation"], trial.number))[:count]


def furthest_within(trials: Sequence[Tried], count: int) -> list[Tried]:
    """Return the feasible trials that lie furthest within the error rate."""
    feasible = [trial for trial in trials if trial.feasible]
    return sorted(feasible, key=lambda trial: (trial.record["violation"], trial.record["nfr"], trial.number))[:count]


def closest(trials: Sequence[Tried]) -> Tried | None:
    """Return the trial that exceeds the error rate least; None: none was completed."""
    completed = [trial for trial in trials if trial.state == "complete"]
    return min(completed, key=lambda trial: (trial.record["violation"], trial.record["nfr"]), default=None)


def fresh_seeds(bench: Bench) -> list[int]:
    """Return seeds that the search did not use."""
    return [bench.spec.train.seed + number * STRIDE for number in range(1, bench.tune.final.seeds + 1)]


def retrain(bench: Bench, trials: Sequence[Tried], progress: Progress) -> list[Candidate]:
    """Train these trials' points with fresh seeds and judge them on the held-back part."""
    if not trials:
        return []
    seeds = fresh_seeds(bench)
    references = bench.reference_works(seeds=seeds, on="held_back")
    works = {trial.number: _works(bench, trial.point, seeds, "held_back") for trial in trials}
    all_works = [*references, *(work for trial_works in works.values() for work in trial_works)]
    bench.make(all_works, progress, stage="final selection")
    require_trained(references)
    candidates = []
    for trial in trials:
        failed = [ended.failed for work in works[trial.number] if (ended := fits.finished(work)) and ended.failed]
        score = None if failed else bench.judge(works[trial.number], seeds=seeds, on="held_back")
        candidates.append(
            Candidate(
                number=trial.number,
                point=trial.point,
                promised=dict(trial.record),
                held_back=score,
                failed=failed[0] if failed else None,
            )
        )
    return candidates


def choose(candidates: Sequence[Candidate]) -> Candidate | None:
    """Return the candidate with the lowest upper end of NFR that keeps the error rate; else the least violating.

    Returns:
        None where every candidate failed.
    """
    scored = [candidate for candidate in candidates if candidate.held_back is not None]
    feasible = [candidate for candidate in scored if candidate.held_back is not None and candidate.held_back.feasible]
    if feasible:
        return min(feasible, key=lambda candidate: candidate.held_back.nfr_upper if candidate.held_back else 0.0)
    return min(
        scored, key=lambda candidate: candidate.held_back.violation if candidate.held_back else 0.0, default=None
    )


def on_test(bench: Bench, chosen: Candidate, progress: Progress) -> Score:
    """Measure the chosen point's fresh fits and the reference runs on the test split."""
    seeds = fresh_seeds(bench)
    works = _works(bench, chosen.point, seeds, "test")
    bench.make([*bench.reference_works(seeds=seeds, on="test"), *works], progress, stage="test", trained=True)
    return bench.judge(works, seeds=seeds, on="test")


def _works(bench: Bench, point: Point, seeds: Sequence[int], on: Part) -> list[Work]:
    return [bench.work(point, seed=seed, on=on) for seed in seeds]
