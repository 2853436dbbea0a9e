"""Which versions a run descends from: the champion's chain, and those of further parents. Runs in the driver.

Read from the registry until a run begins to train, then kept in its folder: a resumed run has the same predecessors.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

from graceful.chain.ancestor import Ancestor, Link
from graceful.errors import IntegrityError, SpecError
from graceful.lineage import LineageRecord, Listed, Store, reference
from graceful.lineage.family import Key
from graceful.lineage.fleet import FleetModel
from graceful.lineage.reference import Reference
from graceful.lineage.schema import CHAMPION
from graceful.models import bundle_files
from graceful.programs.runs.run import Run
from graceful.spec import RefreshSpec
from graceful.storage import write_text

FILE = "chain.json"


def read(store: Store, spec: RefreshSpec, run_dir: Path, *, begun: bool = True, keep: bool = True) -> list[Link]:
    """Return the ancestors of this run, latest first: as recorded, else the champion, further parents and their
    ancestors now.

    Args:
        store: The registry.
        spec: The spec of the run.
        run_dir: Its folder.
        begun: Whether something in the folder was made with the recorded ancestors; else the registry is asked again.
        keep: Whether to record the registry's answer; not for commands that only show it.

    Raises:
        SpecError: The name of the version, or one name twice among the ancestors; or there is no such parent.
        RegistryError: Unreachable.
        IntegrityError: The record was altered.
    """
    path = run_dir / FILE
    if begun and path.exists():
        with written_here(path):
            return [Link(**raw) for raw in json.loads(path.read_text(encoding="utf-8"))]
    chains = [store.chain(spec.model), *(_chain(store, parent) for parent in spec.parents)]
    records = _merged(chains)
    retired = {model_id for model in {record.model for record in records} for model_id in store.retired(model)}
    roles = {chain[0].model_id: "parent" for chain in chains[1:]} | {
        newest.model_id: "champion" for newest in chains[0][:1]
    }
    links = [
        _link(record, roles.get(record.model_id, "ancestor")) for record in records if record.model_id not in retired
    ]
    _require_distinct(spec, records)
    links += _fleet_links(store, spec)
    if keep:
        write_text(path, json.dumps([asdict(link) for link in links], indent=2) + "\n")
    return links


def _link(record: LineageRecord, role: str) -> Link:
    return Link(
        name=record.name,
        model_id=record.model_id,
        version=record.version,
        digest=record.digest,
        role=role,  # type: ignore[arg-type]
    )


def of_version(store: Store, spec: RefreshSpec, record: LineageRecord) -> list[Link]:
    """Return the live ancestors of a registered version, latest first, and the fleet that it must work with."""
    records = store.trace(record.model, record.model_id)[1:]
    retired = {model_id for model in {item.model for item in records} for model_id in store.retired(model)}
    return [*(_link(item, "ancestor") for item in records if item.model_id not in retired), *_fleet_links(store, spec)]


def _fleet_links(store: Store, spec: RefreshSpec) -> list[Link]:
    """Return what the version must work with without descending from it: galleries, query models and the baseline.

    A query model is measured on the gallery that it names, first, and on every other that live query models search; a
    gallery model with every live query model of its family.
    """
    models: list[tuple[FleetModel, Literal["gallery", "query", "baseline"]]] = []
    if spec.gallery is None:
        models += [(model, "query") for model in store.fleet(spec.model).queries]
    else:
        named = _named(store, spec.gallery.version)
        others = store.fleet(named.key.model).galleries
        models += [(model, "gallery") for model in (named, *others) if model is named or model.key != named.key]
        models += [(_named(store, spec.gallery.baseline), "baseline")] if spec.gallery.baseline else []
    digests = {model.model_id: store.record(model.model_id).digest for model, _ in models}
    return [
        Link(
            name=model.label,
            model_id=model.model_id,
            version=model.key.version,
            digest=digests[model.model_id],
            role=role,
        )
        for model, role in models
        if model.key.model != spec.model
    ]


def _named(store: Store, version: str) -> FleetModel:
    """Return the version that a spec names as gallery or baseline."""
    listed, model = find(store, version), Reference.parse(version).model
    if listed.gate == "retired":
        raise SpecError(f"gallery: {version} is retired, so no index of it is left; name a version that is live")
    return FleetModel(key=Key(model, listed.version), name=listed.name, model_id=listed.model_id)


def fetch(run: Run, links: Sequence[Link]) -> list[Ancestor]:
    """Bring the chain's bundles here, every digest checked; weights that the registry has no more are missing."""
    folders = {
        link.name: run.store.fetch(run.store.record(link.model_id), removable=bundle_files.REMOVABLE) for link in links
    }
    return [Ancestor(stored=run.version(folders[link.name], link), link=link) for link in links]


def find(store: Store, version: str) -> Listed:
    """Return the registered version that is meant: MODEL:NUMBER, MODEL:NAME, MODEL@ALIAS; a bare MODEL is its champion.

    Raises:
        SpecError: There is none, or graceful did not register it.
    """
    parsed = Reference.parse(version)
    if parsed.bare:
        parsed = replace(parsed, alias=CHAMPION)
    listed = reference.find(parsed, store.versions(parsed.model))
    if not listed.model_id:
        raise SpecError(f"{version}: version {listed.version} was not registered by graceful; name one that was")
    return listed


def _chain(store: Store, version: str) -> list[LineageRecord]:
    return store.trace(Reference.parse(version).model, find(store, version).model_id)


def parents(links: Sequence[Link]) -> tuple[str, ...]:
    """Return the identities of the direct predecessors, the champion first."""
    roles = ("champion", "parent")
    ancestors = [link for link in links if link.is_ancestor]
    direct = sorted((link for link in ancestors if link.role in roles), key=lambda link: roles.index(link.role))
    return tuple(link.model_id for link in direct or ancestors[:1])


def champion(links: Sequence[Link]) -> int | None:
    """Return the number of the version that served when the run started; None: none did."""
    return next((link.version for link in links if link.role in ("champion", "")), None)


@contextmanager
def written_here(path: Path) -> Iterator[None]:
    """Say in one line that a file of the run's folder is not what a refresh wrote."""
    try:
        yield
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise IntegrityError(
            f"{path}: not what a refresh wrote ({type(e).__name__}: {e}); delete {path.parent} to refresh again"
        ) from e


def _merged(chains: Sequence[Sequence[LineageRecord]]) -> list[LineageRecord]:
    """Return each version once and before its parents: every chain holds all ancestors of what it holds, so the last
    place is
    behind all descendants."""
    places = {record.model_id: record for chain in chains for record in chain}
    order = [record.model_id for chain in chains for record in chain]
    last = {model_id: index for index, model_id in enumerate(order)}
    return [places[model_id] for model_id in sorted(places, key=lambda model_id: last[model_id])]


def _require_distinct(spec: RefreshSpec, records: Sequence[LineageRecord]) -> None:
    """Refuse two ancestors of one name, because constraints, metrics and tables refer to ancestors by name."""
    names: dict[str, str] = {}
    for record in records:
        if record.name == spec.name:
            raise SpecError(f"name: {spec.name} is already an ancestor in model {record.model}; choose another name")
        if record.name in names:
            raise SpecError(
                f"parents: {names[record.name]} and {record.model} both have an ancestor called {record.name}, and"
                " ancestors are distinguished by name; give versions of a branch names of their own, e.g."
                f" edge-{record.name}"
            )
        names[record.name] = record.model
