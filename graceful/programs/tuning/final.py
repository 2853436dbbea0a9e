"""Choose the winner: the best trials again with fresh seeds on ids that the search never saw, then test, once. Driver.

Of many noisy trials the best one looks better than it is. What a point promised in the search is therefore set against
what it kept: with other seeds on the held-back part, which decides, and on the test split, which only reports.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from graceful.losses.search import Point, Value
from graceful.programs.run import Progress
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
        number: Of the trial.
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
    trials: Sequence[Tried], count: int, again: Callable[[Sequence[Tried]], list[Candidate]]
) -> tuple[list[Candidate], Candidate | None]:
    """Train the best trials again and choose; where none of them keeps the error rate, those that kept it by most.

    The best of many lie close to the limit, where half of them got by luck; a second round is made of what has room.

    Args:
        trials: Of the search.
        count: How many in a round.
        again: Trains trials again, see `again`.

    Returns:
        Every candidate, and the chosen one; see `choose`.
    """
    candidates = again(best(trials, count))
    chosen = choose(candidates)
    if candidates and (chosen is None or chosen.held_back is None or not chosen.held_back.feasible):
        tried = {one.number for one in candidates}
        candidates += again(roomiest([one for one in trials if one.number not in tried], count))
        chosen = choose(candidates)
    return candidates, chosen


def best(trials: Sequence[Tried], count: int) -> list[Tried]:
    """The feasible trials with the lowest negative flip rate; of equal ones those furthest within the error rate."""
    fit = [one for one in trials if one.feasible]
    return sorted(fit, key=lambda one: (one.record["nfr"], one.record["violation"], one.number))[:count]


def roomiest(trials: Sequence[Tried], count: int) -> list[Tried]:
    """The feasible trials that lie furthest within the error rate."""
    fit = [one for one in trials if one.feasible]
    return sorted(fit, key=lambda one: (one.record["violation"], one.record["nfr"], one.number))[:count]


def closest(trials: Sequence[Tried]) -> Tried | None:
    """The trial that exceeds the error rate least; None: none was completed."""
    done = [one for one in trials if one.state == "complete"]
    return min(done, key=lambda one: (one.record["violation"], one.record["nfr"]), default=None)


def fresh_seeds(bench: Bench) -> list[int]:
    """Seeds that the search did not use."""
    return [bench.spec.train.seed + number * STRIDE for number in range(1, bench.tune.final.seeds + 1)]


def again(bench: Bench, trials: Sequence[Tried], progress: Progress) -> list[Candidate]:
    """Train these trials' points with fresh seeds and judge them on the held-back part."""
    if not trials:
        return []
    seeds = fresh_seeds(bench)
    references = bench.untreated(seeds=seeds, on="held_back")
    works = {one.number: _works(bench, one.point, seeds, "held_back") for one in trials}
    everything = [*references, *(work for each in works.values() for work in each)]
    bench.make(everything, progress, stage="final selection")
    require_trained(references)
    found = []
    for one in trials:
        failed = [ended.failed for work in works[one.number] if (ended := fits.finished(work)) and ended.failed]
        judged = None if failed else bench.judge(works[one.number], seeds=seeds, on="held_back")
        found.append(
            Candidate(
                number=one.number,
                point=one.point,
                promised=dict(one.record),
                held_back=judged,
                failed=failed[0] if failed else None,
            )
        )
    return found


def choose(candidates: Sequence[Candidate]) -> Candidate | None:
    """The lowest upper end of the negative flip rate among those that keep the error rate; else the least violating.

    Returns:
        None where every candidate failed.
    """
    able = [one for one in candidates if one.held_back is not None]
    kept = [one for one in able if one.held_back is not None and one.held_back.feasible]
    if kept:
        return min(kept, key=lambda one: one.held_back.nfr_upper if one.held_back else 0.0)
    return min(able, key=lambda one: one.held_back.violation if one.held_back else 0.0, default=None)


def on_test(bench: Bench, chosen: Candidate, progress: Progress) -> Score:
    """Measure the chosen point's fresh fits and the reference runs on the test split."""
    seeds = fresh_seeds(bench)
    works = _works(bench, chosen.point, seeds, "test")
    bench.make([*bench.untreated(seeds=seeds, on="test"), *works], progress, stage="test", trained=True)
    return bench.judge(works, seeds=seeds, on="test")


def _works(bench: Bench, point: Point, seeds: Sequence[int], on: Part) -> list[Work]:
    return [bench.work(point, seed=seed, on=on) for seed in seeds]
