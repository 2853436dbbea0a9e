"""Run a predecessor over training data on Ray workers: blocks out, outputs back in order. Driver, and its actors.

The driver runs blocks itself until it has seen that the rest would take it more than a minute: starting workers takes
half of that. It alone writes the cache, so no disk is shared, and a build that was killed goes on as one without Ray
does. A worker that is lost is started again and its blocks are run again.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from graceful import startup, tasks
from graceful.chain import Predecessor
from graceful.errors import DataError, InfrastructureError
from graceful.learners import Role
from graceful.models.base import Outputs
from graceful.models.stored import StoredVersion
from graceful.spec import RefreshSpec
from graceful.storage import Mirror
from graceful.targets.blocks import Block, Compute, run
from graceful.tasks.base import Samples
from graceful.training import rank_resources, ray_fit
from graceful.training.job import first_line

WORTH_IT = 60.0
"""Seconds of work for which workers are started."""
AHEAD = 2
"""Blocks that each worker has at a time: one it runs, one it has waiting."""
RESTARTS = 3


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a worker needs to run a predecessor as the driver would.

    Attributes:
        spec: The spec of the version in training; its task has the samples.
        stored: The predecessor, which the worker opens itself.
        role: Which of its encoders runs.
        data: Digest of the training samples as the driver saw them.
        mirror: Where the bundle has a copy.
    """

    spec: RefreshSpec
    stored: StoredVersion
    data: str
    mirror: Mirror
    role: Role = "query"


@dataclass(frozen=True, kw_only=True)
class Here:
    """The same in the driver: a predecessor and data that are open already.

    Attributes:
        predecessor: Whose outputs.
        samples: The training data.
        views: How many views of each sample there will be.
        clock: Seconds.
    """

    predecessor: Predecessor
    samples: Samples
    views: int
    clock: Callable[[], float] = time.monotonic


class Runner:
    """One worker: opens the predecessor and the data once, then runs blocks."""

    def __init__(self, recipe: Recipe, *, use_gpu: bool) -> None:
        startup.return_to_working_directory()
        self._recipe, self._use_gpu = recipe, use_gpu

    @cached_property
    def _opened(self) -> tuple[Predecessor, Samples]:
        """Return predecessor and samples, opened at the first block: an error in __init__ would not be a result."""
        recipe = self._recipe
        recipe.mirror.unseal(recipe.stored.folder)
        predecessor = replace(recipe.stored.whole(), role=recipe.role)
        predecessor.network.to("cuda" if self._use_gpu else "cpu")
        samples = tasks.build(recipe.spec.task).samples("train")
        if samples.digest != recipe.data:
            raise DataError(
                f"outputs of {predecessor.name}: a worker's training data have SHA-256 {samples.digest[:12]}..., the"
                f" driver's {recipe.data[:12]}...; give all nodes the same data"
            )
        return predecessor, samples

    def run(self, block: Block) -> Outputs:
        """Return the outputs of one forward pass, on the CPU."""
        outputs = run(*self._opened, block)
        return Outputs(outputs.embedding.cpu(), outputs.logits.cpu())


def parallel(recipe: Recipe, here: Here) -> Compute:
    """Return a `Compute` that runs here and, once that is worth it, on as many workers as training has."""

    def compute(given: Iterable[Block]) -> Iterator[Outputs]:
        blocks = iter(given)
        yield from _until_worth_it(here, blocks)
        first = next(blocks, None)
        if first is None:
            return
        train = recipe.spec.train
        deadline = time.monotonic() + train.timeout
        private = ray_fit.connect()
        use_gpu = ray_fit.require(train, private=private, deadline=deadline)
        recipe.mirror.seal(recipe.stored.folder)
        workers = _started(recipe, count=rank_resources.workers(train), use_gpu=use_gpu)
        try:
            yield from _in_order(workers, itertools.chain([first], blocks), deadline=deadline)
        finally:
            _end(workers)

    return compute


def _until_worth_it(here: Here, blocks: Iterator[Block]) -> Iterator[Outputs]:
    """Run blocks here until the rest would take too long; the first is not timed, since it warms up."""
    begun, total, before = 0.0, here.views * len(here.samples), -1
    for block in blocks:
        yield run(here.predecessor, here.samples, block)
        now, done = here.clock(), block.view * len(here.samples) + block.stop
        if before < 0:
            begun, before = now, done
        elif (now - begun) / (done - before) * (total - done) > WORTH_IT:
            return


def _started(recipe: Recipe, *, count: int, use_gpu: bool) -> list[Any]:
    import ray

    options = rank_resources.actor_options(use_gpu=use_gpu)
    kind = ray.remote(Runner).options(**options, max_restarts=RESTARTS, max_task_retries=RESTARTS)
    return [kind.remote(recipe, use_gpu=use_gpu) for _ in range(count)]


def _in_order(workers: list[Any], blocks: Iterable[Block], *, deadline: float) -> Iterator[Outputs]:
    """Deal blocks to the workers that have started; those that never do, for want of CPUs, hold nothing up."""
    import ray

    starting = {worker.__ray_ready__.remote(): worker for worker in workers}
    ready: list[Any] = []
    waiting: deque[Any] = deque()
    for turn, block in enumerate(blocks):
        if starting:
            patience = 0.0 if ready else _left(deadline)
            started, _ = ray.wait(list(starting), num_returns=len(starting) if ready else 1, timeout=patience)
            ready += [starting.pop(reference) for reference in started]
        if not ready:
            raise InfrastructureError(
                f"outputs of a predecessor: none of {len(workers)} workers started within train.timeout; free CPUs of"
                " the cluster and run the same command again, or raise it"
            )
        waiting.append(ready[turn % len(ready)].run.remote(block))
        if len(waiting) >= AHEAD * len(ready):
            yield _got(waiting.popleft(), deadline=deadline)
    while waiting:
        yield _got(waiting.popleft(), deadline=deadline)


def _left(deadline: float) -> float:
    return max(deadline - time.monotonic(), 0.0)


def _got(reference: Any, *, deadline: float) -> Outputs:
    """Return one result, or raise what the worker raised as if it had been raised here."""
    import ray
    from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

    try:
        outputs: Outputs = ray.get(reference, timeout=_left(deadline))
    except RayTaskError as e:
        raise (e.cause if isinstance(e.cause, Exception) else e) from e
    except RayActorError as e:
        raise InfrastructureError(
            f"outputs of a predecessor: a worker was lost {RESTARTS + 1} times ({first_line(e)}); run the same command"
            " again, it goes on where it stopped, or give workers more memory"
        ) from e
    except GetTimeoutError as e:
        raise InfrastructureError(
            "outputs of a predecessor: not done within train.timeout; raise it and run the same command again, it goes"
            " on where it stopped"
        ) from e
    except RayError as e:
        raise InfrastructureError(
            f"outputs of a predecessor: Ray lost a result ({first_line(e)}); run the same command again, it resumes"
            " where it stopped"
        ) from e
    return outputs


def _end(workers: list[Any]) -> None:
    import ray

    for worker in workers:
        ray.kill(worker)
