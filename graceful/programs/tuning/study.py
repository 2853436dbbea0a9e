"""The search's memory: what was tried, what came out, what is next. Optuna on a journal of JSON lines. Driver.

The journal is the only state. A driver that was killed leaves trials that seem to run: those whose fit has finished are
told now, the others are asked again with the same point.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from graceful.errors import IntegrityError
from graceful.losses.search import Value
from graceful.programs.tuning.scoring import Score
from graceful.programs.tuning.space import Parameter, draw
from graceful.spec import Tune
from graceful.storage import guarded

NAME = "graceful"
RECORD, ABANDONED, AGAIN = "record", "abandoned", "again"
CONSTRAINT = "error"
GOOD = 0.3
"""Importance: what tells this share of the trials, the best ones, from the others. Optuna's 0.1 is two of 24."""


@dataclass(frozen=True, kw_only=True)
class Tried:
    """One trial as the journal has it.

    Attributes:
        number: From 0, in the order of asking.
        point: Its parameters.
        state: running, complete, failed, abandoned (its driver was killed; the point was asked again) or waiting.
        record: What was noted: score, seconds, digest of the fit, or why it failed.
    """

    number: int
    point: dict[str, Value]
    state: str
    record: Mapping[str, Any]

    @property
    def feasible(self) -> bool:
        """Return whether it keeps the error rate."""
        return self.state == "complete" and bool(self.record["feasible"])


class Alone(JournalFileOpenLock):
    """No lock: the run's folder is locked by its driver, the only one that writes; a kill leaves nothing behind."""

    def acquire(self) -> bool:
        """Return True."""
        return True

    def release(self) -> None:
        """Do nothing."""


class Journal(JournalFileBackend):
    """Optuna's journal, which knows at which line it is."""

    line = 0

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        """Read as Optuna's backend does, and count the lines."""
        for self.line, log in enumerate(super().read_logs(log_number_from), start=log_number_from + 1):
            yield log


class Study:
    """A search that continues where its journal ends.

    Args:
        path: The journal.
        tune: What is searched.
        space: Its parameters.
        seed: The seed of the sampler; a continued search draws new points.

    Raises:
        IntegrityError: A line of the journal is damaged; which.
        StorageError: It cannot be read or written.
    """

    def __init__(self, path: Path, *, tune: Tune, space: Sequence[Parameter], seed: int) -> None:
        self._space, self._front = space, tune.objectives == "front"
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with guarded(path, "write"):
            path.parent.mkdir(parents=True, exist_ok=True)
            _cut_torn_line(path)
            storage = _storage(path)
        down, up = StudyDirection.MINIMIZE, StudyDirection.MAXIMIZE
        directions = [down, down, up] if self._front else [down]
        self._study = optuna.create_study(
            storage=storage, study_name=NAME, directions=directions, load_if_exists=True, sampler=None
        )
        self._study.sampler = _sampler(tune, seed=seed + 1000 * len(self._study.trials))

    @property
    def study(self) -> optuna.Study:
        """Return Optuna's own study, for importances."""
        return self._study

    def enqueue(self, points: Iterable[Mapping[str, Value]]) -> None:
        """Have these points tried first; those that were are left out."""
        for point in points:
            self._study.enqueue_trial(dict(point), skip_if_exists=True)

    def ask(self) -> tuple[int, dict[str, Value]]:
        """Return the next trial: its number and its point."""
        trial = self._study.ask()
        return trial.number, draw(trial, self._space)

    def take(self, point: Mapping[str, Value]) -> int:
        """Begin a trial of this very point; what waits to be tried goes on waiting behind it."""
        self._study.enqueue_trial(dict(point))
        while True:
            number, next_point = self.ask()
            if next_point == dict(point):
                return number
            self.again(number)

    def tell(self, number: int, score: Score | None, record: Mapping[str, Any]) -> None:
        """Note how a trial ended.

        Args:
            number: As asked.
            score: None: it failed, and has no value.
            record: Further facts as JSON values.
        """
        trial = self._running(number)
        noted = {**record, **(score.document() if score else {})}
        trial.set_user_attr(RECORD, noted)
        if score is None:
            self._study.tell(trial, state=TrialState.FAIL)
            return
        if not self._front:
            trial.set_constraint(CONSTRAINT, score.violation)
        values = [score.error, score.nfr, float(noted.get("retrieval") or 0.0)] if self._front else [score.nfr]
        self._study.tell(trial, values)

    def interrupted(self) -> list[Tried]:
        """Return trials that an earlier driver left running."""
        return [trial for trial in self.trials() if trial.state == "running"]

    def again(self, number: int) -> None:
        """Give up a trial that an earlier driver left running, and have its point tried next."""
        trial = self._running(number)
        fixed = self._study.trials[number].system_attrs.get("fixed_params", {})
        point = {**fixed, **self._study.trials[number].params}
        trial.set_user_attr(ABANDONED, True)
        self._study.tell(trial, state=TrialState.FAIL)
        if point:
            self._study.enqueue_trial(point, user_attrs={AGAIN: number})

    def trials(self) -> list[Tried]:
        """Return every trial, in the order of asking."""
        return [_tried(trial) for trial in self._study.get_trials(deepcopy=False)]

    def ended(self) -> int:
        """Return the number of trials that count: complete or failed."""
        return sum(trial.state in ("complete", "failed") for trial in self.trials())

    def importances(self) -> dict[str, float]:
        """Return the share of each parameter in the differences of NFR between trials; {} with too few trials."""
        if len([trial for trial in self.trials() if trial.state == "complete"]) < 2:
            return {}
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=GOOD)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            target = (lambda trial: trial.values[1]) if self._front else None
            importances = optuna.importance.get_param_importances(self._study, evaluator=evaluator, target=target)
        return {name: float(share) for name, share in importances.items()}

    def _running(self, number: int) -> optuna.Trial:
        frozen = self._study.get_trials(deepcopy=False)[number]
        return optuna.Trial(self._study, frozen._trial_id)


def _tried(trial: FrozenTrial) -> Tried:
    states = {TrialState.COMPLETE: "complete", TrialState.RUNNING: "running", TrialState.WAITING: "waiting"}
    state = "abandoned" if ABANDONED in trial.user_attrs else states.get(trial.state, "failed")
    return Tried(number=trial.number, point=dict(trial.params), state=state, record=trial.user_attrs.get(RECORD, {}))


def _sampler(tune: Tune, *, seed: int) -> optuna.samplers.BaseSampler:
    if tune.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(
            seed=seed, multivariate=True, group=True, n_startup_trials=max(4, tune.trials // 3)
        )


def _storage(path: Path) -> optuna.storages.JournalStorage:
    """Open a journal whose last line is whole."""
    if path.exists():
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    json.loads(line)
                except (ValueError, RecursionError) as e:
                    raise _damaged(path, number, e) from e
    backend = Journal(str(path), lock_obj=Alone(str(path)))
    try:
        return optuna.storages.JournalStorage(backend)
    except (
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
        AssertionError,
    ) as e:  # JSON, but not what Optuna writes
        raise _damaged(path, backend.line, e) from e


def _damaged(path: Path, line: int, error: Exception) -> IntegrityError:
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return IntegrityError(
        f"{path}:{line}: damaged, no line of a search's journal ({reason:.120}); restore the file from a copy, or keep"
        f" what is before that line (head -n {line - 1}): later trials are asked again, and finished fits found",
        {"path": str(path), "line": line},
    )


def _cut_torn_line(path: Path) -> None:
    """Cut off half a line, which a kill in the middle of writing leaves, so that the next line is not appended to
    it."""
    if not path.exists():
        return
    data = path.read_bytes()
    complete = data.rfind(b"\n") + 1
    if complete < len(data):
        with path.open("r+b") as file:
            file.truncate(complete)
