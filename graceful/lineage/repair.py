"""`graceful lineage repair`: what derives from `lineage.json` and from events is compared with them and mended. Client.

    truth      lineage.json of each version; events, closed or open; the digest tag that seals a record
    derived    numbers in the registry, tags, metrics, descriptions, aliases, states of runs

Each pass describes what is wrong as a list of `Mend`; mending is a second step, so that `--dry-run` is the first alone.
What was altered is reported and left: which of two is right cannot be told from here.
"""

from __future__ import annotations

import re
import socket
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from graceful.errors import GracefulError, IntegrityError, RegistryError, SpecError
from graceful.lineage import events, lease, registration, render, schema, tables, tracking
from graceful.lineage.events import Event
from graceful.lineage.records import each
from graceful.lineage.registry import Registry, quoted
from graceful.lineage.schema import LineageRecord

PASSES = 3
"""A version that is listed anew needs tags and aliases afterwards."""


@dataclass(frozen=True, kw_only=True)
class Mend:
    """One thing that was not as it should be.

    Attributes:
        where: What it is about, e.g. `glyphs version 3`.
        what: What was found, and what it becomes; `altered: ...` where it was left as it is.
        mended: Whether it is as it should be now; False in a dry run.
    """

    where: str
    what: str
    mended: bool = False
    apply: Callable[[], object] | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, kw_only=True)
class _Found:
    """What the registry holds of one family."""

    registry: Registry
    model: str
    nodes: Mapping[str, Any]
    records: Mapping[str, LineageRecord]
    listed: Mapping[str, Sequence[Any]]
    history: Sequence[Event]
    places: Mapping[str, tuple[str, int]]
    broken: Sequence[Mend]

    @property
    def numbers(self) -> dict[str, int]:
        return {model_id: int(items[0].version) for model_id, items in self.listed.items() if items}


def repair(registry: Registry, model: str, *, dry_run: bool, older_than_hours: float) -> list[Mend]:
    """Do what `Store.repair` promises."""
    if registry.known_experiment(model) is None:
        raise SpecError(f"model {model}: registry {registry.place.display} knows no such model; check the name")
    with lease.writer(registry, model) as hold:
        done: list[Mend] = []
        for _ in range(1 if dry_run else PASSES):
            mends = list(_wrong(_look(registry, model), older_than_hours))
            fresh = [item for item in mends if item.apply is not None]
            if dry_run or not fresh:
                return [*done, *(item for item in mends if dry_run or item.apply is None)]
            for item in fresh:
                assert item.apply is not None
                hold.extend()
                item.apply()
                done.append(Mend(where=item.where, what=item.what, mended=True))
        return [*done, *_wrong(_look(registry, model), older_than_hours)]


def _look(registry: Registry, model: str) -> _Found:
    nodes = {node.model_id: node for node in _all_nodes(registry, model)}
    records, broken = {}, []
    for node, record in zip(nodes.values(), each(registry, partial(_recorded, registry), nodes.values()), strict=True):
        if isinstance(record, LineageRecord):
            records[node.model_id] = record
        elif record is not None:
            broken.append(Mend(where=node.name, what=f"altered: {record.message}"))
    listed: dict[str, list[Any]] = defaultdict(list)
    found = registry.client.search_model_versions(f"name = {quoted(model)}")
    for item in sorted(found, key=lambda item: int(item.version)):
        listed[str(item.source).removeprefix("models:/")].append(item)
    numbers = {model_id: (model, int(items[0].version)) for model_id, items in listed.items()}
    measured = {edge.model_id for record in records.values() for edge in record.edges}
    measured |= {parent.model_id for record in records.values() for parent in record.parents}
    return _Found(
        registry=registry,
        model=model,
        nodes=nodes,
        records=records,
        listed=listed,
        history=events.read(registry, model),
        places={**registry.places([], sorted(measured - {*numbers})), **numbers},
        broken=broken,
    )


def _recorded(registry: Registry, node: Any) -> LineageRecord | GracefulError | None:
    try:
        return registry.recorded(node, sealed=schema.TAG_RECORD in node.tags)
    except (IntegrityError, RegistryError) as e:
        return e


def _all_nodes(registry: Registry, model: str) -> Iterator[Any]:
    token = None
    while True:
        page = registry.client.search_logged_models([registry.experiment(model)], page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _wrong(found: _Found, older_than_hours: float) -> Iterator[Mend]:
    yield from found.broken
    for record in sorted(found.records.values(), key=lambda record: (record.created, record.refresh_id)):
        yield from _node(found, record)
        yield from _listing(found, record)
    yield from _twins(found)
    yield from _altered_events(found)
    yield from _open_events(found)
    yield from _aliases(found)
    yield from _runs(found, older_than_hours)
    yield from _locks(found)


# --- one version ------------------------------------------------------------------------------------------------------


def _node(found: _Found, record: LineageRecord) -> Iterator[Mend]:
    node, client = found.nodes[record.model_id], found.registry.client
    wanted = registration.record_tags(record, found.places)
    if schema.TAG_RECORD in node.tags:
        del wanted[schema.TAG_RECORD]  # it was compared with the file, whose bytes an older graceful may have written
    wrong = {key: value for key, value in wanted.items() if node.tags.get(key) != value}
    if wrong:
        yield Mend(
            where=record.label,
            what=f"tags {', '.join(sorted(wrong))} rebuilt",
            apply=lambda: client.set_logged_model_tags(record.model_id, wrong),
        )
    told = {metric.key: metric.value for metric in node.metrics or ()}
    missing = [key for key, value in tables.headline(record).items() if told.get(key) != value]
    if missing:
        yield Mend(
            where=record.label,
            what=f"metrics {', '.join(sorted(missing))} rebuilt",
            apply=lambda: tables.write(found.registry, record, record.parents, found.places),
        )


def _listing(found: _Found, record: LineageRecord) -> Iterator[Mend]:
    """The version's number, tags and description."""
    registry, listed = found.registry, found.listed.get(record.model_id, ())
    if len(listed) != 1:
        what = "listed under a number again" if not listed else f"{len(listed)} numbers folded onto the lowest"
        yield Mend(
            where=record.label, what=what, apply=lambda: registration.list_version(registry, record, found.places)
        )
        return
    item = listed[0]
    where, number = f"{record.model} version {item.version}", str(item.version)
    own = [event for event in found.history if event.node == record.model_id or event.version == int(number)]
    wanted = registration.version_tags(record, found.places) | {schema.TAG_GATE: events.standing(record.verdict, own)}
    if any(parent.model_id not in found.places for parent in record.parents):
        del wanted[schema.TAG_PARENTS]  # what a deleted version was called cannot be told any more
    for key, value in wanted.items():
        if item.tags.get(key) != value:
            yield Mend(
                where=where,
                what=f"tag {key} was {item.tags.get(key, 'missing')}, is {value}",
                apply=partial(registry.client.set_model_version_tag, record.model, number, key, value),
            )
    description = render.description(record, found.places)
    if item.description != description:
        yield Mend(
            where=where,
            what="description rebuilt",
            apply=lambda: registry.client.update_model_version(record.model, number, description),
        )


def _twins(found: _Found) -> Iterator[Mend]:
    """Nodes of one refresh: an answer was lost, and the crash came before the second was removed."""
    by_refresh: dict[str, list[Any]] = defaultdict(list)
    for node in found.nodes.values():
        by_refresh[node.tags.get(schema.TAG_REFRESH, node.model_id)].append(node)
    for refresh_id, nodes in by_refresh.items():
        order = sorted(
            nodes, key=lambda node: (node.model_id not in found.records, node.creation_timestamp, node.model_id)
        )
        for node in order[1:]:
            if node.model_id in found.records or node.model_id in found.listed:
                yield Mend(
                    where=refresh_id, what=f"altered: registered twice, as {order[0].model_id} and {node.model_id}"
                )
            else:
                yield Mend(
                    where=refresh_id,
                    what=f"twin {node.model_id} of {order[0].model_id} removed",
                    apply=partial(found.registry.point, found.registry.client.delete_logged_model, node.model_id),
                )


# --- aliases, events, runs --------------------------------------------------------------------------------------------


def _altered_events(found: _Found) -> Iterator[Mend]:
    for event in found.history:
        if event.altered:
            subject = event.name or (f"version {event.version}" if event.version else "a version")
            yield Mend(
                where=f"{event.kind} of {found.model} {subject} (run {event.run_id})",
                what=f"altered: {', '.join(event.altered)}; set the tag to the number of the version",
            )


def _open_events(found: _Found) -> Iterator[Mend]:
    """We hold the lock: who began them is gone."""
    aliases = found.registry.aliases(found.model)
    for event in found.history:
        if event.status != events.OPEN or not event.version:
            continue
        carried_out = events.carried_out(event, found.history, aliases.get(schema.CHAMPION))
        status = events.DONE if carried_out else events.UNDONE
        yield Mend(
            where=f"{event.kind} of {found.model} version {event.version}",
            what="was carried out, and is closed" if carried_out else "was never carried out, and is closed as failed",
            apply=partial(events.close, found.registry, event, status=status),
        )


def _aliases(found: _Found) -> Iterator[Mend]:
    """What the events say; a champion that somebody moved by hand is put back, which is an event too."""
    registry, client = found.registry, found.registry.client
    history = events.renumbered(found.history, found.numbers)
    if any(event.status == events.OPEN and event.version for event in found.history):
        return  # the next pass sees them settled
    if any(event.status == events.DONE and not event.version for event in history):
        return  # whom they made champion cannot be told
    aliases = registry.aliases(found.model)
    champion, previous = events.replay(history)
    known = set(found.numbers.values())
    if champion is not None and champion not in known:
        yield Mend(where=f"{found.model} champion", what=f"altered: version {champion} is not in the registry any more")
        return
    now = aliases.get(schema.CHAMPION)
    if champion is not None and now != champion:
        yield Mend(
            where=f"{found.model} champion",
            what=f"was {'unset' if now is None else f'version {now}'}, is version {champion} as the events say",
            apply=lambda: _put_back(found, champion, now),
        )
    elif champion is None and now is not None and any(event.status == events.DONE for event in found.history):
        yield Mend(
            where=f"{found.model} champion",
            what=f"was version {now}, is unset as the events say",
            apply=lambda: client.delete_registered_model_alias(found.model, schema.CHAMPION),
        )
    old = aliases.get(schema.PREVIOUS)
    if previous is not None and previous in known and old != previous:
        yield Mend(
            where=f"{found.model} previous",
            what=f"was {'unset' if old is None else f'version {old}'}, is version {previous} as the events say",
            apply=lambda: client.set_registered_model_alias(found.model, schema.PREVIOUS, str(previous)),
        )


def _put_back(found: _Found, champion: int, now: int | None) -> None:
    node = next(model_id for model_id, number in found.numbers.items() if number == champion)
    event = events.begin(
        found.registry,
        Event(
            kind="repair",
            model=found.model,
            version=champion,
            before=now,
            node=node,
            name=found.records[node].name if node in found.records else "",
            reason="champion was moved without graceful",
            actor="graceful lineage repair",
        ),
    )
    found.registry.client.set_registered_model_alias(found.model, schema.CHAMPION, str(champion))
    events.close(found.registry, event)


def _runs(found: _Found, older_than_hours: float) -> Iterator[Mend]:
    """Refreshes that are still running although they are over, or although nobody is at work on them."""
    client = found.registry.client
    complete = {record.run_id for record in found.records.values()}
    query = f"tags.{schema.TAG_KIND} = 'refresh' and attributes.status = 'RUNNING'"
    for run in client.search_runs([found.registry.experiment(found.model)], query):
        run_id, name = run.info.run_id, run.data.tags.get(schema.TAG_REFRESH, run.info.run_id)
        if run_id in complete:
            status, what = "FINISHED", "is registered, and closed"
        elif _dead(run, older_than_hours):
            status, what = "FAILED", f"has no owner any more ({run.data.tags.get(schema.TAG_OWNER, 'unknown')})"
        elif _owner(run)[1] is None:
            told = run.data.tags.get(schema.TAG_OWNER)
            tag = "is missing" if told is None else f"says {told[:60]!r}, which is not HOST/PROCESS.START"
            yield Mend(where=f"run of {name}", what=f"altered: tag {schema.TAG_OWNER} {tag}; it is dead after a while")
            continue
        else:
            continue
        yield Mend(
            where=f"run of {name}",
            what=what,
            apply=partial(client.set_terminated, run_id, status=status),
        )


def _owner(run: Any) -> tuple[str, int | None]:
    """Machine and number of the process that works on a run; None: the tag was edited or is missing."""
    host, _, process = run.data.tags.get(schema.TAG_OWNER, "").partition("/")
    number = re.match(r"[0-9]{1,9}(?=\.|$)", process)
    return host, int(number[0]) if number is not None and host else None


def _dead(run: Any, older_than_hours: float) -> bool:
    """A process of this machine that is gone; of others, and of unknown ones, only the age can be told."""
    host, number = _owner(run)
    if host == socket.gethostname() and number is not None:
        return bool(run.data.tags[schema.TAG_OWNER] != tracking.owner(number))
    return bool(time.time() - run.info.start_time / 1000 > older_than_hours * 3600)


def _locks(found: _Found) -> Iterator[Mend]:
    for name in lease.leftovers(found.registry, found.model):
        yield Mend(
            where=name,
            what="entry of a writer that died, removed",
            apply=partial(found.registry.point, found.registry.client.delete_registered_model, name),
        )
