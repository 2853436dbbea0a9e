"""Where fits are made and judged: the shared references, the baselines, here or as Ray Tune trials. Driver."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from graceful import errors, redact
from graceful.chain.ancestor import Ancestor
from graceful.errors import GracefulError, InfrastructureError
from graceful.losses.search import Point
from graceful.programs.runs.run import Progress
from graceful.programs.tuning import fits, space
from graceful.programs.tuning.fits import Work
from graceful.programs.tuning.scoring import Baseline, Limit, Old, Score, score
from graceful.programs.tuning.splits import Part, numbered, part
from graceful.programs.tuning.verify import genuine_pairs
from graceful.spec import RefreshSpec, Registry, Tune
from graceful.tasks.base import Task
from graceful.training import ray_address

RAISED = "raised"


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Where fits are made, and against what they are judged.

    Attributes:
        spec: As written, with its `tune` section.
        task: Built.
        folder: The folder of all fits of this search.
        home: Folder of the caches that runs share.
        ancestors: The chain, latest first.
        tune: The section, defaults where there is none.
        references: Unconstrained runs per seed.
    """

    spec: RefreshSpec
    task: Task
    folder: Path
    home: Path
    ancestors: tuple[Ancestor, ...]
    tune: Tune
    references: int
    baselines: dict[tuple[Part, tuple[int, ...]], Baseline] = field(default_factory=dict)

    @property
    def limit(self) -> Limit:
        """Return the limit on the error rate."""
        absolute = None if self.tune.error == "reference" else float(self.tune.error)
        return Limit(absolute=absolute, tolerance=self.tune.tolerance, confidence=self.tune.confidence)

    def work(
        self,
        point: Point | None,
        *,
        seed: int,
        on: Part,
        reference: int | None = None,
        shares: Sequence[float] = (),
    ) -> Work:
        """Return a fit of a point (None: without constraints), or of a shared reference run; measured with shares
        too."""
        train = self.spec.train.model_copy(update={"seed": seed, **_alone(self.spec)})
        changes = {} if point is None else {"compatibility": space.compatibility(self.spec, point)}
        if point is not None:
            train = train.model_copy(update={"method": space.method(self.spec, point)})
        spec = self.spec.model_copy(update={"train": train, "tune": self.tune, "registry": Registry(), **changes})
        return Work(
            folder=str(self.folder),
            home=str(self.home),
            spec=spec.dump(),
            ancestors=tuple(str(ancestor.stored.folder) for ancestor in self.ancestors),
            part=on,
            keep=on != "search" and reference is None,
            reference=reference,
            shares=tuple(shares),
        )

    def reference_works(self, *, seeds: Sequence[int], on: Part) -> list[Work]:
        """Return the reference runs of these seeds."""
        return [
            self.work(None, seed=seed, on=on, reference=index)
            for seed in seeds
            for index in range(1, self.references + 1)
        ]

    def baseline(self, *, seeds: Sequence[int], on: Part) -> Baseline:
        """Return what fits with these seeds are compared with; the reference runs must be finished."""
        key = (on, tuple(seeds))
        if key not in self.baselines:
            self.baselines[key] = self._baseline(seeds, on)
        return self.baselines[key]

    def _baseline(self, seeds: Sequence[int], on: Part) -> Baseline:
        samples = part(self.task, self.spec, on)
        units, names = numbered(samples.groups), np.asarray(samples.classes)[samples.labels]
        pairs = genuine_pairs(names)[0] if self.tune.far is not None else None
        chain = []
        for ancestor in self.ancestors:
            version = ancestor.stored.whole()
            correct = fits.correct_answers(version, samples, self.spec, self.task)
            class_known = np.isin(names, version.classes) if pairs is None else np.ones(len(correct), dtype=np.bool_)
            chain.append(Old(name=version.name, right=correct, known=class_known))
        reference = fits.stacked(self.reference_works(seeds=seeds, on=on))
        return Baseline(reference=reference, chain=tuple(chain), units=units if pairs is None else units[pairs])

    def judge(self, works: Sequence[Work], *, seeds: Sequence[int], on: Part) -> Score:
        """Judge one treatment by its fits, one for each seed."""
        return score(fits.stacked(works), self.baseline(seeds=seeds, on=on), self.limit)

    def run(self, *, ask: Callable[[], Work | None], tell: Callable[[str, Mapping[str, Any] | None], None]) -> None:
        """Make fits as fast as there is room for them; finished ones are not made again.

        Raises:
            GracefulError: What a trial met that every other would meet too: data, disk.
            RuntimeError: A trial met a bug.
        """

        def work_document() -> dict[str, Any] | None:
            work = ask()
            return None if work is None else {"key": work.folder_path.name, "work": work.document()}

        from graceful.training import search

        raised_errors: list[Exception] = []

        def next_one() -> dict[str, Any] | None:
            return None if raised_errors else work_document()

        def ended(key: str, answer: Mapping[str, Any] | None) -> None:
            if answer is not None and RAISED in answer:
                raised_errors.append(_raised(answer))
            else:
                tell(key, answer)

        workers = self.spec.train.num_workers if distributed(self.spec) else 0
        at_once = self.tune.max_concurrent
        if not workers and (at_once == 1 or ray_address.named()):  # one process is one machine's
            search.here(trial, ask=next_one, tell=ended)
        else:
            at_once = at_once or search.concurrency(workers, gpus=self.spec.train.use_gpu is not False)
            search.on_ray(trial, ask=next_one, tell=ended, at_once=at_once, workers=workers)
        if raised_errors:
            raise raised_errors[0]

    def make(self, works: Sequence[Work], progress: Progress, *, stage: str, trained: bool = False) -> None:
        """Make all of these; what fails is noted in its fit.

        Args:
            works: Finished ones are left out.
            progress: Told how far it is.
            stage: What to call it.
            trained: They only need to be measured, which is done here.

        Raises:
            InfrastructureError: The process of one was lost.
        """
        todo = [work for work in works if fits.finished(work) is None]
        waiting, finished_count = list(reversed(todo)), len(works) - len(todo)
        progress({"stage": stage, "step": finished_count, "steps": len(works)})

        def count_finished(key: str, answer: Mapping[str, Any] | None) -> None:
            nonlocal finished_count
            finished_count += 1
            progress({"stage": stage, "step": finished_count, "steps": len(works)})

        if trained:
            for work in todo:
                count_finished(work.digest, fits.fit(work.document()))
        elif todo:
            self.run(ask=lambda: waiting.pop() if waiting else None, tell=count_finished)
        for work in works:
            result = fits.finished(work)
            if result is None:
                raise InfrastructureError(f"{stage}: process of {work.digest} was lost; run the same command again")


def trial(message: Mapping[str, Any]) -> dict[str, Any]:
    """Make one fit in the process of a trial; errors are returned as JSON values."""
    try:
        return fits.fit(message["work"])
    except Exception as e:  # noqa: BLE001  raised again in the driver, where people see it
        return {
            RAISED: type(e).__name__,
            "message": redact.message(str(e)),
            "trace": redact.record(traceback.format_exc()),
        }


def _raised(answer: Mapping[str, Any]) -> Exception:
    """Return the error that a trial met: one of ours as it was, anything else as a bug with its traceback as a note."""
    kind = getattr(errors, str(answer[RAISED]), None)
    if isinstance(kind, type) and issubclass(kind, GracefulError):
        return kind(str(answer["message"]))
    bug = RuntimeError(f"a trial raised {answer[RAISED]}: {answer['message']}")
    bug.add_note(str(answer["trace"]))
    return bug


def distributed(spec: RefreshSpec) -> bool:
    """Return whether trials use Ray Train workers: the spec wants some and there is a cluster to give them."""
    return spec.train.num_workers > 0 and ray_address.named() is not None


def of_trials(spec: RefreshSpec) -> RefreshSpec:
    """Return a spec as trials train it."""
    return spec.model_copy(update={"train": spec.train.model_copy(update=_alone(spec))})


def _alone(spec: RefreshSpec) -> dict[str, Any]:
    """Return changes for one machine: a trial trains in its process, where plain torch computes what DeepSpeed does."""
    from graceful.spec import TorchEngine

    return {} if distributed(spec) else {"num_workers": 0, "engine": TorchEngine()}
