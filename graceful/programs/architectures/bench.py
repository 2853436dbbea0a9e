"""What a search of networks works with: its task, the gallery model, the trained supernet and the pool. Driver."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graceful import tasks
from graceful.architectures.held_out import Sides
from graceful.architectures.measuring import Measured
from graceful.architectures.space import Space
from graceful.chain.ancestor import Ancestor
from graceful.programs.architectures import training
from graceful.programs.architectures.actors import Here, OnRay, Pool, Recipe, searched
from graceful.programs.architectures.journal import Journal, measurements
from graceful.programs.outputs.galleries import require_gallery
from graceful.programs.outputs.model_outputs import run_on_split
from graceful.programs.runs.run import Progress, Run
from graceful.spec.architectures import require_searchable, space_of
from graceful.spec.stages import StagedNetwork
from graceful.storage import sha256_json
from graceful.tasks.base import Task


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What a search works with.

    Attributes:
        run: The search.
        task: The spec's task, built.
        ancestors: What training is compatible with.
        gallery: The gallery model.
    """

    run: Run
    task: Task
    ancestors: tuple[Ancestor, ...]
    gallery: Ancestor

    @classmethod
    def of(cls, run: Run, ancestors: Sequence[Ancestor]) -> Bench:
        """Build the task and find the gallery model.

        Raises:
            SpecError: As `require_gallery`.
        """
        task = tasks.build(run.spec.task)
        gallery = require_gallery(run.spec, ancestors, task=task)
        assert gallery is not None, "required by require_searchable"
        return cls(run=run, task=task, ancestors=tuple(ancestors), gallery=gallery)

    @property
    def section(self) -> Any:
        """Return the section of the spec."""
        return require_searchable(self.run.spec)

    @property
    def space(self) -> Space:
        """Return what is searched."""
        return Space(space_of(self.section))

    @property
    def network(self) -> StagedNetwork:
        """Return the network that the spec writes."""
        network = getattr(self.run.spec.task, "network", None)
        assert isinstance(network, StagedNetwork), "required by require_searchable"
        return network

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Return (channels, height, width) of the task's images."""
        shape: tuple[int, int, int] = self.task.network(self.task.classes).input_shape  # type: ignore[assignment]
        return shape

    def recipe(self, progress: Progress) -> Recipe:
        """Train the supernet and embed the index."""
        spec = self.run.spec
        task, sides = searched(spec, self.task)
        state = training.train_supernet(self.run, task, ancestors=self.ancestors, progress=progress)
        digests = (task.samples("train").digest, sides.query.digest, sides.gallery.digest)
        return Recipe(spec=spec, state=state, index=self.index(sides), data=digests)

    def index(self, sides: Sides) -> NDArray[np.float32]:
        """Return the gallery model's embeddings of the gallery side."""
        version, size = self.gallery.stored.whole(), self.run.spec.evaluate.batch_size
        return run_on_split(version, sides.gallery, size, role="gallery").embeddings

    def journal(self, recipe: Recipe) -> Journal[Measured]:
        """Open the journal of this supernet; with other weights, data or gallery there is another one."""
        weights = {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in recipe.state.items()}
        identity = sha256_json([weights, list(recipe.data), self.gallery.stored.open().digest])
        return measurements(self.run.folder / f"evaluations-{identity[:8]}.jsonl")

    def pool(self, recipe: Recipe) -> AbstractContextManager[Pool]:
        """Return what measures paths: this process, or actors of Ray."""
        if not self.section.actors:
            return Here(recipe.evaluator(self.task))
        return OnRay(recipe, actors=self.section.actors)
