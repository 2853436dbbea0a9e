"""`graceful lineage repair`: compare what derives from `lineage.json` and events with them, and repair it. Client.

    truth      lineage.json of each version; events, closed or open; the digest tag that seals a record
    derived    numbers in the registry, tags, metrics, descriptions, aliases, states of runs

Each pass returns what is wrong as a list of `Repair`; applying them is a second step, which `--dry-run` leaves out.
Altered records are reported and left as they are, because nothing here says which of two values is right.
"""

from __future__ import annotations

import re
import socket
import time
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from typing import Any

from graceful.errors import SpecError
from graceful.lineage import events, lease, registration, render, schema, tables, tracking
from graceful.lineage.events import Event
from graceful.lineage.family_state import FamilyState, Repair, family_state
from graceful.lineage.registry import Registry
from graceful.lineage.schema import LineageRecord

PASSES = 3
"""A version that is listed again needs tags and aliases afterwards."""


def repair(registry: Registry, model: str, *, dry_run: bool, older_than_hours: float) -> list[Repair]:
    """Do what `Store.repair` promises."""
    if registry.known_experiment(model) is None:
        raise SpecError(f"model {model}: registry {registry.address.display} has no such model; check the name")
    with lease.writer(registry, model) as hold:
        done: list[Repair] = []
        for _ in range(1 if dry_run else PASSES):
            repairs = list(_repairs(family_state(registry, model), older_than_hours))
            applicable = [item for item in repairs if item.apply is not None]
            if dry_run or not applicable:
                return [*done, *(item for item in repairs if dry_run or item.apply is None)]
            for item in applicable:
                assert item.apply is not None
                hold.extend()
                item.apply()
                done.append(Repair(where=item.where, what=item.what, repaired=True))
        return [*done, *_repairs(family_state(registry, model), older_than_hours)]


def _repairs(family: FamilyState, older_than_hours: float) -> Iterator[Repair]:
    yield from family.broken
    for record in sorted(family.records.values(), key=lambda record: (record.created, record.refresh_id)):
        yield from _node_repairs(family, record)
        yield from _listing_repairs(family, record)
    yield from _duplicate_repairs(family)
    yield from _altered_event_repairs(family)
    yield from _open_event_repairs(family)
    yield from _alias_repairs(family)
    yield from _run_repairs(family, older_than_hours)
    yield from _lock_repairs(family)


# --- one version ------------------------------------------------------------------------------------------------------


def _node_repairs(family: FamilyState, record: LineageRecord) -> Iterator[Repair]:
    node, client = family.nodes[record.model_id], family.registry.client
    wanted = registration.record_tags(record, family.listings)
    if schema.TAG_RECORD in node.tags:
        del wanted[schema.TAG_RECORD]  # it was compared with the file, whose bytes an older graceful may have written
    wrong = {key: value for key, value in wanted.items() if node.tags.get(key) != value}
    if wrong:
        yield Repair(
            where=record.label,
            what=f"tags {', '.join(sorted(wrong))} rebuilt",
            apply=lambda: client.set_logged_model_tags(record.model_id, wrong),
        )
    logged = {metric.key: metric.value for metric in node.metrics or ()}
    missing = [key for key, value in tables.headline(record).items() if logged.get(key) != value]
    if missing:
        yield Repair(
            where=record.label,
            what=f"metrics {', '.join(sorted(missing))} rebuilt",
            apply=lambda: tables.write(family.registry, record, record.parents, family.listings),
        )


def _listing_repairs(family: FamilyState, record: LineageRecord) -> Iterator[Repair]:
    """Yield repairs of a version's number, tags and description."""
    registry, listed = family.registry, family.listed.get(record.model_id, ())
    if len(listed) != 1:
        what = "listed under a number again" if not listed else f"{len(listed)} numbers folded onto the lowest"
        yield Repair(
            where=record.label, what=what, apply=lambda: registration.list_version(registry, record, family.listings)
        )
        return
    item = listed[0]
    where, number = f"{record.model} version {item.version}", str(item.version)
    own = [event for event in family.history if event.node == record.model_id or event.version == int(number)]
    wanted = registration.version_tags(record, family.listings) | {
        schema.TAG_GATE: events.standing(record.verdict, own)
    }
    if any(parent.model_id not in family.listings for parent in record.parents):
        del wanted[schema.TAG_PARENTS]  # what a deleted version was called is not recorded anywhere else
    for key, value in wanted.items():
        if item.tags.get(key) != value:
            yield Repair(
                where=where,
                what=f"tag {key} was {item.tags.get(key, 'missing')}, is {value}",
                apply=partial(registry.client.set_model_version_tag, record.model, number, key, value),
            )
    description = render.description(record, family.listings)
    if item.description != description:
        yield Repair(
            where=where,
            what="description rebuilt",
            apply=lambda: registry.client.update_model_version(record.model, number, description),
        )


def _duplicate_repairs(family: FamilyState) -> Iterator[Repair]:
    """Yield repairs of duplicate nodes, which a repeated request followed by a crash leaves."""
    by_refresh: dict[str, list[Any]] = defaultdict(list)
    for node in family.nodes.values():
        by_refresh[node.tags.get(schema.TAG_REFRESH, node.model_id)].append(node)
    for refresh_id, nodes in by_refresh.items():
        order = sorted(
            nodes, key=lambda node: (node.model_id not in family.records, node.creation_timestamp, node.model_id)
        )
        for node in order[1:]:
            if node.model_id in family.records or node.model_id in family.listed:
                yield Repair(
                    where=refresh_id, what=f"altered: registered twice, as {order[0].model_id} and {node.model_id}"
                )
            else:
                yield Repair(
                    where=refresh_id,
                    what=f"duplicate {node.model_id} of {order[0].model_id} removed",
                    apply=partial(family.registry.point, family.registry.client.delete_logged_model, node.model_id),
                )


# --- aliases, events, runs --------------------------------------------------------------------------------------------


def _altered_event_repairs(family: FamilyState) -> Iterator[Repair]:
    for event in family.history:
        if event.altered:
            subject = event.name or (f"version {event.version}" if event.version else "a version")
            yield Repair(
                where=f"{event.kind} of {family.model} {subject} (run {event.run_id})",
                what=f"altered: {', '.join(event.altered)}; set the tag to the number of the version",
            )


def _open_event_repairs(family: FamilyState) -> Iterator[Repair]:
    """Yield repairs that close open events; their writers have ended, because this process holds the lock."""
    aliases = family.registry.aliases(family.model)
    for event in family.history:
        if event.status != events.OPEN or not event.version:
            continue
        carried_out = events.carried_out(event, family.history, aliases.get(schema.CHAMPION))
        status = events.DONE if carried_out else events.UNDONE
        yield Repair(
            where=f"{event.kind} of {family.model} version {event.version}",
            what="was carried out, and is closed" if carried_out else "was never carried out, and is closed as failed",
            apply=partial(events.close, family.registry, event, status=status),
        )


def _alias_repairs(family: FamilyState) -> Iterator[Repair]:
    """Yield repairs that move aliases to where the events say; moving back a champion is an event too."""
    registry, client = family.registry, family.registry.client
    history = events.renumbered(family.history, family.numbers)
    if any(event.status == events.OPEN and event.version for event in family.history):
        return  # the next pass sees them settled
    if any(event.status == events.DONE and not event.version for event in history):
        return  # the version that they made champion is unknown
    aliases = registry.aliases(family.model)
    champion, previous = events.replay(history)
    known = set(family.numbers.values())
    if champion is not None and champion not in known:
        yield Repair(
            where=f"{family.model} champion", what=f"altered: version {champion} is not in the registry any more"
        )
        return
    current = aliases.get(schema.CHAMPION)
    if champion is not None and current != champion:
        yield Repair(
            where=f"{family.model} champion",
            what=f"was {_version_text(current)}, is version {champion} as the events say",
            apply=lambda: _put_back(family, champion, current),
        )
    elif champion is None and current is not None and any(event.status == events.DONE for event in family.history):
        yield Repair(
            where=f"{family.model} champion",
            what=f"was version {current}, is unset as the events say",
            apply=lambda: client.delete_registered_model_alias(family.model, schema.CHAMPION),
        )
    current_previous = aliases.get(schema.PREVIOUS)
    if previous is not None and previous in known and current_previous != previous:
        yield Repair(
            where=f"{family.model} previous",
            what=f"was {_version_text(current_previous)}, is version {previous} as the events say",
            apply=lambda: client.set_registered_model_alias(family.model, schema.PREVIOUS, str(previous)),
        )


def _version_text(version: int | None) -> str:
    return "unset" if version is None else f"version {version}"


def _put_back(family: FamilyState, champion: int, current: int | None) -> None:
    node = next(model_id for model_id, number in family.numbers.items() if number == champion)
    event = events.begin(
        family.registry,
        Event(
            kind="repair",
            model=family.model,
            version=champion,
            before=current,
            node=node,
            name=family.records[node].name if node in family.records else "",
            reason="champion was moved without graceful",
            actor="graceful lineage repair",
        ),
    )
    family.registry.client.set_registered_model_alias(family.model, schema.CHAMPION, str(champion))
    events.close(family.registry, event)


def _run_repairs(family: FamilyState, older_than_hours: float) -> Iterator[Repair]:
    """Yield repairs of MLflow runs that are still RUNNING although the refresh or its process has ended."""
    client = family.registry.client
    complete = {record.run_id for record in family.records.values()}
    query = f"tags.{schema.TAG_KIND} = 'refresh' and attributes.status = 'RUNNING'"
    for run in client.search_runs([family.registry.experiment(family.model)], query):
        run_id, name = run.info.run_id, run.data.tags.get(schema.TAG_REFRESH, run.info.run_id)
        if run_id in complete:
            status, what = "FINISHED", "is registered, and closed"
        elif _is_dead(run, older_than_hours):
            status, what = "FAILED", f"has no owner any more ({run.data.tags.get(schema.TAG_OWNER, 'unknown')})"
        elif _owner(run)[1] is None:
            owner_tag = run.data.tags.get(schema.TAG_OWNER)
            tag = "is missing" if owner_tag is None else f"says {owner_tag[:60]!r}, which is not HOST/PROCESS.START"
            yield Repair(
                where=f"run of {name}", what=f"altered: tag {schema.TAG_OWNER} {tag}; it is dead after a while"
            )
            continue
        else:
            continue
        yield Repair(
            where=f"run of {name}",
            what=what,
            apply=partial(client.set_terminated, run_id, status=status),
        )


def _owner(run: Any) -> tuple[str, int | None]:
    """Return the machine and process number that work on a run; None: the tag was edited or is missing."""
    host, _, process = run.data.tags.get(schema.TAG_OWNER, "").partition("/")
    number = re.match(r"[0-9]{1,9}(?=\.|$)", process)
    return host, int(number[0]) if number is not None and host else None


def _is_dead(run: Any, older_than_hours: float) -> bool:
    """Return whether the process of a run has ended; on other machines only the age of the run is known."""
    host, number = _owner(run)
    if host == socket.gethostname() and number is not None:
        return bool(run.data.tags[schema.TAG_OWNER] != tracking.owner(number))
    return bool(time.time() - run.info.start_time / 1000 > older_than_hours * 3600)


def _lock_repairs(family: FamilyState) -> Iterator[Repair]:
    for name in lease.leftovers(family.registry, family.model):
        yield Repair(
            where=name,
            what="entry of a writer that died, removed",
            apply=partial(family.registry.point, family.registry.client.delete_registered_model, name),
        )
