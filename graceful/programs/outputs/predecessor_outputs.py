"""Caches of predecessors' outputs for the training data: built if missing, and compared with live outputs. Driver.

They are built in this process; what would take it more than a minute is built by the workers of the training, where
there are two or more.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from graceful import targets
from graceful.chain import Predecessor
from graceful.errors import SpecError
from graceful.learners import Role
from graceful.models.stored import StoredVersion
from graceful.spec import RefreshSpec
from graceful.storage import Mirror
from graceful.targets.blocks import Compute
from graceful.targets.eviction import evict, keys_of
from graceful.tasks.base import Samples
from graceful.tasks.portions import portion


@dataclass(frozen=True, kw_only=True)
class Views:
    """What the caches hold.

    Attributes:
        live: No cache: predecessors run in every step.
        keyed: [V, N] view numbers of V cached views; None: the one clean view.
    """

    live: bool = False
    keyed: NDArray[np.uint64] | None = None

    @classmethod
    def of(cls, spec: RefreshSpec, samples: Samples, *, augments: bool) -> Self:
        """As the spec wants them.

        Raises:
            SpecError: Reference runs without caches, clean views that do not belong to augmented samples, or caches of
                a stream.
        """
        if samples.stream is not None:
            _require_live(spec)
            return cls(live=True)
        mode = targets.plan_views(spec.compatibility.targets, augments=augments)
        if mode != "keyed":
            if mode == "live" and spec.compatibility.reference_runs:
                raise SpecError("compatibility.targets.mode: live has no cache for reference runs; write keyed")
            return cls(live=mode == "live")
        count = spec.compatibility.targets.views
        return cls(keyed=targets.key_views(samples.ids, seed=spec.train.seed, count=count))


def _require_live(spec: RefreshSpec) -> None:
    """Refuse caches of outputs for a stream.

    Raises:
        SpecError: The spec asks for them.
    """
    why = "the training rows are a stream, which cannot be read again by their ids to compare cached outputs with them"
    if spec.compatibility.targets.mode in ("clean", "keyed"):
        raise SpecError(
            f"compatibility.targets.mode: {why}; write live, or leave mode out, and predecessors run in every step"
        )
    for key in ("reference", "blend"):
        if getattr(spec.compatibility, key):
            raise SpecError(f"compatibility.{key}: reads cached outputs, and {why}; leave it out")


@dataclass(kw_only=True)
class Pace:
    """Rows done -> a row of progress, with rows per second and the seconds that remain, from the second call on."""

    stage: str
    clock: Callable[[], float] = time.monotonic
    _first: tuple[float, int] | None = None

    def __call__(self, done: int, total: int) -> dict[str, object]:
        """Return how far it is."""
        now, row = self.clock(), {"stage": self.stage, "step": done, "steps": total}
        since, before = self._first = self._first or (now, done)
        if now <= since or done <= before:
            return row
        rate = (done - before) / (now - since)
        return {**row, "samples_per_second": round(rate, 1), "eta": round((total - done) / rate, 1)}


@dataclass(frozen=True, kw_only=True)
class CachedOutputs:
    """Caches of versions' outputs on the training data, and notes about caches that differ from what they should be."""

    samples: Samples
    views: Views
    home: Path
    mirror: Mirror
    spec: RefreshSpec
    progress: Callable[[Mapping[str, object]], None]
    lost: frozenset[str] = frozenset()
    """Digests of versions that cannot be run again, whose caches are never deleted."""
    notes: list[str] = field(default_factory=list)
    open: list[targets.Cache] = field(default_factory=list)
    """Caches that are held open, so that none is deleted before training reads it."""

    def of(self, stored: StoredVersion, *, role: Role = "query") -> Path:
        """Return the folder of a version's outputs by its encoder for a role, built if need be and compared with it run
        now."""
        version = replace(stored.open(), role=role)
        root, section = self.home / "targets", self.spec.compatibility.targets
        if section.limit_gb is not None:
            evict(root, limit=int(section.limit_gb * 1e9), keep=keys_of(root, predecessors=self.lost))
        most = self.spec.evaluate.batch_size
        pace = Pace(stage=f"outputs of {version.name}")
        cache = targets.build(
            version,
            self.samples,
            views=self.views.keyed,
            root=root,
            mirror=self.mirror,
            batch_size=most if version.unrunnable_reason else portion(self.samples, version.learner.collate, most=most),
            top=section.top,
            progress=lambda done, total: self.progress(pace(done, total)),
            compute=self._compute(version, stored),
        )
        self.open.append(cache)
        covered = cache.coverage(self.samples.ids)
        if covered < 1.0:
            partial = f"its outputs are finite on {covered:.1%} of the training samples"
            self.notes.append(f"{version.name}: {partial}")
        if version.unrunnable_reason:
            self.notes.append(
                f"{version.name}: {version.unrunnable_reason}, so its cached outputs were not compared with it"
            )
        else:
            cache.check(version, self.samples, self.views.keyed).require(f"{cache.folder}: {version.name}")
        return cache.folder

    def _compute(self, version: Predecessor, stored: StoredVersion) -> Compute | None:
        """Return who runs the version: None, this process."""
        from graceful.training import ray_outputs

        if self.spec.train.num_workers < 2:
            return None
        views = 1 if self.views.keyed is None else len(self.views.keyed)
        data = self.samples.digest
        return ray_outputs.parallel(
            ray_outputs.Recipe(spec=self.spec, stored=stored, role=version.role, data=data, mirror=self.mirror),
            ray_outputs.Here(predecessor=version, samples=self.samples, views=views),
        )
