"""What programs and people read of the registry: chains, records, events, files. Changes nothing in it.

Driver and client.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from graceful.errors import RegistryError
from graceful.files import mark_used
from graceful.lineage import base_copies, events, fleet, graph, pages, records, schema
from graceful.lineage.events import Event
from graceful.lineage.family import Family, Key
from graceful.lineage.fleet import Fleet
from graceful.lineage.listing import Listed, from_mlflow
from graceful.lineage.registry import Registry, damaged_files, quoted
from graceful.lineage.schema import LineageRecord


class Reader:
    """One registry, read only. Building it connects to nothing; the first request does.

    Args:
        uri: As of `graceful.lineage.Store`.
        home: As of `graceful.lineage.Store`.

    Raises:
        SpecError: A kind of URI that graceful does not use.
    """

    def __init__(self, uri: str | None, home: Path) -> None:
        self.registry = Registry(uri, home)

    @property
    def display_uri(self) -> str:
        """Return the URI without credentials."""
        return self.registry.address.display

    def chain(self, model: str, alias: str = schema.CHAMPION) -> list[LineageRecord]:
        """Return the version an alias points to and its ancestors, by recorded parents; [] without such an alias.

        Raises:
            RegistryError: Unreachable, an ancestor is missing, the lineage has a cycle, or the champion was deleted.
            IntegrityError: A record was altered.
        """
        with self.registry.client_for(f"read the chain of {model}") as client:
            number = self.registry.aliases(model).get(alias)
            if number is None:
                if alias == schema.CHAMPION:
                    self._require_no_champion(model)
                return []
            root = self.registry.node_id(client.get_model_version(model, str(number)))
        return self.trace(model, root)

    def trace(self, model: str, model_id: str) -> list[LineageRecord]:
        """Return a version and its ancestors, whichever models they belong to; raises what `chain` does."""
        with self.registry.client_for(f"read the ancestors of {model_id}"):
            records_by_id = records.ancestors(self.registry, model, model_id)
            return graph.trace(model_id, lambda key: records.require(records_by_id, self.registry, key))

    def _require_no_champion(self, model: str) -> None:
        """Raise if events name a champion: its alias went with a deleted version; a refresh would start a new chain."""
        champion, _ = events.replay(self.history(model))
        if champion is not None:
            raise RegistryError(
                f"{model}: the alias champion is gone, version {champion} had it; run `graceful lineage repair {model}`"
                " or promote another version"
            )

    def history(self, model: str) -> list[Event]:
        """Return every event of a family, oldest first; [] where the family is unknown."""
        with self.registry.client_for(f"read the history of {model}"):
            return events.read(self.registry, model)

    def records(self, model: str, model_ids: Iterable[str]) -> list[LineageRecord]:
        """Return the records of many versions of a family, in this order, for a few questions in all.

        Raises:
            RegistryError: Unreachable; one is unknown, or its registration was never finished.
            IntegrityError: A record was altered.
        """
        wanted = list(model_ids)
        with self.registry.client_for(f"read the records of {model}"):
            records_by_id = records.read(self.registry, model, wanted)
            return [records.require(records_by_id, self.registry, model_id) for model_id in wanted]

    def retired(self, model: str) -> frozenset[str]:
        """Return the identities of the versions that refreshes leave out."""
        query = f"name = {quoted(model)} and tags.{schema.TAG_GATE} = 'retired'"
        with self.registry.client_for(f"list the retired versions of {model}") as client:
            return frozenset(str(item.source).removeprefix("models:/") for item in client.search_model_versions(query))

    def address(self, path: str) -> str | None:
        """Return where a server shows a page or an artifact; None for a database."""
        registry = self.registry.address
        return f"{registry.uri.rstrip('/')}/{path}" if registry.server else None

    def record(self, model_id: str) -> LineageRecord:
        """Return the record of one version.

        Raises:
            RegistryError: Unknown, or its registration was never finished.
            IntegrityError: The record was altered.
        """
        with self.registry.client_for(f"read the record of {model_id}"):
            node = self.registry.node(model_id)
            if node is None:
                raise RegistryError(f"registry {self.display_uri}: holds no {model_id}; restore it from a backup")
            record = self.registry.recorded(node)
            if record is None:
                raise self.registry.unrecorded(node)
            numbers = [int(listed.version) for listed in self.registry.listed(record.model, model_id)]
        return replace(record, version=min(numbers, default=0))

    def versions(self, model: str) -> list[Listed]:
        """Return every version of a family, newest first; [] where the family is unknown."""
        with self.registry.client_for(f"list the versions of {model}") as client:
            aliases = self.registry.aliases(model)
            versions = client.search_model_versions(f"name = {quoted(model)}")
            return sorted((from_mlflow(model, item, aliases) for item in versions), key=lambda item: -item.version)

    def fetch(self, record: LineageRecord, into: Path | None = None, *, removable: Collection[str] = ()) -> Path:
        """Return the version's files in a local folder; what is there and has the recorded digests is not copied again.
        The checkpoint that a version with adapters names is brought here, too, if it is gone from its place.

        Args:
            record: Which version.
            into: Folder that holds one folder per version; None: `versions` under home.
            removable: Files that may have been deleted from the registry to save storage; they are then missing here.

        Raises:
            IntegrityError: The registry holds bytes other than those recorded.
            RegistryError: Unreachable, or a file is missing.
        """
        folder = self._fetched(record, (into or self.registry.home / "versions") / record.model_id, removable)
        base_copies.bring(self.registry, folder, experiment=lambda: self.registry.known_experiment(record.model))
        return folder

    def _fetched(self, record: LineageRecord, folder: Path, removable: Collection[str]) -> Path:
        if folder.is_dir() and not any(damaged_files(folder, record)):
            mark_used(folder)
            return folder
        with self.registry.client_for(f"fetch {record.label}"):
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetch-") as scratch:
                fresh = Path(scratch) / "files"
                removed = self.registry.download(record, fresh, removable=removable)
                _move_into_place(fresh, folder, aside=Path(scratch) / "damaged", record=record, removed=removed)
        return folder

    def family(self, model: str, *, most: int = pages.NEWEST) -> Family:
        """Return the newest versions of a model with their relatives, read from tags, which is quick."""
        with self.registry.client_for(f"read the family of {model}"):
            return pages.read(self.registry, model, most=most)

    def fleet(self, model: str) -> Fleet:
        """Return the live query models of a gallery family, and the galleries that they search."""
        with self.registry.client_for(f"read the query models of {model}"):
            return fleet.read(self.registry, model)

    def searched(self, key: Key) -> tuple[Key, ...]:
        """Return the gallery models whose index a version searches; none for versions that are not query models."""
        with self.registry.client_for(f"read {key.model} version {key.version}") as client:
            return fleet.named(client.get_model_version(key.model, str(key.version)).tags, schema.TAG_GALLERIES)

    def evidence(self, record: LineageRecord, name: str, into: Path) -> Path:
        """Return one file recorded beside a version, e.g. its predictions, copied to a folder and verified.

        Raises:
            RegistryError: It was not recorded, or is gone.
            IntegrityError: It was altered.
        """
        with self.registry.client_for(f"fetch {name} of {record.label}"):
            return self.registry.evidence(record, name, into)


def _move_into_place(
    fresh: Path, folder: Path, *, aside: Path, record: LineageRecord, removed: Collection[str]
) -> None:
    """Move a verified download into place; if another process did so with the same files, keep those."""

    def whole() -> bool:
        return folder.is_dir() and all(path in removed for path, _ in damaged_files(folder, record))

    if whole():
        return
    with suppress(FileNotFoundError):  # none was there, or another process moved the damaged one
        os.replace(folder, aside)
    try:
        os.replace(fresh, folder)
    except OSError:
        if not whole():
            raise
