"""Undo changes whose writer lost the lease during its work, and close their events as failed. Driver and client.

A writer that is stopped after it last checked the lease (a machine that sleeps, a process under SIGSTOP, a request that
is repeated because its answer was lost) goes on after another writer has moved the champion, and MLflow moves the alias
for both. Hence the writer checks once more after its last change. Where the lease was no longer its own, it takes the
lease again and restores the state of the events.
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

    change: Turn | None = None
    try:
        with lease.writer(registry, model) as hold:
            change = Turn(hold=hold)
            yield change
    except LeaseLostError as e:
        if change is None or change.event is None:
            raise
        raise _take_back(registry, change.event) from e
    except MlflowException as e:  # refused, or carried out and the answer was lost
        if change is None or change.event is None or change.hold.valid:
            raise
        raise _take_back(registry, change.event) from e


def put_back(registry: Registry, event: Event) -> int | None:
    """Restore aliases and the version's tag to what they were without an event; call it under the writer's lock.

    Returns:
        Number of the champion afterwards.
    """
    past = events.read(registry, event.model)
    valid = [item for item in past if item.run_id != event.run_id or item.status == events.DONE]
    champion, previous = events.replay(valid)
    later = [item for item in valid if item.status == events.DONE and events.order(item) >= events.order(event)]
    if event.kind in events.MOVES and not any(item.kind in (*events.MOVES, "retirement") for item in later):
        champion = event.before
    aliases = registry.aliases(event.model)
    if aliases.get(schema.CHAMPION) in (event.version, None):
        _set_alias(registry, event.model, schema.CHAMPION, aliases.get(schema.CHAMPION), champion)
    if any(item.status == events.DONE for item in valid):
        _set_alias(registry, event.model, schema.PREVIOUS, aliases.get(schema.PREVIOUS), previous)
    _mark(registry, event, valid)
    return registry.aliases(event.model).get(schema.CHAMPION)


def _take_back(registry: Registry, event: Event) -> RegistryError:
    """Undo a change under a new lease, and return the error to raise."""
    with lease.writer(registry, event.model) as hold:
        champion = put_back(registry, event)
        hold.confirm()
        if any(
            unfinished.run_id == event.run_id for unfinished in events.read(registry, event.model, status=events.OPEN)
        ):
            events.close(registry, event, status=events.UNDONE)
    serving = "unset" if champion is None else f"version {champion}"
    return RegistryError(
        f"{event.model}: the {event.kind} of version {event.version} was interrupted for longer than its lease, and"
        f" another writer had its turn; it was taken back, champion is {serving}; read `graceful history {event.model}`"
        " and run the command again if it is still wanted",
        {"champion": champion},
    )


def _set_alias(registry: Registry, model: str, alias: str, current: int | None, wanted: int | None) -> None:
    if current == wanted:
        return
    if wanted is None:
        registry.client.delete_registered_model_alias(model, alias)
    else:
        registry.client.set_registered_model_alias(model, alias, str(wanted))


def _mark(registry: Registry, event: Event, valid: Sequence[Event]) -> None:
    """Set the gate tag of the event's version to its status by its record and the other events."""
    node = registry.node(event.node) if event.node else None
    record = None if node is None else registry.recorded(node)
    listed = registry.point(registry.client.get_model_version, event.model, str(event.version))
    if record is None or listed is None:
        return
    own = [item for item in valid if item.node == event.node or item.version == event.version]
    standing = events.standing(record.verdict, own)
    if listed.tags.get(schema.TAG_GATE) != standing:
        registry.client.set_model_version_tag(event.model, str(event.version), schema.TAG_GATE, standing)
