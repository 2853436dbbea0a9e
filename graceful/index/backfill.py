"""Replace the vectors of an old model by those of a new one while queries are answered. Driver.

The index itself records the progress: the ids that are left are those whose vector is not in the new space. A killed
backfill therefore loses only the batch that it was embedding, and repeating a batch changes nothing. After the last
batch and a final check, the alias moves to the new space unless somebody has moved it meanwhile.
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
"""The file that asks a backfill to stop."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The progress of a backfill.

    Attributes:
        state: `running`; `paused` by request; `stopped` at `stop_at` or because this worker's shard is done; or `moved`
            once the alias has moved to the new space.
        to: The name of the new space.
        done: The number of vectors in the new space.
        total: The number of vectors in the index.
        serving: The alias: the name of the space whose queries the index expects.
        snapshot: The number of the newest snapshot.
    """

    state: str
    to: str
    done: int
    total: int
    serving: str
    snapshot: int

    @classmethod
    def of(cls, head: Manifest, name: str, state: str) -> Progress:
        """Return the progress that a snapshot shows."""
        done = head.counts.get(name, 0)
        return cls(state=state, to=name, done=done, total=head.count, serving=head.serving, snapshot=head.number)

    @property
    def fraction(self) -> float:
        """The share of the vectors that are in the new space, 0 to 1."""
        return self.done / self.total if self.total else 1.0

    def document(self) -> dict[str, Any]:
        """Return the progress as JSON values."""
        return {**asdict(self), "fraction": self.fraction}


def run(
    index: Index,
    reembed: Reembed,
    settings: Settings,
    *,
    tell: Tell = lambda _: None,
    sleep: Callable[[float], None] = time.sleep,
) -> Progress:
    """Replace vectors until all are of the new model, the backfill is paused, or its share `stop_at` is reached.

    Args:
        index: The index whose vectors are replaced.
        reembed: The function that embeds ids with the new model.
        settings: The order, the rate and the share at which the backfill stops.
        tell: A function that is called with the progress after each batch.
        sleep: The function that waits to keep the rate; tests replace it.

    Raises:
        SpecError: A backfill to another model has not ended.
        InfrastructureError: Another process on this machine works on the same shard.
        DataError: The source has no items for some ids; all other ids are done.
        MovedError: The alias was moved or the backfill was rolled back meanwhile.
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
    """Ask a backfill to stop after its present batch, on whichever machine it runs.

    Raises:
        StorageError: The place of the index cannot be written.
    """
    index.place.create(PAUSE, b"")


def is_running(index: Index) -> bool:
    """Return whether a process on this machine is backfilling an index."""
    folder = index.place.scratch
    with guarded(folder, "read"):
        return any(locks.is_held(path) for path in folder.glob("backfill-*.lock"))


def progress(index: Index) -> Progress | None:
    """Return the progress of the backfill of an index; None if there is none."""
    head = index.head()
    if head.backfill is None:
        return None
    state = "moved" if head.backfill["state"] == "moved" else "running" if is_running(index) else "stopped"
    return Progress.of(head, str(head.backfill["to"]), state)


def rollback(index: Index, *, reason: str = "", author: str = "") -> Manifest:
    """Restore the old vector of every id that the backfill moved, and move the alias back to the old model.

    Ids that were added or replaced since the backfill began have no valid old vector and stay in the new space.

    Raises:
        SpecError: No backfill was begun.
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
    """Lock a shard on this machine; a second process on another machine is harmless, because commits are atomic."""
    path = place.scratch / f"backfill-{shard[0]}-of-{shard[1]}.lock"
    try:
        with locks.exclusive(path):
            yield
    except BlockingIOError:
        raise InfrastructureError(
            f"{place}: another process backfills it; wait for it, or end it with `graceful backfill pause {place}`"
        ) from None
