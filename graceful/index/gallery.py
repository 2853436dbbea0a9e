"""`Index`: build an index, add and delete vectors, search, and roll back. Driver.

Every change is one atomic commit. Readers see the snapshot before or after it, and a writer that is killed before its
commit has changed nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from graceful.errors import DataError, SpecError
from graceful.index import registry, searching
from graceful.index.base import Backend, Changes, Hits, View
from graceful.index.log import Log, MovedError
from graceful.index.manifest import Manifest
from graceful.index.places import Place, at
from graceful.index.space import Space
from graceful.index.vectors import PAYLOAD_KINDS, Vectors

FEW = 16
"""Snapshots of up to this many parts are not compacted."""
ATTEMPTS = 20
"""How often a writer tries to commit while other writers are faster."""
Next = Callable[[Manifest], tuple[Manifest, Changes | None]]
"""Makes of the newest snapshot the next one, without parts and counts, and the changes; None if no vector changes."""


@dataclass(frozen=True, kw_only=True)
class Index:
    """A gallery of vectors in a folder or a bucket.

    Attributes:
        place: The folder or bucket.
        log: The commits of the index.
        backend: The backend that stores and searches the vectors.
    """

    place: Place
    log: Log
    backend: Backend

    # --- opening ------------------------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        where: str | Path | Place,
        vectors: Vectors,
        space: Space,
        *,
        backend: str = "exact",
        options: Mapping[str, Any] | None = None,
        reason: str = "",
        author: str = "",
    ) -> Self:
        """Build an index of the vectors of one space.

        Args:
            where: The folder, or s3://bucket/prefix.
            vectors: The vectors with their ids and payload.
            space: The space of the vectors, which the index serves from then on.
            backend: The kind of the backend: exact, faiss, pgvector or qdrant.
            options: The options of the backend.
            reason: The reason for the change, which the history records.
            author: The person or job that makes the change, which the history records.

        Raises:
            SpecError: The place holds an index already, or there is no such backend.
            DataError: The vectors cannot be stored, see `Vectors.checked`.
        """
        place = at(where)
        log = Log(place)
        opened = registry.opened(backend, place, options or {})
        if log.numbers():
            raise SpecError(
                f"{place}: holds an index; add to it with `graceful index add {place}`, or name another place"
            )
        checked = vectors.checked(dimension=space.dimension, where=f"space {space.name}")
        empty = Manifest(
            number=0,
            time=time.time(),
            action="build",
            reason=reason,
            author=author,
            backend=backend,
            options=opened.options(),
            spaces={space.name: space},
            serving=space.name,
            writes=space.name,
            payload={name: PAYLOAD_KINDS[column.dtype.kind] for name, column in checked.payload.items()},
        )
        parts = opened.stage(empty, Changes(upserts={space.name: checked}))
        log.commit(replace(empty, number=1, parts=parts, counts={space.name: len(checked)}))
        return cls(place=place, log=log, backend=opened)

    @classmethod
    def open(cls, where: str | Path | Place) -> Self:
        """Open the index in a folder or at s3://bucket/prefix.

        Raises:
            SpecError: The address is neither a folder nor a prefix of a bucket.
            DataError: The place holds no index, or one of a later format.
            IntegrityError: The manifest of the index was altered.
        """
        place = at(where)
        log = Log(place)
        head = log.head()
        return cls(place=place, log=log, backend=registry.opened(head.backend, place, head.options))

    def head(self) -> Manifest:
        """Return the newest snapshot."""
        return self.log.head()

    def view(self, manifest: Manifest | None = None) -> View:
        """Open a snapshot for searching, by default the newest."""
        return self.backend.view(manifest or self.head())

    # --- changing -----------------------------------------------------------------------------------------------------

    def commit(self, following: Next) -> Manifest:
        """Commit a change of the newest snapshot; if another writer is faster, make the change again after theirs.

        Args:
            following: A function that makes the next snapshot. It is called again with each newer snapshot, and raises
                an error to refuse the change.

        Raises:
            MovedError: Other writers were faster at every attempt.
        """
        with registry.writing(self.backend):
            for attempt in range(ATTEMPTS):
                head = self.head()
                manifest, changes = following(head)
                if changes is not None:
                    counts = _counts(self.view(head), head, changes)
                    manifest = replace(manifest, parts=self.backend.stage(head, changes), counts=counts)
                try:
                    return self.log.commit(replace(manifest, time=time.time()))
                except MovedError:
                    if attempt == ATTEMPTS - 1:
                        raise
        raise AssertionError("the last attempt returns or raises")

    def add(
        self,
        vectors: Vectors,
        space: Space,
        *,
        replacing: bool = False,
        mixed: bool = False,
        reason: str = "",
        author: str = "",
    ) -> Manifest:
        """Add vectors of one space.

        Args:
            vectors: The vectors with their ids and payload.
            space: The space of the vectors.
            replacing: Whether ids that the index has get the new vectors; otherwise such ids are refused.
            mixed: Whether vectors of another model than the one that the index takes are stored beside the others;
                otherwise they are refused.
            reason: The reason for the change, which the history records.
            author: The person or job that makes the change, which the history records.

        Raises:
            SpecError: The vectors are of another model, or the index has some of the ids.
            DataError: The vectors cannot be stored, see `Vectors.checked`.
        """
        checked = vectors.checked(dimension=space.dimension, where=f"space {space.name}")

        def following(head: Manifest) -> tuple[Manifest, Changes]:
            name, spaces = self._space(head, space, mixed=mixed)
            _require_payload(checked, head)
            known = [place for place in zip(checked.ids, self.view(head).located(checked.ids), strict=True) if place[1]]
            if known and not replacing:
                raise SpecError(
                    f"{self.place}: has {len(known)} of these ids, e.g. {str(known[0][0])!a}; write --replace to give"
                    " them the new vectors, or leave them out"
                )
            changed = head.after(action="add", reason=reason, author=author, spaces=spaces)
            return changed, Changes(upserts={name: checked})

        return self.commit(following)

    def _space(self, head: Manifest, space: Space, *, mixed: bool) -> tuple[str, Mapping[str, Space]]:
        """Return the name under which vectors of a space are stored, and all spaces including it."""
        name = head.named(space.fingerprint)
        expected = head.spaces[head.writes]
        if name != head.writes and not mixed:
            raise SpecError(
                f"{self.place}: takes vectors of {expected.name} (fingerprint {expected.fingerprint[:12]}), these are"
                f" of {space.name} ({space.fingerprint[:12]}); embed them with {expected.name}, or write --mixed to"
                " keep both"
            )
        if name is not None:
            return name, head.spaces
        if space.name in head.spaces:
            raise SpecError(
                f"{self.place}: has another space called {space.name} (fingerprint"
                f" {head.spaces[space.name].fingerprint[:12]}, not {space.fingerprint[:12]}); choose another"
                " name for this one"
            )
        return space.name, {**head.spaces, space.name: space}

    def delete(self, ids: NDArray[np.str_], *, reason: str = "", author: str = "") -> Manifest:
        """Delete ids.

        Raises:
            SpecError: The index does not have all of the ids.
        """

        def following(head: Manifest) -> tuple[Manifest, Changes]:
            missing = [name for name, at in zip(ids, self.view(head).located(ids), strict=True) if not at]
            if missing:
                raise SpecError(
                    f"{self.place}: has no id {str(missing[0])!a}; {len(missing)} of {len(ids)} are missing"
                )
            return head.after(action="delete", reason=reason, author=author), Changes(deleted=np.unique(ids))

        return self.commit(following)

    def accept(self, query: Space, gallery: str, *, reason: str = "", author: str = "") -> Manifest:
        """Allow queries of one model to search vectors of another, for example after compatible training.

        Args:
            query: The space of the queries.
            gallery: The name of the space of the vectors.
            reason: The reason for the change, which the history records.
            author: The person or job that makes the change, which the history records.

        Raises:
            SpecError: The index has no space of that name, or the dimensions differ.
        """

        def following(head: Manifest) -> tuple[Manifest, None]:
            target = searching.require_space(head, gallery, where=self.place)
            if query.dimension != target.dimension:
                raise SpecError(
                    f"{self.place}: queries of {query.name} have {query.dimension} numbers, vectors of {gallery}"
                    f" {target.dimension}; they cannot be compared without an adapter"
                )
            name, spaces = self._space(head, query, mixed=True)
            accepts = tuple(dict.fromkeys([*head.accepts, (name, gallery)]))
            return head.after(action="accept", reason=reason, author=author, spaces=spaces, accepts=accepts), None

        return self.commit(following)

    def compact(self) -> None:
        """Rewrite a snapshot of many parts as one part for each space, unless another writer commits meanwhile."""
        head = self.head()
        compacted = getattr(self.backend, "compacted", None)
        if compacted is not None and len(head.parts) > FEW:
            with suppress(MovedError):
                self.log.commit(head.after(action="compact", parts=compacted(head), time=time.time()))

    def rollback(self, to: int, *, reason: str = "", author: str = "") -> Manifest:
        """Restore an older snapshot as a new one, with its vectors, its alias and the state of its backfill.

        Raises:
            DataError: There is no such snapshot.
            IntegrityError: The vectors of the snapshot are not those that were written.
        """
        with registry.writing(self.backend):
            head, target = self.head(), self.log.read(to)
            self.view(target)
            parts = self.backend.revert(head, target)
            return self.log.commit(
                replace(
                    target,
                    number=head.number + 1,
                    time=time.time(),
                    action="rollback",
                    reason=reason,
                    author=author,
                    content=to,
                    parts=parts,
                )
            )

    # --- searching ----------------------------------------------------------------------------------------------------

    def search(
        self, queries: Mapping[str, NDArray[np.floating[Any]]], *, k: int = 10, manifest: Manifest | None = None
    ) -> Hits:
        """Return the k nearest vectors of each query, over all spaces of the index.

        Args:
            queries: For each space, [Q, d] vectors of the same queries. The vectors of a space are searched with its
                own queries if they are given, else with those of another space that the index accepts.
            k: The number of results for each query.
            manifest: The snapshot to search; None takes the newest.

        Raises:
            SpecError: The index holds vectors of a space that none of the queries may search.
            DataError: A query has another dimension, is not finite or has length zero.
        """
        head = manifest or self.head()
        return searching.search(self.backend.view(head), head, queries, k=k, where=str(self.place))


def _require_payload(vectors: Vectors, head: Manifest) -> None:
    kinds = {name: PAYLOAD_KINDS[column.dtype.kind] for name, column in vectors.payload.items()}
    if kinds != dict(head.payload):
        own, other = (
            ", ".join(f"{name} ({kind})" for name, kind in sorted(item.items())) or "none"
            for item in (kinds, head.payload)
        )
        raise DataError(f"payload columns: {own}, the index has {other}; give the same columns")


def _counts(view: View, head: Manifest, changes: Changes) -> dict[str, int]:
    """Return the number of ids in each space after some changes."""
    counts = dict(head.counts)

    def leave(ids: NDArray[np.str_]) -> None:
        for space in view.located(ids):
            if space:
                counts[space] -= 1

    leave(changes.deleted)
    for space, vectors in changes.upserts.items():
        leave(vectors.ids)
        counts[space] = counts.get(space, 0) + len(vectors)
    return counts
