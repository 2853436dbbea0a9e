"""The search itself: reference runs, then trials until there are enough, each judged where it is told. Driver."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from graceful.errors import TrainingError
from graceful.losses.search import Point
from graceful.programs.run import Progress
from graceful.programs.tuning import fits, space
from graceful.programs.tuning.bench import Bench
from graceful.programs.tuning.fits import Work
from graceful.programs.tuning.scoring import Score
from graceful.programs.tuning.study import Study, Tried

Listener = Callable[[Tried], None]


def search(
    bench: Bench,
    study: Study,
    *,
    listener: Listener,
    progress: Progress,
    before: Sequence[Tried] = (),
    first: Sequence[Point] = (),
) -> None:
    """Make the reference runs, then trials until there are as many as the spec wants.

    Args:
        bench: Where fits are made.
        study: What was tried.
        listener: Told of each trial that is asked or ended.
        progress: Told of the rest.
        before: Trials of the same search under another limit: judged anew, not made again.
        first: Points to try first, unless they were tried.

    Raises:
        TrainingError: A reference run failed: the recipe itself does not train.
        InfrastructureError: Ray does not start, or a reference run was lost.
    """
    references = bench.untreated(seeds=[bench.spec.train.seed], on="search")
    bench.make(references, progress, stage="reference runs")
    require_trained(references)
    trials = _Trials(bench=bench, study=study, listener=listener)
    trials.resume()
    trials.repeat(before)
    study.enqueue(first)
    bench.run(ask=trials.ask, tell=trials.tell)


@dataclass(kw_only=True)
class _Trials:
    """Between the study, which knows points, and the bench, which knows fits."""

    bench: Bench
    study: Study
    listener: Listener
    running: dict[str, list[int]] = field(default_factory=dict)

    def ask(self) -> Work | None:
        """The next fit; None once enough trials have ended or are running."""
        if self.study.ended() + sum(map(len, self.running.values())) >= self.bench.tune.trials:
            return None
        number, point = self.study.ask()
        work = self._work(point)
        self.running.setdefault(work.digest, []).append(number)
        self.listener(located(self.study.trials()[number]))
        return work

    def tell(self, key: str, answer: Mapping[str, Any] | None) -> None:
        """How a fit ended."""
        lost = {"failed": "its process was lost", "seconds": 0.0, "digest": key}
        self._conclude(self.running[key].pop(0), answer if answer is not None else lost)

    def repeat(self, before: Sequence[Tried]) -> None:
        """Judge the finished fits of other trials."""
        known = [one.point for one in self.study.trials()]
        for one in before:
            ended = fits.finished(self._work(one.point))
            if ended is not None and one.point not in known:
                known.append(one.point)
                self._conclude(self.study.take(one.point), vars(ended))

    def resume(self) -> None:
        """Conclude what a killed driver left running, or have it tried again."""
        for left in self.study.interrupted():
            ended = fits.finished(self._work(left.point)) if self._whole(left.point) else None
            if ended is None:
                self.study.again(left.number)
            else:
                self._conclude(left.number, vars(ended))

    def _conclude(self, number: int, answer: Mapping[str, Any]) -> None:
        judged = None
        if answer["failed"] is None:
            judged, answer = self._best(self._work(self.study.trials()[number].point), answer)
        self.study.tell(number, judged, answer)
        self.listener(located(self.study.trials()[number]))

    def _best(self, work: Work, answer: Mapping[str, Any]) -> tuple[Score, Mapping[str, Any]]:
        """A fit's score and record; with shares of the old weights those of the share that stands best."""
        seeds = [self.bench.spec.train.seed]
        first = self.bench.judge([work], seeds=seeds, on="search")
        if not space.shares(self.bench.spec):
            return first, answer
        found = {work.share: (first, work)}
        for share in work.shares:
            other = work.at(share)
            if fits.finished(other) is not None:
                found[share] = (self.bench.judge([other], seeds=seeds, on="search"), other)
        share = best_share({share: score for share, (score, _) in found.items()})
        score, chosen = found[share]
        ended = fits.finished(chosen)
        retrieval = answer.get("retrieval") if ended is None else ended.retrieval
        return score, {**answer, "retrieval": retrieval, space.INTERPOLATION: share}

    def _work(self, point: Point) -> Work:
        first, *others = space.shares(self.bench.spec) or (None,)
        mixed = point if first is None else {**point, space.INTERPOLATION: first}
        return self.bench.work(mixed, seed=self.bench.spec.train.seed, on="search", shares=others)

    def _whole(self, point: Point) -> bool:
        """Whether all its parameters were drawn before the driver was killed."""
        wanted = {one.name for one in space.parameters(self.bench.spec) if one.counts(point)}
        return wanted <= set(point)


def best_share(scores: Mapping[float, Score]) -> float:
    """The share of the old weights with the lowest negative flip rate among those that keep the error rate, else the
    one that exceeds it least; of equal ones the smallest."""
    kept = {share: score for share, score in scores.items() if score.feasible}
    if kept:
        return min(kept, key=lambda share: (kept[share].nfr, share))
    return min(scores, key=lambda share: (scores[share].violation, share))


def located(tried: Tried) -> Tried:
    """A trial with the share of the old weights that was chosen for it in its point."""
    if space.INTERPOLATION not in tried.record:
        return tried
    return replace(tried, point={**tried.point, space.INTERPOLATION: tried.record[space.INTERPOLATION]})


def require_trained(works: Sequence[Work]) -> None:
    """Refuse to go on with a recipe that does not train without constraints either.

    Raises:
        TrainingError: With the reason of the first that failed.
    """
    for one in works:
        ended = fits.finished(one)
        if ended is not None and ended.failed is not None:
            (one.place / f"{one.part}-{fits.NOTE}").unlink()
            raise TrainingError(f"reference run: {ended.failed}; the recipe must train before its weights are searched")
