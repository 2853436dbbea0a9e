"""The protocol of backends, which store and search the vectors of an index. Driver.

The log of an index (`graceful.index.log`) decides which snapshot is current. A backend writes the next snapshot where
readers of the current one do not see it, so that the atomic commit of the log makes all of it visible or nothing.
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
"""The id in places of the results that stay empty because a space has fewer than k vectors."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Hits:
    """The nearest vectors of each query, the best first; equally near vectors are ordered by id.

    Attributes:
        ids: [Q, k] texts; an empty text where there are fewer than k vectors.
        scores: [Q, k] float64 cosines; -inf where the id is empty.
    """

    ids: NDArray[np.str_]
    scores: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Changes:
    """The changes of one commit.

    Attributes:
        upserts: The vectors of each space that are added; they replace earlier vectors of their ids in any space.
        deleted: [N] ids that are deleted.
    """

    upserts: Mapping[str, Vectors] = field(default_factory=dict)
    deleted: NDArray[np.str_] = field(default_factory=lambda: np.zeros(0, dtype="U1"))


@runtime_checkable
class View(Protocol):
    """A snapshot that is open for reading and searching; later commits do not change it."""

    def count(self, space: str) -> int:
        """Return how many ids have their vector in a space."""
        ...

    def located(self, ids: NDArray[np.str_]) -> list[str]:
        """Return the space in which each id has its vector; an empty text if the index does not have the id."""
        ...

    def ids(self, space: str) -> NDArray[np.str_]:
        """Return the ids whose vectors are in a space, sorted."""
        ...

    def read(self, space: str, ids: NDArray[np.str_] | None = None) -> Vectors:
        """Return vectors of a space with their payload, sorted by id.

        Args:
            space: The name of the space.
            ids: The ids to read; those without a vector in the space are left out. None reads all.
        """
        ...

    def superseded(self, space: str, ids: NDArray[np.str_]) -> Vectors:
        """Return the latest vectors that ids have or had in a space, sorted by id.

        A backfill keeps old vectors, so this returns the old vectors of ids that have moved to a new space.

        Args:
            space: The name of the space.
            ids: The ids to read; those without a stored vector in the space are left out.
        """
        ...

    def search(self, queries: NDArray[np.float32], *, space: str, k: int, exact: bool = False) -> Hits:
        """Return the k nearest vectors of a space for each query.

        Args:
            queries: [Q, d] vectors of unit length, from a model whose queries may search the space.
            space: The name of the space.
            k: The number of results for each query.
            exact: Whether the search must find all of the nearest vectors; a faster one may miss some of them.
        """
        ...


@runtime_checkable
class Backend(Protocol):
    """Stores the vectors of one index."""

    @property
    def kind(self) -> str:
        """The name of the backend in manifests."""
        ...

    def stage(self, head: Manifest, changes: Changes) -> tuple[Part, ...]:
        """Write the changes that lead from `head` to the next snapshot, and return all parts of that snapshot.

        Readers never see changes that were staged and not committed, and the next writer replaces them.
        """
        ...

    def revert(self, head: Manifest, target: Manifest) -> tuple[Part, ...]:
        """Stage the content of an older snapshot as that of the snapshot after `head`, and return its parts."""
        ...

    def view(self, manifest: Manifest) -> View:
        """Open a snapshot.

        Raises:
            IntegrityError: The stored vectors are not those that the manifest names.
        """
        ...

    def changed(self, before: Manifest, after: Manifest) -> NDArray[np.str_]:
        """Return the ids that commits between two snapshots have written or deleted."""
        ...

    def verify(self, manifest: Manifest) -> list[str]:
        """Compare the stored vectors with the manifest, and return one sentence for each difference."""
        ...

    def options(self) -> dict[str, Any]:
        """Return the options that open this backend again, as JSON values."""
        ...
