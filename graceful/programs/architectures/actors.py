"""Measure paths here, or on Ray actors that hold the supernet. Driver, and the actors.

An actor that is lost is started again and its path is measured again; a path whose actor is lost each time is recorded
as failed, and the search goes on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray

from graceful import startup, tasks
from graceful.architectures.held_out import SupernetTask, held_out_classes, sides_of
from graceful.architectures.measuring import Evaluator, Measured
from graceful.architectures.space import Path, Space
from graceful.architectures.supernet import Supernet
from graceful.errors import DataError, InfrastructureError
from graceful.models.weights import load_own
from graceful.spec import RefreshSpec
from graceful.spec.architectures import require_searchable, space_of
from graceful.spec.stages import StagedNetwork
from graceful.tasks.base import Task
from graceful.training import rank_resources, ray_fit
from graceful.training.job import first_line

RESTARTS = 2
"""How often an actor is started again, and its path measured again, before the path counts as failed."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What an actor needs to measure paths as the driver would.

    Attributes:
        spec: The spec of the search.
        state: Weights of the supernet.
        index: [N, d] embeddings of the gallery side by the gallery model.
        data: Digests of training, query and gallery samples as the driver saw them.
    """

    spec: RefreshSpec
    state: dict[str, NDArray[Any]]
    index: NDArray[np.float32]
    data: tuple[str, ...]

    def evaluator(self, task: Task | None = None) -> Evaluator:
        """Open data and supernet.

        Args:
            task: The spec's task, if it is built already.

        Raises:
            DataError: The data are not those of the driver.
        """
        section, built = require_searchable(self.spec), task or tasks.build(self.spec.task)
        train, sides = searched(self.spec, built)
        found = (train.samples("train").digest, sides.query.digest, sides.gallery.digest)
        if found != self.data:
            raise DataError("architectures: an actor's data are not those of the driver; give all nodes the same data")
        supernet = train.network(built.classes)
        load_own(supernet, {name: torch.from_numpy(array.copy()) for name, array in self.state.items()})
        assert isinstance(supernet, Supernet)
        return Evaluator(
            supernet,
            built,
            train=train.samples("train"),
            sides=sides,
            index=self.index,
            batches=section.recalibration,
            batch_size=self.spec.train.batch_size,
        )


def searched(spec: RefreshSpec, task: Task) -> tuple[SupernetTask, Any]:
    """Return the task that trains the supernet, and the sides that paths are measured on."""
    section, network = require_searchable(spec), getattr(spec.task, "network", None)
    assert isinstance(network, StagedNetwork)
    held_out = held_out_classes(task.classes, section.held_out)

    def make(classes: int) -> Supernet:
        with torch.random.fork_rng(devices=[]):
            shape = task.network(task.classes).input_shape
        assert isinstance(shape, tuple)
        return Supernet(Space(space_of(section)), network, input_shape=shape, classes=classes)

    return SupernetTask(task, make, held_out=held_out), sides_of(task, held_out, images=section.images)


class Pool(Protocol):
    """Measures paths; use as a context."""

    def __enter__(self) -> Self:
        """Return itself."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End what it started."""
        ...

    def measure(self, paths: Sequence[Path]) -> Iterator[tuple[int, Measured]]:
        """Yield the position of each path and how it was measured, in any order."""
        ...


class Here:
    """Measures one path after the other in this process."""

    def __init__(self, evaluator: Evaluator) -> None:
        self._evaluator = evaluator

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def measure(self, paths: Sequence[Path]) -> Iterator[tuple[int, Measured]]:
        """Implement `Pool.measure`."""
        return ((position, self._evaluator.measure(path)) for position, path in enumerate(paths))


class Holder:
    """One actor: opens data and supernet at its first path, where what goes wrong is an answer."""

    def __init__(self, recipe: Recipe) -> None:
        startup.return_to_working_directory()
        torch.set_num_threads(1)
        self._recipe = recipe

    @cached_property
    def _evaluator(self) -> Evaluator:
        return self._recipe.evaluator()

    def measure(self, path: Path) -> Measured:
        """Implement `Evaluator.measure`."""
        return self._evaluator.measure(path)


class OnRay:
    """Measures on actors of Ray.

    Args:
        recipe: What they measure.
        actors: How many; those for which there is no room wait.
    """

    def __init__(self, recipe: Recipe, *, actors: int) -> None:
        ray_fit.connect()
        import ray

        self._timeout = recipe.spec.train.timeout
        self._recipe = ray.put(recipe)
        self._actors = [self._started() for _ in range(actors)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        import ray

        for actor in self._actors:
            ray.kill(actor)

    def _started(self) -> Any:
        import ray

        options = rank_resources.actor_options(use_gpu=False)
        kind = ray.remote(Holder).options(**options, max_restarts=RESTARTS, max_task_retries=RESTARTS)
        return kind.remote(self._recipe)

    def measure(self, paths: Sequence[Path]) -> Iterator[tuple[int, Measured]]:
        """Implement `Pool.measure`."""
        import ray

        waiting, idle = deque(enumerate(paths)), list(self._actors)
        running: dict[Any, tuple[Any, int]] = {}
        while waiting or running:
            while waiting and idle:
                actor, (position, path) = idle.pop(0), waiting.popleft()
                running[actor.measure.remote(path)] = (actor, position)
            done, _ = ray.wait(list(running), num_returns=1, timeout=self._timeout)
            if not done:
                raise InfrastructureError(
                    f"architectures.actors: none of {len(self._actors)} actors measured a network within train.timeout;"
                    " free CPUs of the cluster and run the same command again, or lower architectures.actors"
                )
            actor, position = running.pop(done[0])
            measured = self._answer(done[0])
            if measured is None:
                self._actors.remove(actor)
                actor = self._started()
                self._actors.append(actor)
                measured = Measured(failed=f"its process was lost {RESTARTS + 1} times")
            idle.append(actor)
            yield position, measured

    def _answer(self, reference: Any) -> Measured | None:
        """Return an answer; None: its actor was lost for good. What an actor raises is raised here."""
        import ray
        from ray.exceptions import RayActorError, RayError, RayTaskError

        try:
            measured: Measured = ray.get(reference)
        except RayTaskError as e:
            raise (e.cause if isinstance(e.cause, Exception) else e) from e
        except RayActorError:
            return None
        except RayError as e:
            raise InfrastructureError(
                f"architectures: Ray lost a result ({first_line(e)}); run the same command again, it goes on where it"
                " stopped"
            ) from e
        return measured
