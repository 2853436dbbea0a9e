"""Data of a task with a learner of another package, which the spec names. Driver and workers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray
from torch import nn

from graceful.errors import SpecError
from graceful.learners import Batch, registry
from graceful.spec import NamedLearner
from graceful.tasks.base import Samples, Split, Task, notes_of
from graceful.tasks.options import require_options
from graceful.tasks.user_errors import user_file_errors
from graceful.tasks.user_learner import UserLearner, require_learner, require_network


class LearnedTask:
    """A task whose classes and samples are those of `data`, and whose network and batches are the learner's.

    Args:
        data: Its own network and transform are not used.
        learner: With a method `network(classes)`, and `augments = True` if its `collate` reads views.
    """

    def __init__(self, data: Task, learner: UserLearner) -> None:
        self._data, self.learner = data, learner
        self.classes = data.classes
        self.augments = bool(getattr(learner.own, "augments", False))
        self.notes = notes_of(data)

    def network(self, classes: tuple[str, ...]) -> nn.Module:
        """Implement `Task.network`.

        Raises:
            SpecError: An error of the learner, or no network with `classify`.
        """
        with user_file_errors(self.learner.path):
            built = self.learner.own.network(classes)  # type: ignore[attr-defined]
        return require_network(self.learner.path, built)

    def samples(self, split: Split) -> Samples:
        """Implement `Task.samples`."""
        return self._data.samples(split)

    def transform(self, items: Any, views: NDArray[Any] | None) -> Batch:
        """Implement `Task.transform`: the learner's `collate`."""
        return self.learner.collate(items, views)

    def restored(self, assets: Mapping[str, Any]) -> LearnedTask:
        """Implement `UserTask.restored`."""
        return LearnedTask(self._data, self.learner.restored(assets))


def with_learner(data: Task, section: NamedLearner) -> LearnedTask:
    """Make the learner that a spec names, for the data of a task.

    Raises:
        SpecError: No such learner, an option that it does not take, an error of its own, or a member that is missing.
    """
    made_by, path = registry.find(section.kind), registry.source(section.kind)
    require_options(made_by, section.options, key="task.learner.options", what=f"{made_by.__name__} in {path}")
    with user_file_errors(path):
        learner = made_by(**section.options)
    require_learner(path, learner)
    if not callable(getattr(learner, "network", None)):
        raise SpecError(
            f"{path}: the learner, a {type(learner).__name__}, lacks the method network(classes), which a learner that"
            " a spec names needs; add it"
        )
    return LearnedTask(data, UserLearner(learner, path))
