"""The page of a registered model: picture of the family, newest versions, what descends from them. Driver and client.

A view of the registry: it is written again after every registration and promotion from the registry's state then, and
never read by graceful. Call `refresh` within `Registry.client_for`, after the writer's lock was given back or under it.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from graceful.lineage import records, schema
from graceful.lineage.drawing import family_svg
from graceful.lineage.family import Cost, Family, Key, Member, ordered
from graceful.lineage.fleet import named
from graceful.lineage.registry import Registry, quoted
from graceful.lineage.render import DESCRIPTION_LIMIT, GAP, escape_markdown, version_link

NEWEST = 25
"""Versions that the page lists."""
DRAWN = 12
"""Versions that its picture shows."""
PICTURE = "lineage/family.svg"
KIND = schema.KIND_PAGE
"""Tag of the run that holds the picture."""
TRIES = 3
"""Two writers at once: the one that wrote old news looks again."""


def refresh(registry: Registry, model: str, *, force: bool = False) -> None:
    """Write description and picture of a registered model again, unless they say so already; an unknown one is left.

    Args:
        registry: Where.
        model: Model family.
        force: Also where the description is right: its picture may be lost.

    Raises:
        mlflow's own errors, which `Registry.client_for` turns into one RegistryError line.
    """
    listing = _listing(registry, model, NEWEST)
    run = _overview_run(registry, model) if listing.known else ""
    for attempt in range(TRIES if listing.known else 0):
        family = _family(registry, listing)
        svg = family_svg(shortened(family, DRAWN))
        text = markdown(family, run, svg)
        if text == listing.page and not force and attempt == 0:  # later another writer's picture may lie below it
            return
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / PICTURE.rpartition("/")[2]
            path.write_text(svg, encoding="utf-8")
            registry.client.log_artifact(run, str(path), PICTURE.rpartition("/")[0])
        registry.client.update_registered_model(model, text)
        rendered, listing = listing, _listing(registry, model, NEWEST)
        if listing == rendered:
            return


def read(registry: Registry, model: str, *, most: int = NEWEST) -> Family:
    """Return the newest versions of a model, those with an alias, and their relatives in other models.

    Costs a few questions and one for each relative, however many versions there are. Relatives are shown without their
    aliases: this model's page is not written again when those move.
    """
    return _family(registry, _listing(registry, model, most))


def shortened(family: Family, most: int) -> Family:
    """Return the family with its newest `most` members and the champion."""
    members = tuple(
        member for index, member in enumerate(family.members) if index < most or "champion" in member.aliases
    )
    return Family(model=family.model, members=members, older=family.older or len(members) < len(family.members))


def parents(tags: Mapping[str, str]) -> list[Key]:
    """Return the direct predecessors that a version's tag names, and the gallery models that it searches."""
    return [*named(tags, schema.TAG_PARENTS)]


def markdown(family: Family, run: str, svg: str) -> str:
    """Return the description of the registered model, at most `DESCRIPTION_LIMIT` characters."""
    digest = hashlib.sha256(svg.encode()).hexdigest()[:8]  # a new address, or a browser shows the old picture
    members = [member for member in family.members if member.key.model == family.model]
    champion = next((member for member in members if "champion" in member.aliases), None)
    serving = f"champion is {_link(champion, family)}" if champion else "there is no champion yet"
    counted = f"the newest {len(members)} versions" if family.older else _count(len(members), "version")
    head = [
        f"{family.model}: {serving}, {counted}",
        "",
        f"![lineage of {escape_markdown(family.model)}](get-artifact?run_uuid={run}&path={PICTURE}&picture={digest})",
        "",
        "| version | verdict | from | to |",
        "|---|---|---|---|",
    ]
    rows = [_row(member, family) for member in members]
    room = DESCRIPTION_LIMIT - len("\n".join(head)) - 80
    table: list[str] = []
    for row in rows:
        room -= len(row) + 1
        if room < 0:
            break
        table.append(row)
    omitted = len(rows) - len(table)
    more = ["", "Older ones are in the table of versions below."] if omitted or family.older else []
    return "\n".join([*head, *table, *more])


def _row(member: Member, family: Family) -> str:
    aliases = "".join(f" **{escape_markdown(alias)}**" for alias in member.aliases)
    names = {relative.key: relative for relative in family.members}
    before = ", ".join(
        f"{_relative_cell(names.get(key), key, family)}, {cost.words()}" for key, cost in member.parents.items()
    )
    after = ", ".join(_relative_cell(child, child.key, family) for child in family.children(member.key))
    cells = (f"{_link(member, family)}{aliases}", member.verdict or "-", before or "-", after or "-")
    return f"| {f'{GAP} | '.join(cells)} |"


def _link(member: Member, family: Family) -> str:
    return f"[{escape_markdown(member.label(family.model))}]({version_link(*member.key)})"


def _relative_cell(member: Member | None, key: Key, family: Family) -> str:
    """Return the name of a relative; it is a link only where the relative has no row, since links are long."""
    if member is None:
        return f"[{escape_markdown(key.model)} {key.version}]({version_link(*key)})"
    return escape_markdown(member.name) if key.model == family.model else _link(member, family)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


# --- reading ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Listing:
    """What a page is made of, in three questions; equal listings give equal pages.

    Attributes:
        model: Model family.
        known: Whether it is registered.
        page: The present text of the page; it names its picture's content.
        aliases: Alias -> number.
        items: The newest versions, and newest children in other models.
        older: Whether there are older ones.
        digest: Identities and tags of the items.
    """

    model: str
    known: bool
    page: str = field(compare=False)
    aliases: Mapping[str, int]
    items: Mapping[Key, Any] = field(compare=False)
    older: bool
    digest: tuple[tuple[Key, str, tuple[tuple[str, str], ...]], ...]


def _listing(registry: Registry, model: str, most: int) -> _Listing:
    client = registry.client
    registered = registry.point(client.get_registered_model, model)
    newest = client.search_model_versions(
        f"name = {quoted(model)}", max_results=most + 1, order_by=["version_number DESC"]
    )
    query = f"tags.{schema.TAG_PARENTS} LIKE {quoted(f'%/{model}@%')} and name != {quoted(model)}"
    children = client.search_model_versions(query, max_results=most, order_by=["creation_timestamp DESC"])
    items = {Key(item.name, int(item.version)): item for item in (*newest[:most], *children)}
    digest = tuple((key, str(item.source), tuple(sorted(item.tags.items()))) for key, item in items.items())
    return _Listing(
        model=model,
        known=registered is not None,
        page="" if registered is None else str(registered.description or ""),
        aliases={} if registered is None else {name: int(number) for name, number in registered.aliases.items()},
        items=items,
        older=len(newest) > most,
        digest=digest,
    )


def _family(registry: Registry, listing: _Listing) -> Family:
    """Return the listed versions, those with an alias and parents of other models, with costs of edges from nodes."""
    model, listed = listing.model, dict(listing.items)
    wanted = {Key(model, number) for number in listing.aliases.values()}
    wanted |= {key for item in listed.values() for key in parents(item.tags) if key.model != model}
    listed |= _versions(registry, wanted - {*listed})
    unlisted_parents = {key for item in listed.values() for key in parents(item.tags)} - {*listed}
    known = listed | _versions(registry, unlisted_parents)
    nodes = records.nodes(registry, model, [str(item.source).removeprefix("models:/") for item in listed.values()])
    members = [
        _member(item, nodes, listing.aliases if key.model == model else {}, known) for key, item in listed.items()
    ]
    return Family(model=model, members=ordered(members), older=listing.older)


def _versions(registry: Registry, keys: Collection[Key]) -> dict[Key, Any]:
    versions = {
        key: registry.point(registry.client.get_model_version, key.model, str(key.version)) for key in sorted(keys)
    }
    return {key: version for key, version in versions.items() if version is not None}


def _member(item: Any, nodes: Mapping[str, Any], aliases: Mapping[str, int], versions: Mapping[Key, Any]) -> Member:
    key = Key(str(item.name), int(item.version))
    model_id = str(item.source).removeprefix("models:/")
    node = nodes.get(model_id)
    metrics = {} if node is None else {metric.key: metric.value for metric in node.metrics or ()}
    tags = {} if node is None else node.tags
    searched = named(item.tags, schema.TAG_GALLERIES)
    return Member(
        key=key,
        name=_name(item),
        model_id=model_id if re.match(schema.NODE_ID, model_id) else "",
        run_id=str(item.run_id or ""),
        verdict=item.tags.get(schema.TAG_GATE, ""),
        aliases=tuple(sorted(alias for alias, number in aliases.items() if number == key.version)),
        parents={
            parent: _cost(versions[parent], metrics, tags, searches=parent in searched)
            for parent in parents(item.tags)
            if parent in versions
        },
        first=not parents(item.tags),
        accuracy=metrics.get("accuracy"),
        created=int(item.creation_timestamp),
    )


def _name(item: Any) -> str:
    return str(item.tags.get(schema.TAG_REFRESH, "")).removeprefix(f"{item.name}-") or f"version {item.version}"


def _cost(parent: Any, metrics: Mapping[str, float], tags: Mapping[str, str], *, searches: bool) -> Cost:
    """Return the numbers of one edge, as `tables.headline` wrote them under the parent's name."""
    name = _name(parent)
    node = str(parent.source).removeprefix("models:/")
    if searches:
        label = f"{parent.name}-{name}"
        return Cost(
            nfr=None,
            budget=None,
            verdict=tags.get(schema.parent_tag(node), "unjudged"),
            found=metrics.get(f"pair_map_pct/{label}"),
            share=metrics.get(f"pair_share_map_pct/{label}"),
            searches=True,
        )
    return Cost(
        nfr=metrics.get(f"nfr_pct/{name}"),
        budget=metrics.get(f"nfr_budget_pct/{name}"),
        verdict=tags.get(schema.parent_tag(node), "unjudged"),
    )


def _overview_run(registry: Registry, model: str) -> str:
    """Return the run that holds the picture; create it if it is missing and delete duplicates of a repeated request."""
    client, experiment = registry.client, registry.experiment(model)
    runs = _overview_runs(registry, experiment)
    if not runs:
        run = client.create_run(experiment, run_name=f"{model}-lineage", tags={schema.TAG_KIND: KIND})
        client.set_terminated(run.info.run_id, status="FINISHED")
        runs = _overview_runs(registry, experiment)
    first, *repeated = runs
    for run in repeated:
        client.delete_run(run.info.run_id)
    return str(first.info.run_id)


def _overview_runs(registry: Registry, experiment: str) -> list[Any]:
    runs = registry.client.search_runs([experiment], f"tags.{schema.TAG_KIND} = '{KIND}'")
    return sorted(runs, key=lambda run: (run.info.start_time, run.info.run_id))
