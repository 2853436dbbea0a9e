"""The search itself: reference runs, then trials until there are enough, each judged where it is told. Driver."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from graceful.errors import TrainingError
from graceful.losses.search import Point
from graceful.programs.runs.run import Progress
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
    first: Callable[[], Sequence[Point]] = tuple,
) -> None:
    """Make the reference runs, then trials until there are as many as the spec wants.

    Args:
        bench: Where fits are made.
        study: What was tried.
        listener: Told of each trial that is asked or ended.
        progress: Told of the rest.
        before: Trials of the same search under another limit: judged again, not made again.
        first: Returns points to try first, unless they were tried; called once the reference runs are there.

    Raises:
        TrainingError: A reference run failed: the recipe itself does not train.
        InfrastructureError: Ray does not start, or a reference run was lost.
    """
    references = bench.reference_works(seeds=[bench.spec.train.seed], on="search")
    bench.make(references, progress, stage="reference runs")
    require_trained(references)
    trials = _Trials(bench=bench, study=study, listener=listener)
    trials.resume()
    trials.repeat(before)
    study.enqueue(first())
    bench.run(ask=trials.ask, tell=trials.tell)


@dataclass(kw_only=True)
class _Trials:
    """Between the study, which knows points, and the bench, which knows fits."""

    bench: Bench
    study: Study
    listener: Listener
    running: dict[str, list[int]] = field(default_factory=dict)

    def ask(self) -> Work | None:
        """Return the next fit; None once enough trials have ended or are running."""
        if self.study.ended() + sum(map(len, self.running.values())) >= self.bench.tune.trials:
            return None
        number, point = self.study.ask()
        work = self._work(point)
        self.running.setdefault(work.digest, []).append(number)
        self.listener(located(self.study.trials()[number]))
        return work

    def tell(self, key: str, answer: Mapping[str, Any] | None) -> None:
        """Record how a fit ended."""
        lost_answer = {"failed": "its process was lost", "seconds": 0.0, "digest": key}
        self._conclude(self.running[key].pop(0), answer if answer is not None else lost_answer)

    def repeat(self, before: Sequence[Tried]) -> None:
        """Judge the finished fits of other trials."""
        known_points = [trial.point for trial in self.study.trials()]
        for trial in before:
            fit = fits.finished(self._work(trial.point))
            if fit is not None and trial.point not in known_points:
                known_points.append(trial.point)
                self._conclude(self.study.take(trial.point), vars(fit))

    def resume(self) -> None:
        """Conclude what a killed driver left running, or have it tried again."""
        for trial in self.study.interrupted():
            fit = fits.finished(self._work(trial.point)) if self._whole(trial.point) else None
            if fit is None:
                self.study.again(trial.number)
            else:
                self._conclude(trial.number, vars(fit))

    def _conclude(self, number: int, answer: Mapping[str, Any]) -> None:
        score = None
        if answer["failed"] is None:
            score, answer = self._best(self._work(self.study.trials()[number].point), answer)
        self.study.tell(number, score, answer)
        self.listener(located(self.study.trials()[number]))

    def _best(self, work: Work, answer: Mapping[str, Any]) -> tuple[Score, Mapping[str, Any]]:
        """Return a fit's score and record; with shares of the old weights those of the best share."""
        seeds = [self.bench.spec.train.seed]
        first = self.bench.judge([work], seeds=seeds, on="search")
        if not space.shares(self.bench.spec):
            return first, answer
        scored = {work.share: (first, work)}
        for share in work.shares:
            share_work = work.at(share)
            if fits.finished(share_work) is not None:
                scored[share] = (self.bench.judge([share_work], seeds=seeds, on="search"), share_work)
        share = best_share({share: score for share, (score, _) in scored.items()})
        score, best_work = scored[share]
        fit = fits.finished(best_work)
        retrieval = answer.get("retrieval") if fit is None else fit.retrieval
        return score, {**answer, "retrieval": retrieval, space.INTERPOLATION: share}

    def _work(self, point: Point) -> Work:
        first_share, *other_shares = space.shares(self.bench.spec) or (None,)
        mixed = point if first_share is None else {**point, space.INTERPOLATION: first_share}
        return self.bench.work(mixed, seed=self.bench.spec.train.seed, on="search", shares=other_shares)

    def _whole(self, point: Point) -> bool:
        """Return whether all parameters of a point were drawn before the driver was killed."""
        required = {parameter.name for parameter in space.parameters(self.bench.spec) if parameter.counts(point)}
        return required <= set(point)


def best_share(scores: Mapping[float, Score]) -> float:
    """Return the share of the old weights with the lowest negative flip rate among those that keep the error rate, else
    the
    one that exceeds it least; of equal ones the smallest."""
    feasible = {share: score for share, score in scores.items() if score.feasible}
    if feasible:
        return min(feasible, key=lambda share: (feasible[share].nfr, share))
    return min(scores, key=lambda share: (scores[share].violation, share))


def located(tried: Tried) -> Tried:
    """Return a trial with the share of the old weights that was chosen for it in its point."""
    if space.INTERPOLATION not in tried.record:
        return tried
    return replace(tried, point={**tried.point, space.INTERPOLATION: tried.record[space.INTERPOLATION]})


def require_trained(works: Sequence[Work]) -> None:
    """Refuse to go on with a recipe that does not train without constraints either.

    Raises:
        TrainingError: With the reason of the first that failed.
    """
    for work in works:
        fit = fits.finished(work)
        if fit is not None and fit.failed is not None:
            (work.folder_path / f"{work.part}-{fits.NOTE}").unlink()
            raise TrainingError(f"reference run: {fit.failed}; the recipe must train before its weights are searched")
