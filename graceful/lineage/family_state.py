"""All that a registry holds of one family, read once: what `graceful lineage repair` compares. Client."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from graceful.errors import GracefulError, IntegrityError, RegistryError
from graceful.lineage import events, schema
from graceful.lineage.events import Event
from graceful.lineage.records import map_items
from graceful.lineage.registry import Registry, quoted
from graceful.lineage.schema import LineageRecord


@dataclass(frozen=True, kw_only=True)
class Repair:
    """One difference from the records, and how to repair it.

    Attributes:
        where: What it is about, e.g. `glyphs version 3`.
        what: The difference and what becomes of it; `altered: ...` where it was left as it is.
        repaired: Whether it was repaired; False in a dry run.
    """

    where: str
    what: str
    repaired: bool = False
    apply: Callable[[], object] | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, kw_only=True)
class FamilyState:
    """Nodes, records, listings and events of one family.

    Attributes:
        registry: Where they were read.
        model: Model family.
        nodes: MLflow's logged models, by the identity of the version.
        records: What was recorded of each version; altered records and those never written are left out.
        listed: MLflow's model versions of each identity, the lowest number first.
        history: Events of the family, oldest first.
        listings: Identity -> model and number, also of versions of other families that were measured against.
        broken: Altered records.
    """

    registry: Registry
    model: str
    nodes: Mapping[str, Any]
    records: Mapping[str, LineageRecord]
    listed: Mapping[str, Sequence[Any]]
    history: Sequence[Event]
    listings: Mapping[str, tuple[str, int]]
    broken: Sequence[Repair]

    @property
    def numbers(self) -> dict[str, int]:
        """Return the number of each listed version, by its identity."""
        return {model_id: int(items[0].version) for model_id, items in self.listed.items() if items}


def family_state(registry: Registry, model: str) -> FamilyState:
    """Read a family.

    Raises:
        RegistryError: Unreachable.
    """
    nodes = {node.model_id: node for node in _all_nodes(registry, model)}
    records, broken = {}, []
    for node, record in zip(
        nodes.values(), map_items(registry, partial(_recorded, registry), nodes.values()), strict=True
    ):
        if isinstance(record, LineageRecord):
            records[node.model_id] = record
        elif record is not None:
            broken.append(Repair(where=node.name, what=f"altered: {record.message}"))
    listed: dict[str, list[Any]] = defaultdict(list)
    versions = registry.client.search_model_versions(f"name = {quoted(model)}")
    for item in sorted(versions, key=lambda item: int(item.version)):
        listed[str(item.source).removeprefix("models:/")].append(item)
    numbers = {model_id: (model, int(items[0].version)) for model_id, items in listed.items()}
    measured = {edge.model_id for record in records.values() for edge in record.edges}
    measured |= {parent.model_id for record in records.values() for parent in record.parents}
    return FamilyState(
        registry=registry,
        model=model,
        nodes=nodes,
        records=records,
        listed=listed,
        history=events.read(registry, model),
        listings={**registry.listings([], sorted(measured - {*numbers})), **numbers},
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
