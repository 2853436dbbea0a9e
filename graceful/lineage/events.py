"""Who moved, held or retired which version, when and why: one MLflow run per event, never changed. Driver and client.

mlflow keeps no history of aliases. An event is opened before anything moves and closed afterwards, so that whatever
moved has an event; one that stayed open is completed by repeating the command, or settled by `graceful lineage repair`.
Aliases and the tag `graceful_gate` can be computed again from events and records: `replay` and `standing` do.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from graceful.lineage import render, schema
from graceful.lineage.registry import Registry, quoted

Kind = Literal["promotion", "rollback", "hold", "release", "retirement", "repair"]
KINDS: tuple[Kind, ...] = ("promotion", "rollback", "hold", "release", "retirement", "repair")
MOVES = ("promotion", "rollback", "repair")
"""Kinds after which `champion` is the version of the event."""
Standing = Literal["passed", "held", "waived", "retired"]
OPEN, DONE, UNDONE = "RUNNING", "FINISHED", "FAILED"
PAGE = 1000
ACTOR_LIMIT, REASON_LIMIT = 500, 5000


@dataclass(frozen=True, kw_only=True)
class Event:
    """One change of a version's role, and who made it.

    Attributes:
        kind: promotion, rollback, hold, release, retirement, or repair (the champion was put back).
        model: Model family.
        version: Number of the version it was done to.
        before: Number of the champion until then; None: there was none, or the event moved nothing.
        node: Identity of the version; empty in events of earlier releases.
        name: Name of the version.
        reason: Why.
        actor: Who.
        waived: It was promoted although it is held.
        forced: It was the champion, and nothing took its place.
        run_id: MLflow run that records it; empty until then.
        time: Milliseconds since 1970; grows from event to event of a family.
        status: RUNNING: begun; FINISHED: carried out; FAILED: it was not.
        altered: What cannot be read of it, because a tag was edited; its version is then 0.
    """

    kind: Kind
    model: str
    version: int
    before: int | None = None
    node: str = ""
    name: str = ""
    reason: str = ""
    actor: str = ""
    waived: bool = False
    forced: bool = False
    run_id: str = ""
    time: int = 0
    status: str = OPEN
    altered: tuple[str, ...] = ()


# --- writing, under the writer's lock ---------------------------------------------------------------------------------


def begin(registry: Registry, event: Event) -> Event:
    """Open an event, or return the one that an interrupted attempt left open; call it under the writer's lock."""
    for unfinished in read(registry, event.model, version=event.version, status=OPEN):
        if (unfinished.kind, unfinished.before) == (event.kind, event.before):
            return unfinished
    newest = next(_search(registry, event.model, "", limit=1, order="DESC"), None)
    start = max(int(time.time() * 1000), 0 if newest is None else newest.time + 1)
    key, experiment = uuid.uuid4().hex, registry.experiment(event.model)
    name = f"{_VERBS[event.kind]}-{event.model}-{event.version}"
    registry.client.create_run(experiment, start_time=start, run_name=name, tags=_tags(event, key))
    first, *repeated = sorted(
        registry.client.search_runs([experiment], f"tags.{schema.TAG_KEY} = '{key}'"), key=lambda run: run.info.run_id
    )
    for run in repeated:  # an answer was lost and the request repeated
        registry.client.delete_run(run.info.run_id)
    return replace(event, run_id=first.info.run_id, time=first.info.start_time)


def close(registry: Registry, event: Event, *, status: str = DONE) -> None:
    """Record whether an event was carried out."""
    registry.client.set_terminated(event.run_id, status=status)


_VERBS: Mapping[Kind, str] = {
    "promotion": "promote",
    "rollback": "rollback",
    "hold": "hold",
    "release": "release",
    "retirement": "retire",
    "repair": "repair",
}


def _tags(event: Event, key: str) -> dict[str, str]:
    return {
        schema.TAG_KIND: event.kind,
        schema.TAG_FAMILY: event.model,
        schema.TAG_KEY: key,
        "graceful_from": str(event.before),
        "graceful_to": str(event.version),
        "graceful_node": event.node,
        "graceful_name": event.name,
        "graceful_actor": event.actor[:ACTOR_LIMIT],
        "graceful_reason": event.reason[:REASON_LIMIT],
        "graceful_waived": str(event.waived).lower(),
        "graceful_forced": str(event.forced).lower(),
        "mlflow.source.name": f"graceful {_VERBS[event.kind]}",
        "mlflow.note.content": render.escape_markdown(event.reason)[:REASON_LIMIT],
    }


# --- reading ----------------------------------------------------------------------------------------------------------


def read(registry: Registry, model: str, *, version: int | None = None, status: str | None = None) -> list[Event]:
    """Return the events of a family, oldest first, whatever became of them; of one version or status where it is
    given."""
    query = "" if version is None else f" and tags.graceful_to = '{int(version)}'"
    query += "" if status is None else f" and attributes.status = {quoted(status)}"
    return sorted(_search(registry, model, query), key=order)


def _search(registry: Registry, model: str, query: str, *, limit: int = 0, order: str = "ASC") -> Iterator[Event]:
    others = " and ".join(
        f"tags.{schema.TAG_KIND} != '{kind}'" for kind in ("refresh", schema.KIND_PAGE, schema.KIND_BASE)
    )
    token = None
    experiment = registry.known_experiment(model)
    while experiment is not None:
        page = registry.client.search_runs(
            [experiment],
            others + query,
            max_results=limit or PAGE,
            order_by=[f"attributes.start_time {order}"],
            page_token=token,
        )
        yield from (_event(model, run) for run in page if run.data.tags.get(schema.TAG_KIND) in KINDS)
        token = page.token
        if not token or limit:
            return


def _event(model: str, run: Any) -> Event:
    tags, altered = run.data.tags, list[str]()
    version = _number(tags, "graceful_to", altered)
    before = None if tags.get("graceful_from") == "None" else _number(tags, "graceful_from", altered)
    return Event(
        kind=tags[schema.TAG_KIND],
        model=model,
        version=version or 0,
        before=before,
        node=tags.get("graceful_node", ""),
        name=tags.get("graceful_name", ""),
        reason=tags.get("graceful_reason", ""),
        actor=tags.get("graceful_actor", ""),
        waived=tags.get("graceful_waived") == "true",
        forced=tags.get("graceful_forced") == "true",
        run_id=run.info.run_id,
        time=run.info.start_time,
        status=run.info.status,
        altered=tuple(altered),
    )


def _number(tags: Mapping[str, str], key: str, altered: list[str]) -> int | None:
    """Return the version number in a tag; None where it was edited, and then its description is added to `altered`."""
    text = tags.get(key)
    if text is not None and schema.VERSION_NUMBER.fullmatch(text):
        return int(text)
    altered.append(f"tag {key} is missing" if text is None else f"tag {key} says {text[:40]!r}, which is not a number")
    return None


# --- what follows from them -------------------------------------------------------------------------------------------


def order(event: Event) -> tuple[int, str]:
    """Return by what events are sorted, oldest first."""
    return event.time, event.run_id


def carried_out(event: Event, history: Iterable[Event], champion: int | None) -> bool:
    """Return whether an open event's move was made, as far as later moves and the champion of now tell.

    Where another move came later, its `before` is the champion that it found; the champion of now is then no evidence,
    since a writer that was stopped may have moved the alias after that.
    """
    moves = [item for item in history if item.status == DONE and item.kind in MOVES and order(item) > order(event)]
    first = min(moves, key=order, default=None)
    return event.kind in MOVES and event.version == (champion if first is None else first.before)


def replay(events: Iterable[Event]) -> tuple[int | None, int | None]:
    """Return champion and previous after these events, oldest first; unfinished and unreadable events do not count.

    A rollback takes back every promotion since its version was champion, so `previous` is then what was champion before
    that: the version that was rolled away from is not a target of the next rollback.
    """
    stack: list[int | None] = []
    for event in events:
        if event.status != DONE or not event.version:
            continue
        if event.kind == "promotion":
            stack.append(event.version)
        elif event.kind in MOVES:
            while stack and stack[-1] != event.version and event.version in stack:
                stack.pop()
            stack.append(event.version)
        elif event.kind == "retirement":
            emptied = bool(stack) and stack[-1] == event.version
            stack = [version for version in stack if version != event.version] + ([None] if emptied else [])
    champion = stack[-1] if stack else None
    below = (version for version in reversed(stack) if version is not None and version != champion)
    return champion, next(below, None)


def standing(verdict: str, events: Iterable[Event]) -> Standing:
    """Return whether a version is passed, held, waived or retired, from its verdict and its events, oldest first."""
    status: Standing = "passed" if verdict == "passed" else "held"
    for event in events:
        if event.status != DONE or status == "retired":
            continue
        if event.kind == "retirement":
            status = "retired"
        elif event.kind == "hold":
            status = "held"
        elif event.kind == "release":
            status = "passed" if verdict == "passed" else "held"
        elif event.waived:
            status = "waived"
    return status


def renumbered(events: Sequence[Event], numbers: Mapping[str, int]) -> list[Event]:
    """Return the same events with the numbers that their versions have now: a version listed again has another one."""
    return [replace(event, version=numbers.get(event.node, event.version)) for event in events]
