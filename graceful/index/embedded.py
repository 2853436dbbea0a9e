"""The backend `exact`, whose vectors are files of the index itself. Driver.

`graceful.index.ann` adds approximate search to it. A snapshot is a list of segments. If several segments hold an id,
the last one decides, so a segment of the new model replaces vectors of an older segment without changing its file, and
an older snapshot is a shorter list of the same files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graceful.errors import GracefulError
from graceful.index import exact as truth
from graceful.index import segments
from graceful.index.base import Changes, Hits
from graceful.index.manifest import Manifest, Part
from graceful.index.places import Place
from graceful.index.vectors import Vectors


@dataclass(frozen=True, eq=False)
class Resolved:
    """All vectors of one space in the segments of a snapshot, and which of them belong to the snapshot.

    Attributes:
        vectors: The vectors in the order of the segments.
        alive: [N] whether no later segment replaces or deletes the vector.
    """

    vectors: Vectors
    alive: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class EmbeddedView:
    """A snapshot in memory.

    Attributes:
        manifest: The manifest of the snapshot.
        contents: The contents of its segments, in order.
        last: For each id, the number of the last segment that holds it.
    """

    manifest: Manifest
    contents: tuple[Vectors, ...]
    last: Mapping[str, int]

    @cached_property
    def spaces(self) -> Mapping[str, Resolved]:
        """The vectors of each space."""
        found = {}
        for name, space in self.manifest.spaces.items():
            numbers = [number for number, part in enumerate(self.manifest.parts) if part.space == name]
            alive = [
                np.fromiter((self.last[row] == number for row in self.contents[number].ids.tolist()), dtype=np.bool_)
                for number in numbers
            ]
            vectors = Vectors.joined([self.contents[number] for number in numbers], dimension=space.dimension)
            found[name] = Resolved(vectors, np.concatenate(alive) if alive else np.zeros(0, dtype=np.bool_))
        return found

    def located(self, ids: NDArray[np.str_]) -> list[str]:
        """Return the space in which each id has its vector; an empty text if the index does not have the id."""
        numbers = [self.last.get(name) for name in ids.tolist()]
        return ["" if number is None else self.manifest.parts[number].space for number in numbers]

    def count(self, space: str) -> int:
        """Return how many ids have their vector in a space."""
        return int(self.spaces[space].alive.sum())

    def ids(self, space: str) -> NDArray[np.str_]:
        """Return the ids whose vectors are in a space, sorted."""
        resolved = self.spaces[space]
        return np.sort(resolved.vectors.ids[resolved.alive])

    def read(self, space: str, ids: NDArray[np.str_] | None = None) -> Vectors:
        """Return vectors of a space with their payload, sorted by id."""
        resolved = self.spaces[space]
        alive = resolved.alive if ids is None else resolved.alive & np.isin(resolved.vectors.ids, ids)
        rows = np.flatnonzero(alive)
        return resolved.vectors.take(rows[np.argsort(resolved.vectors.ids[rows], kind="stable")])

    def superseded(self, space: str, ids: NDArray[np.str_]) -> Vectors:
        """Return the latest vectors that ids have or had in a space, sorted by id."""
        resolved = self.spaces[space]
        latest = {name: row for row, name in enumerate(resolved.vectors.ids.tolist())}
        rows = [latest[name] for name in sorted(set(ids.tolist())) if name in latest]
        return resolved.vectors.take(np.asarray(rows, dtype=np.int64))

    def search(self, queries: NDArray[np.float32], *, space: str, k: int, exact: bool = True) -> Hits:
        """Return the k nearest vectors of a space for each query, always exactly."""
        resolved = self.spaces[space]
        return truth.search(queries, resolved.vectors.vectors, resolved.vectors.ids, k, alive=resolved.alive)


@dataclass
class Cache:
    """The segments that were read, and the last segment of each id in the snapshot that was opened last."""

    segments: dict[str, Vectors] = field(default_factory=dict)
    opened: tuple[Part, ...] = ()
    words: dict[str, int] = field(default_factory=dict)

    def contents(self, place: Place, parts: tuple[Part, ...]) -> tuple[Vectors, ...]:
        """Return the contents of segments.

        Raises:
            IntegrityError: The bytes of a segment have another digest.
            StorageError: A segment cannot be read.
        """
        for part in parts:
            if part.sha256 not in self.segments:
                self.segments[part.sha256] = segments.read(place, part)
        return tuple(self.segments[part.sha256] for part in parts)

    def last(self, parts: tuple[Part, ...], contents: tuple[Vectors, ...]) -> dict[str, int]:
        """Return the number of the last segment that holds each id, updated from the snapshot that was opened last."""
        known = len(self.opened)
        if parts[:known] != self.opened:
            known, self.words = 0, {}
        words = self.words = dict(self.words)  # earlier views keep their own
        for number in range(known, len(parts)):
            words.update(dict.fromkeys(contents[number].ids.tolist(), number))
        self.opened = parts
        return words


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """The files of an index, searched exactly.

    Attributes:
        place: The folder or bucket of the index.
        kind: The name of the backend in manifests.
        cache: The segments that were read, which never change.
    """

    place: Place
    kind: str = "exact"
    cache: Cache = field(default_factory=Cache, repr=False, compare=False)

    def options(self) -> dict[str, Any]:
        """Return the options that open this backend again."""
        return {}

    def stage(self, head: Manifest, changes: Changes) -> tuple[Part, ...]:
        """Write the changes as segments, and return the parts of the next snapshot."""
        parts = list(head.parts)
        if len(changes.deleted):
            nothing = np.zeros((len(changes.deleted), 0), dtype=np.float32)
            parts.append(segments.write(self.place, Vectors(ids=changes.deleted, vectors=nothing), space=""))
        for space, vectors in changes.upserts.items():
            if len(vectors):
                parts.append(segments.write(self.place, vectors, space=space))
        return tuple(parts)

    def compacted(self, head: Manifest) -> tuple[Part, ...]:
        """Write the vectors of a snapshot as one segment for each space, and return these parts."""
        view = self.view(head)
        return tuple(
            segments.write(self.place, view.read(name), space=name) for name in head.spaces if view.count(name)
        )

    def revert(self, head: Manifest, target: Manifest) -> tuple[Part, ...]:
        """Return the parts of an older snapshot; its segments still exist, so nothing is written."""
        return target.parts

    def view(self, manifest: Manifest) -> EmbeddedView:
        """Open a snapshot."""
        contents = self.cache.contents(self.place, manifest.parts)
        return EmbeddedView(manifest, contents, self.cache.last(manifest.parts, contents))

    def changed(self, before: Manifest, after: Manifest) -> NDArray[np.str_]:
        """Return the ids that commits between two snapshots have written or deleted."""
        added = self.cache.contents(self.place, after.parts[len(before.parts) :])
        return np.unique(np.concatenate([np.zeros(0, dtype="U1"), *(content.ids for content in added)]))

    def verify(self, manifest: Manifest) -> list[str]:
        """Read every segment again and check the length of every vector and the counts of the manifest."""
        problems = []
        for part in manifest.parts:
            try:
                content = segments.read(self.place, part, again=True)
            except GracefulError as e:
                problems.append(e.message)
                continue
            if part.space and len(content):
                length = np.linalg.norm(content.vectors.astype(np.float64), axis=1)
                bad = int((~(np.abs(length - 1.0) < 1e-3)).sum())
                if bad:
                    problems.append(f"{part.file}: {bad} of {part.rows} vectors have not unit length")
        return problems or self._counts(manifest)

    def _counts(self, manifest: Manifest) -> list[str]:
        view = self.view(manifest)
        found = {name: view.count(name) for name in manifest.spaces}
        return [
            f"space {name}: {found[name]} ids, the manifest says {manifest.counts.get(name, 0)}"
            for name in found
            if found[name] != manifest.counts.get(name, 0)
        ]
