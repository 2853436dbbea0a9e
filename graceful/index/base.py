"""The protocol of backends that store and search the vectors of an index. Driver.

The log of an index (`graceful.index.log`) says which snapshot is current. A backend writes what belongs to the next
snapshot where no reader of the present one sees it, so that the log's one atomic step makes all of it visible or none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from graceful.index.manifest import Manifest, Part
from graceful.index.vectors import Vectors

NOTHING = ""
"""Id of a place in the results that nothing fills, because the space has fewer vectors."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Hits:
    """The nearest vectors of each query, best first; by id where two are equally near.

    Attributes:
        ids: [Q, k] texts; empty where there are fewer than k vectors.
        scores: [Q, k] float64, cosine; -inf there.
    """

    ids: NDArray[np.str_]
    scores: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Changes:
    """What one commit changes.

    Attributes:
        upserts: Space -> vectors that are added, or replace what their ids had, in whichever space that was.
        deleted: [N] ids that go.
    """

    upserts: Mapping[str, Vectors] = field(default_factory=dict)
    deleted: NDArray[np.str_] = field(default_factory=lambda: np.zeros(0, dtype="U1"))


@runtime_checkable
class View(Protocol):
    """One snapshot, ready to be searched; later commits do not change it."""

    def count(self, space: str) -> int:
        """Return how many ids have their vector in a space."""
        ...

    def located(self, ids: NDArray[np.str_]) -> list[str]:
        """Return the space in which each id has its vector; empty: the index has no such id."""
        ...

    def ids(self, space: str) -> NDArray[np.str_]:
        """Return the ids whose vectors are in a space, sorted."""
        ...

    def read(self, space: str, ids: NDArray[np.str_] | None = None) -> Vectors:
        """Return vectors of a space with their payload, sorted by id; ids that are not there are left out.

        Args:
            space: Name.
            ids: Which; None: all.
        """
        ...

    def superseded(self, space: str, ids: NDArray[np.str_]) -> Vectors:
        """Return the latest vectors that some ids have or had in a space, sorted by id: pairs of old and new vectors.

        Args:
            space: Name.
            ids: Which; those that are not kept any more are left out.
        """
        ...

    def search(self, queries: NDArray[np.float32], *, space: str, k: int, exact: bool = False) -> Hits:
        """Return the k nearest vectors of a space for each query.

        Args:
            queries: [Q, d] of unit length, of a model whose queries may search the space.
            space: Name.
            k: How many.
            exact: All of the nearest, however long it takes; otherwise most of them, where that is faster.
        """
        ...


@runtime_checkable
class Backend(Protocol):
    """Stores the vectors of one index."""

    @property
    def kind(self) -> str:
        """How manifests name it."""
        ...

    def stage(self, head: Manifest, changes: Changes) -> tuple[Part, ...]:
        """Write what the snapshot after `head` has beyond it, and return all parts of that snapshot.

        What a writer staged and never committed is never seen, and is replaced by the next writer.
        """
        ...

    def revert(self, head: Manifest, target: Manifest) -> tuple[Part, ...]:
        """Stage the content of an older snapshot as that of the one after `head`, and return its parts."""
        ...

    def view(self, manifest: Manifest) -> View:
        """Open a snapshot.

        Raises:
            IntegrityError: What is stored is not what the manifest says.
        """
        ...

    def changed(self, before: Manifest, after: Manifest) -> NDArray[np.str_]:
        """Return the ids whose vectors were written by the commits between two snapshots, deleted ones included."""
        ...

    def verify(self, manifest: Manifest) -> list[str]:
        """Return one sentence for each thing that is not as the manifest says; empty: all is."""
        ...

    def options(self) -> dict[str, Any]:
        """Return as JSON values what opens this backend again."""
        ...
