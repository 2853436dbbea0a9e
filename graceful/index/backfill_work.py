"""The steps of a backfill: begin, order the ids, embed and commit a batch, check, and move the alias. Driver."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from graceful.errors import DataError, InfrastructureError, SpecError
from graceful.index.base import Changes, View
from graceful.index.calibration import FEWEST, MOST, calibrated
from graceful.index.gallery import Index
from graceful.index.log import MovedError
from graceful.index.manifest import Calibration, Manifest
from graceful.index.order import Order, priority
from graceful.index.space import Space
from graceful.index.vectors import Vectors, unit_length

SAMPLE, PAIRS = 512, 2048
"""Ids that the order `uncertainty` embeds at random first, and the most ids whose pairs of vectors it uses."""
CHECKED = 32
"""The number of ids that are embedded again before the alias moves."""
AGREES = 0.999
"""The least cosine of a stored vector and the same item embedded again; below it, they differ in model or item."""
Tell = Callable[[Mapping[str, object]], None]


class Reembed(Protocol):
    """Embeds ids with the new model."""

    @property
    def space(self) -> Space:
        """The space of the vectors."""
        ...

    def __call__(self, ids: NDArray[np.str_]) -> Vectors:
        """Return the vectors of those ids that the source has."""
        ...


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of a backfill.

    Attributes:
        order: The order in which vectors are replaced.
        seed: The seed of the order, and of the sample that is checked at the end.
        batch: The number of vectors in one commit.
        rate: The most vectors per second; None sets no limit.
        stop_at: The share of the vectors at which the backfill stops, 0 to 1.
        shard: The number of this worker, from 0, and the number of workers; a hash assigns each id to one worker.
        traffic: How often each id was found, which the order `traffic` needs.
        reason: The reason for the backfill, which the history records.
        author: The person or job that started the backfill, which the history records.
    """

    order: Order = "random"
    seed: int = 0
    batch: int = 1024
    rate: float | None = None
    stop_at: float = 1.0
    shard: tuple[int, int] = (0, 1)
    traffic: Mapping[str, float] | None = None
    reason: str = ""
    author: str = ""


@dataclass(frozen=True, kw_only=True)
class Work:
    """A backfill that was begun.

    Attributes:
        index: The index whose vectors are replaced.
        to: The name of the new space.
        old: The name of the space that the backfill replaces.
        reembed: The function that embeds ids with the new model.
        settings: The order, the rate and the share at which the backfill stops.
        tell: A function that is called when the sample for the order `uncertainty` is done.
        missing: The ids for which the source has no items.
    """

    index: Index
    to: str
    old: str
    reembed: Reembed
    settings: Settings
    tell: Tell
    missing: set[str] = field(default_factory=set)

    @classmethod
    def begun(cls, index: Index, reembed: Reembed, settings: Settings, tell: Tell) -> Work:
        """Begin the backfill unless it has begun: from then on, the index takes new vectors of the new space only.

        Raises:
            SpecError: A backfill to another model has not ended, or another space has the name of the new one.
        """
        space, head = reembed.space, index.head()
        if not _is_open(head) and not _is_done(head, space):
            index.compact()
            with suppress(MovedError):  # another worker has begun it
                index.commit(lambda newest: (_opened(index, newest, space, settings), None))
            head = index.head()
        if _is_open(head):
            assert head.backfill is not None
            to = str(head.backfill["to"])
            if head.spaces[to].fingerprint != space.fingerprint:
                raise SpecError(
                    f"{index.place}: a backfill to {to} is under way; finish it, or take it back with `graceful"
                    f" backfill rollback {index.place}`"
                )
        to = head.named(space.fingerprint) or space.name
        old = head.serving if head.backfill is None else str(head.backfill["from"])
        return cls(index=index, to=to, old=old, reembed=reembed, settings=settings, tell=tell)

    def left(self, order: Order | None = None) -> NDArray[np.str_]:
        """Return the ids that are left to this worker, in the given order or by default that of the settings."""
        order = order or self.settings.order
        pairs = self._pairs() if order == "uncertainty" else None
        head = self.index.head()
        view = self.index.view(head)
        ordered = [np.zeros(0, dtype="U1")]
        for space, count in head.counts.items():
            if space == self.to or not count:
                continue
            part = view.read(space)
            part = part.take(np.asarray([self._is_mine(name) for name in part.ids.tolist()], dtype=np.bool_))
            known = pairs if space == self.old else None
            how: Order = "random" if order == "uncertainty" and known is None else order
            settings = self.settings
            first = priority(how, part, seed=settings.seed, pairs=known, traffic=settings.traffic)
            ordered.append(part.ids[np.argsort(-first, kind="stable")])
        return np.concatenate(ordered)

    def _is_mine(self, name: str) -> bool:
        number, workers = self.settings.shard
        hashed = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=6).digest())
        return hashed % workers == number and name not in self.missing

    def _pairs(self) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
        """Return old and new vectors of some ids; if too few ids have both, a random sample is replaced first."""
        old, new = pairs_of(self.index.view(), self.old, self.to, most=PAIRS)
        enough = min(SAMPLE, round(self.index.head().count * self.settings.stop_at / 4))
        if len(old) < enough:
            sample = self.left("random")[: enough - len(old)]
            self.step(sample)
            self.tell({"stage": "sample", "step": len(sample), "steps": len(sample), "to": self.to})
            old, new = pairs_of(self.index.view(), self.old, self.to, most=PAIRS)
        return (old.vectors, new.vectors) if len(old) > 1 else None

    def step(self, ids: NDArray[np.str_]) -> None:
        """Embed a batch and commit the new vectors of those ids that still have their old vector.

        Raises:
            MovedError: The backfill was rolled back meanwhile.
            DataError: A vector has length zero or is not finite.
        """
        made = self.reembed(ids)
        self.missing.update(set(ids.tolist()) - set(made.ids.tolist()))
        unit = unit_length(made.vectors, names=made.ids, where=f"backfill to {self.to}")
        scaled = Vectors(ids=made.ids, vectors=unit)

        def following(head: Manifest) -> tuple[Manifest, Changes]:
            if not _is_open(head) or head.backfill is None or head.backfill["to"] != self.to:
                raise MovedError(
                    f"{self.index.place}: the backfill to {self.to} was taken back meanwhile; nothing more is done"
                )
            view, upserts = self.index.view(head), []
            places = np.asarray(view.located(scaled.ids), dtype=np.str_)
            for space in sorted(set(places.tolist()) - {"", self.to}):  # not what was deleted or written again
                chosen = scaled.take(places == space)
                own = chosen.take(np.argsort(chosen.ids, kind="stable"))
                before = view.read(space, own.ids)
                upserts.append(replace(own, payload=before.payload))
            if not upserts:
                return head.after(action="backfill"), Changes()
            joined = Vectors.joined(upserts, dimension=scaled.dimension)
            return self._calibrated(view, head, joined), Changes(upserts={self.to: joined})

        if any(space not in ("", self.to) for space in self.index.view().located(scaled.ids)):
            self.index.commit(following)

    def _calibrated(self, view: View, head: Manifest, batch: Vectors) -> Manifest:
        """Return the next manifest, with a new calibration if twice as many ids are done as at the last one."""
        state = dict(head.backfill or {})
        done = head.counts.get(self.to, 0)
        if head.calibrations and done < 2 * int(state.get("calibrated", 0)):
            return head.after(action="backfill")
        before, after = pairs_of(view, self.old, self.to)
        if len(before) < FEWEST:
            before = view.superseded(self.old, batch.ids[:MOST])
            after = batch.take(np.flatnonzero(np.isin(batch.ids, before.ids)))
            after = after.take(np.argsort(after.ids, kind="stable"))
        made = [self._calibration(before, before, after, self.old, self.old)]
        if (self.to, self.old) in head.accepts:
            made.append(self._calibration(after, before, after, self.to, self.old))
        if (self.old, self.to) in head.accepts:
            made.append(self._calibration(before, after, after, self.old, self.to))
        found = tuple(item for item in made if item is not None)
        return head.after(action="backfill", calibrations=found, backfill={**state, "calibrated": max(done, 1)})

    def _calibration(
        self, queries: Vectors, vectors: Vectors, new: Vectors, query: str, gallery: str
    ) -> Calibration | None:
        return calibrated(queries.vectors, vectors.vectors, new.vectors, query=query, gallery=gallery)

    def require_complete(self) -> None:
        """Refuse to move the alias while ids are without a new vector.

        Raises:
            DataError: The source had no items for some ids.
        """
        if self.missing:
            raise DataError(
                f"{self.index.place}: {len(self.missing)} ids have no item for {self.to}, e.g. {min(self.missing)!a};"
                " all others are done, these keep their old vectors; give a source that has them, or delete them"
            )

    def finish(self) -> bool:
        """Check the new vectors and move the alias; return False if other workers still have ids to replace.

        Raises:
            MovedError: The alias was moved or vectors of another model were added meanwhile.
            InfrastructureError: Stored vectors are damaged or missing.
            DataError: The new model gives other vectors than those that are stored.
        """
        head, place = self.index.head(), self.index.place
        if head.count != head.counts.get(self.to, 0):
            return False
        if head.serving == self.to and not _is_open(head):
            return True
        self._check(head)

        def following(newest: Manifest) -> tuple[Manifest, None]:
            if newest.serving not in (self.to, head.serving) or not _is_open(newest):
                raise MovedError(
                    f"{place}: its alias moved to {newest.serving} meanwhile; see `graceful index status {place}`"
                )
            if newest.count != newest.counts.get(self.to, 0):
                raise MovedError(f"{place}: vectors of another model were added meanwhile; run the same command again")
            state = {**(newest.backfill or {}), "state": "moved"}
            why = {"reason": self.settings.reason, "author": self.settings.author}
            return newest.after(action="move", serving=self.to, calibrations=(), backfill=state, **why), None

        self.index.commit(following)
        return True

    def _check(self, head: Manifest) -> None:
        """Refuse to move the alias if the stored vectors are damaged or are not those of the new model."""
        place, view = self.index.place, self.index.view(head)
        problems = self.index.backend.verify(head)
        if problems:
            raise InfrastructureError(f"{place}: the alias was not moved, {problems[0]}")
        since = written_since(self.index, head)
        ids = np.asarray([name for name in view.ids(self.to).tolist() if name not in since], dtype=np.str_)
        sample = np.random.default_rng(self.settings.seed).permutation(ids)[:CHECKED]
        made = self.reembed(np.sort(sample))
        made = made.take(np.argsort(made.ids, kind="stable"))
        stored = view.read(self.to, made.ids)
        unit = unit_length(made.vectors, names=made.ids, where=self.to)
        agreement = np.einsum("nd,nd->n", unit, stored.vectors)
        bad = made.ids[agreement < AGREES]
        if len(bad):
            raise DataError(
                f"{place}: the alias was not moved, {self.to} gives another vector for {str(bad[0])!a} than is stored;"
                " if its data changed, add it again with --replace, else take the backfill back"
            )


def pairs_of(view: View, old: str, new: str, *, most: int = MOST) -> tuple[Vectors, Vectors]:
    """Return the old and the new vectors of ids that a backfill has moved.

    Args:
        view: The snapshot.
        old: The name of the space in which the ids had a vector.
        new: The name of the space in which they have one now.
        most: The most ids; if more have moved, they are chosen at equal distances.
    """
    ids = view.ids(new)
    if len(ids) > most:
        ids = ids[np.unique(np.linspace(0, len(ids) - 1, most).astype(np.int64))]
    before = view.superseded(old, ids)
    return before, view.read(new, before.ids)


def written_since(index: Index, head: Manifest) -> set[str]:
    """Return the ids that were added or replaced by other writers since the backfill of a snapshot began."""
    ids: set[str] = set()
    if head.backfill is None:
        return ids
    before = index.log.read(int(head.backfill["begun"]))
    for number in range(before.number + 1, head.number + 1):
        manifest = index.log.read(number)
        if manifest.action == "add":
            ids |= set(index.backend.changed(before, manifest).tolist())
        before = manifest
    return ids


def _is_open(head: Manifest) -> bool:
    return head.backfill is not None and head.backfill["state"] != "moved"


def _is_done(head: Manifest, space: Space) -> bool:
    """Return whether an index serves a space and holds no other vectors."""
    name = head.named(space.fingerprint)
    return name is not None and head.serving == name and head.counts.get(name, 0) == head.count


def _opened(index: Index, head: Manifest, space: Space, settings: Settings) -> Manifest:
    """Return the manifest that begins a backfill."""
    name = head.named(space.fingerprint) or space.name
    if head.spaces.get(name, space).fingerprint != space.fingerprint:
        raise SpecError(f"{index.place}: has another space called {name}; name the new one differently")
    if _is_open(head):
        raise MovedError(f"{index.place}: another backfill was begun meanwhile; run the same command again")
    others = {other: count for other, count in head.counts.items() if other != name}
    old = head.serving if head.serving != name else max(others, key=lambda other: others[other])
    state: dict[str, Any] = {"to": name, "from": old, "begun": head.number, "state": "running", "order": settings.order}
    spaces = {**head.spaces, name: replace(space, name=name)}
    why = {"reason": settings.reason, "author": settings.author}
    return head.after(action="backfill", writes=name, spaces=spaces, backfill=state, **why)
