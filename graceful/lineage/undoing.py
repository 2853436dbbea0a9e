"""Changes whose writer lost the lease while it was at work: noticed, taken back, closed as failed. Driver and client.

A writer that is stopped after its last look (a machine that sleeps, a process under SIGSTOP, a request that is repeated
because its answer was lost) goes on when another writer has moved the champion, and MLflow moves the alias for whoever
asks. Hence the writer looks once more after its last change. Where the lease was no longer its own, it takes the lease
again and puts back what the events say.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from graceful.errors import RegistryError
from graceful.lineage import events, lease, schema
from graceful.lineage.events import Event
from graceful.lineage.lease import Hold, LeaseLostError
from graceful.lineage.registry import Registry


@dataclass(kw_only=True)
class Turn:
    """One change under the writer's lock.

    Attributes:
        hold: The right to make it.
        event: What records it, as soon as it is begun.
    """

    hold: Hold
    event: Event | None = None


@contextmanager
def turn(registry: Registry, model: str) -> Iterator[Turn]:
    """Hold the writer's lock of one family for one change, and take the change back if the lock was lost meanwhile.

    The caller sets `event` when it has begun it and calls `hold.confirm` before it closes it.

    Raises:
        RegistryError: Another writer held the lock all the time, or got it before the change was complete.
    """
    from mlflow.exceptions import MlflowException

    mine: Turn | None = None
    try:
        with lease.writer(registry, model) as hold:
            mine = Turn(hold=hold)
            yield mine
    except LeaseLostError as e:
        if mine is None or mine.event is None:
            raise
        raise _taken_back(registry, mine.event) from e
    except MlflowException as e:  # refused, or carried out and the answer was lost
        if mine is None or mine.event is None or mine.hold.ours:
            raise
        raise _taken_back(registry, mine.event) from e


def put_back(registry: Registry, event: Event) -> int | None:
    """Let aliases and the version's mark be as if an event had not happened; call it under the writer's lock.

    Returns:
        Number of the champion afterwards.
    """
    past = events.read(registry, event.model)
    kept = [item for item in past if item.run_id != event.run_id or item.status == events.DONE]
    champion, previous = events.replay(kept)
    later = [item for item in kept if item.status == events.DONE and events.order(item) >= events.order(event)]
    if event.kind in events.MOVES and not any(item.kind in (*events.MOVES, "retirement") for item in later):
        champion = event.before
    now = registry.aliases(event.model)
    if now.get(schema.CHAMPION) in (event.version, None):
        _point(registry, event.model, schema.CHAMPION, now.get(schema.CHAMPION), champion)
    if any(item.status == events.DONE for item in kept):
        _point(registry, event.model, schema.PREVIOUS, now.get(schema.PREVIOUS), previous)
    _mark(registry, event, kept)
    return registry.aliases(event.model).get(schema.CHAMPION)


def _taken_back(registry: Registry, event: Event) -> RegistryError:
    """What to raise after a change was taken back; takes the lease for it."""
    with lease.writer(registry, event.model) as hold:
        champion = put_back(registry, event)
        hold.confirm()
        if any(left.run_id == event.run_id for left in events.read(registry, event.model, status=events.OPEN)):
            events.close(registry, event, status=events.UNDONE)
    serving = "unset" if champion is None else f"version {champion}"
    return RegistryError(
        f"{event.model}: the {event.kind} of version {event.version} was interrupted for longer than its lease, and"
        f" another writer had its turn; it was taken back, champion is {serving}; read `graceful history {event.model}`"
        " and run the command again if it is still wanted",
        {"champion": champion},
    )


def _point(registry: Registry, model: str, alias: str, now: int | None, wanted: int | None) -> None:
    if now == wanted:
        return
    if wanted is None:
        registry.client.delete_registered_model_alias(model, alias)
    else:
        registry.client.set_registered_model_alias(model, alias, str(wanted))


def _mark(registry: Registry, event: Event, kept: Sequence[Event]) -> None:
    """Set the version's tag to what its record and the other events say of it."""
    node = registry.node(event.node) if event.node else None
    record = None if node is None else registry.recorded(node)
    listed = registry.point(registry.client.get_model_version, event.model, str(event.version))
    if record is None or listed is None:
        return
    own = [item for item in kept if item.node == event.node or item.version == event.version]
    standing = events.standing(record.verdict, own)
    if listed.tags.get(schema.TAG_GATE) != standing:
        registry.client.set_model_version_tag(event.model, str(event.version), schema.TAG_GATE, standing)
