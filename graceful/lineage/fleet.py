"""Which query models search which gallery models now: the live pairs of a fleet, read from tags. Driver and client.

A version is live from its registration, if it passed or was waived, until it is retired: devices may run it, and an
index may hold what it embedded. A pair is live if both are, and the younger one was not held against the older one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from graceful.lineage import schema
from graceful.lineage.family import Key
from graceful.lineage.registry import Registry, quoted

LIVE = ("passed", "waived")


@dataclass(frozen=True, kw_only=True)
class FleetModel:
    """One version of a fleet.

    Attributes:
        key: Model and number.
        name: Name of the version.
        model_id: Its identity.
        partners: Of a query model the gallery models, of a gallery model the query models, that it was judged with.
    """

    key: Key
    name: str
    model_id: str
    partners: tuple[Key, ...] = ()

    @property
    def label(self) -> str:
        """Name that tells it from versions of other families: the run id of its refresh."""
        return f"{self.key.model}-{self.name}"


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """The live query models of a gallery family, and the versions of it whose index they search.

    Attributes:
        model: The gallery family.
        queries: By family and number.
        galleries: By number.
        pairs: (query model, gallery model), the live ones.
    """

    model: str
    queries: tuple[FleetModel, ...] = ()
    galleries: tuple[FleetModel, ...] = ()
    pairs: frozenset[tuple[Key, Key]] = field(default=frozenset())

    def losing(self, key: Key) -> list[str]:
        """Return the live pairs that end when a version is retired, in words."""
        names = {model.key: model.label for model in (*self.queries, *self.galleries)}
        return [
            f"{names[query]} on {names[gallery]}" for query, gallery in sorted(self.pairs) if key in (query, gallery)
        ]


def read(registry: Registry, model: str) -> Fleet:
    """Return the fleet of a gallery family; one question where it has no query models."""
    query = f"tags.{schema.TAG_GALLERIES} LIKE {quoted(f'%/{model}@%')} and name != {quoted(model)}"
    queries = _live(registry.client.search_model_versions(query), schema.TAG_GALLERIES, of=model)
    if not queries:
        return Fleet(model=model)
    versions = _live(registry.client.search_model_versions(f"name = {quoted(model)}"), schema.TAG_QUERIES)
    live = {found.key for found in versions}
    pairs = {(found.key, key) for found in queries for key in found.partners if key in live}
    known = {found.key for found in queries}
    pairs |= {(key, found.key) for found in versions for key in found.partners if key in known}
    searched = {gallery for _, gallery in pairs}
    galleries = tuple(found for found in versions if found.key in searched)
    return Fleet(model=model, queries=tuple(queries), galleries=galleries, pairs=frozenset(pairs))


def _live(items: Any, tag: str, *, of: str | None = None) -> list[FleetModel]:
    """Return the live versions, those of a fleet alone where `of` names its gallery family."""
    found = [
        FleetModel(
            key=Key(str(item.name), int(item.version)),
            name=str(item.tags.get(schema.TAG_REFRESH, "")).removeprefix(f"{item.name}-"),
            model_id=str(item.source).removeprefix("models:/"),
            partners=named(item.tags, tag),
        )
        for item in items
        if item.tags.get(schema.TAG_GATE, "") in LIVE
    ]
    kept = (model for model in found if of is None or any(key.model == of for key in model.partners))
    return sorted(kept, key=lambda model: model.key)


def named(tags: Mapping[str, str], tag: str) -> tuple[Key, ...]:
    """Return the versions that a tag such as `/glyphs@3/glyphs@4/` names."""
    matches = re.findall(r"(?<=/)([a-z0-9-]{1,63})@([1-9][0-9]{0,8})(?=/)", tags.get(tag, ""))
    return tuple(Key(model, int(number)) for model, number in matches)
