"""An index: build it, add, delete, search, roll back. Driver.

Every change is one commit. Whoever reads sees the snapshot before it or the one after it; whoever was killed in between
has changed nothing.
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
"""Parts of a snapshot that are left as they are."""
ATTEMPTS = 20
"""Commits of others that a writer waits out before it gives up."""
Next = Callable[[Manifest], tuple[Manifest, Changes | None]]
"""The newest snapshot -> the one that shall follow, without parts and counts, and what changes; None: no vectors do."""


@dataclass(frozen=True, kw_only=True)
class Index:
    """A gallery in a folder or a bucket.

    Attributes:
        place: Where it lies.
        log: Its commits.
        backend: What stores and searches its vectors.
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
        """Make an index of the vectors of one space.

        Raises:
            SpecError: There is an index already, or no such backend.
            DataError: The vectors are not fit to be stored, see `Vectors.checked`.
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
        """Open an index: a folder, or s3://bucket/prefix.

        Raises:
            SpecError: An address that is neither.
            DataError: There is none, or it is of a later format.
            IntegrityError: Its manifest was altered.
        """
        place = at(where)
        log = Log(place)
        head = log.head()
        return cls(place=place, log=log, backend=registry.opened(head.backend, place, head.options))

    def head(self) -> Manifest:
        """Return the newest snapshot."""
        return self.log.head()

    def view(self, manifest: Manifest | None = None) -> View:
        """Open a snapshot for searching; None: the newest."""
        return self.backend.view(manifest or self.head())

    # --- changing -----------------------------------------------------------------------------------------------------

    def commit(self, following: Next) -> Manifest:
        """Commit what follows from the newest snapshot; where another writer is faster, what follows from theirs.

        Args:
            following: Called again with each newer snapshot; raises what refuses the change.

        Raises:
            MovedError: Others were faster every time.
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
        """Add vectors.

        Args:
            vectors: Of one space.
            space: Which.
            replacing: Ids that are there get the new vectors; otherwise they are refused.
            mixed: Vectors of another model than the one that the index takes are stored beside the others.
            reason: Why, for the history.
            author: Who.

        Raises:
            SpecError: Vectors of another model, or ids that are there.
            DataError: Vectors that are not fit to be stored.
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
        """Return the name under which vectors of a space are stored, and all spaces with it."""
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
            SpecError: The index has not all of them.
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
        """Allow queries of one model on vectors of another, e.g. where compatible training has made them comparable.

        Args:
            query: Space of the queries.
            gallery: Name of the space of the vectors.
            reason: Why; the history keeps it.
            author: Who.

        Raises:
            SpecError: There is no such space, or the dimensions differ.
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
        """Write the vectors that count as one part for each space, where many commits have left many; or leave it."""
        head = self.head()
        compacted = getattr(self.backend, "compacted", None)
        if compacted is not None and len(head.parts) > FEW:
            with suppress(MovedError):
                self.log.commit(head.after(action="compact", parts=compacted(head), time=time.time()))

    def rollback(self, to: int, *, reason: str = "", author: str = "") -> Manifest:
        """Make the content of an older snapshot that of a new one: vectors, alias and what a backfill had done.

        Raises:
            DataError: There is no such snapshot.
            IntegrityError: Its vectors are not what was written.
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
            queries: Space -> [Q, d], the same queries as each model embeds them. Vectors of a space are searched with
                its own queries, else with those of a space that the index accepts on it.
            k: How many.
            manifest: Which snapshot; None: the newest.

        Raises:
            SpecError: Vectors of a space that none of the queries may search.
            DataError: Queries of another length, or with NaN or zeros.
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
    """Return how many ids each space has after some changes."""
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
