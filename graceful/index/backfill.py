"""Replace the vectors of an old model by those of a new one, while queries go on. Driver.

What is left to do is what the index says: ids whose vector is not in the new space. So there is no second record of
progress that could disagree with it, a killed backfill loses the batch it was embedding and nothing else, and doing a
batch twice changes nothing. The alias moves at the end, after a last check, if it is still where it was.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from graceful import locks
from graceful.errors import InfrastructureError, SpecError
from graceful.files import guarded
from graceful.index.backfill_work import Reembed, Settings, Tell, Work, written_since
from graceful.index.base import Changes
from graceful.index.gallery import Index
from graceful.index.manifest import Manifest
from graceful.index.places import Place

PAUSE = "backfill.pause"
"""File that asks a backfill to stop."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a backfill is.

    Attributes:
        state: running, paused, stopped (at the share that was asked for, or this worker's shard is done) or moved.
        to: Name of the new space.
        done: Vectors in it.
        total: All of the index.
        serving: The alias.
        snapshot: Number of the newest snapshot.
    """

    state: str
    to: str
    done: int
    total: int
    serving: str
    snapshot: int

    @classmethod
    def of(cls, head: Manifest, name: str, state: str) -> Progress:
        """Return how far a snapshot is."""
        done = head.counts.get(name, 0)
        return cls(state=state, to=name, done=done, total=head.count, serving=head.serving, snapshot=head.number)

    @property
    def fraction(self) -> float:
        """Share of the vectors that are in the new space."""
        return self.done / self.total if self.total else 1.0

    def document(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {**asdict(self), "fraction": self.fraction}


def run(
    index: Index,
    reembed: Reembed,
    settings: Settings,
    *,
    tell: Tell = lambda _: None,
    sleep: Callable[[float], None] = time.sleep,
) -> Progress:
    """Replace vectors until all are of the new model, or somebody pauses it, or a share is reached.

    Args:
        index: What is backfilled.
        reembed: The new model.
        settings: Order, rate, share.
        tell: Hears of each batch.
        sleep: For tests.

    Raises:
        SpecError: A backfill to another model is under way.
        InfrastructureError: Another process backfills this index.
        DataError: Some ids have no items for the new model; all others are done.
        MovedError: The alias moved, or the backfill was rolled back, meanwhile.
    """
    with _alone(index.place, settings.shard):
        index.place.remove(PAUSE)
        work = Work.begun(index, reembed, settings, tell)
        while len(left := work.left()):
            for start in range(0, len(left), settings.batch):
                begun, now = time.monotonic(), Progress.of(index.head(), work.to, "paused")
                if index.place.exists(PAUSE):
                    return now
                room = math.ceil(settings.stop_at * now.total) - now.done
                if room <= 0:
                    return Progress.of(index.head(), work.to, "stopped")
                batch = left[start : start + min(settings.batch, room)]
                work.step(batch)
                after = Progress.of(index.head(), work.to, "running")
                tell({"stage": "backfill", "step": after.done, "steps": after.total, "to": work.to})
                if settings.rate is not None:
                    sleep(max(0.0, len(batch) / settings.rate - (time.monotonic() - begun)))
        work.require_complete()
        moved = work.finish()
        return Progress.of(index.head(), work.to, "moved" if moved else "stopped")


def pause(index: Index) -> None:
    """Ask a backfill, wherever it runs, to stop after its present batch.

    Raises:
        StorageError: The place of the index cannot be written.
    """
    index.place.create(PAUSE, b"")


def is_running(index: Index) -> bool:
    """Return whether a process of this machine backfills an index."""
    folder = index.place.scratch
    with guarded(folder, "read"):
        return any(locks.is_held(path) for path in folder.glob("backfill-*.lock"))


def progress(index: Index) -> Progress | None:
    """Return how far the backfill of an index is; None: there is none."""
    head = index.head()
    if head.backfill is None:
        return None
    state = "moved" if head.backfill["state"] == "moved" else "running" if is_running(index) else "stopped"
    return Progress.of(head, str(head.backfill["to"]), state)


def rollback(index: Index, *, reason: str = "", author: str = "") -> Manifest:
    """Give every id that the backfill moved its old vector again, and the alias to the old model.

    What was written since the backfill began has no old vector, or an outdated one, and stays in the new space.

    Raises:
        SpecError: There is no backfill.
    """

    def following(head: Manifest) -> tuple[Manifest, Changes]:
        if head.backfill is None:
            raise SpecError(
                f"{index.place}: no backfill was begun; `graceful index rollback {index.place} --to N` brings an"
                " earlier snapshot back"
            )
        to, old, view = str(head.backfill["to"]), str(head.backfill["from"]), index.view(head)
        since = written_since(index, head)
        moved = np.asarray([name for name in view.ids(to).tolist() if name not in since], dtype=np.str_)
        changed = head.after(
            action="rollback", reason=reason, author=author, serving=old, writes=old, calibrations=(), backfill=None
        )
        return changed, Changes(upserts={old: view.superseded(old, moved)})

    return index.commit(following)


@contextmanager
def _alone(place: Place, shard: tuple[int, int]) -> Iterator[None]:
    """Keep a second process out of the same shard on this machine; elsewhere, commits keep it harmless."""
    path = place.scratch / f"backfill-{shard[0]}-of-{shard[1]}.lock"
    try:
        with locks.exclusive(path):
            yield
    except BlockingIOError:
        raise InfrastructureError(
            f"{place}: another process backfills it; wait for it, or end it with `graceful backfill pause {place}`"
        ) from None
