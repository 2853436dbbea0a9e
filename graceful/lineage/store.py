"""The registry of versions and their lineage, as programs and people use it. Driver and client.

    begin -> log_history -> register -> promote        one refresh; every step may be repeated and changes nothing
    chain, record, versions, fetch, history      what the next refresh and people ask
    rollback, hold, retire, repair               what people do; each is an event

MLflow holds: one experiment per model family (`graceful-<model>`), one run per refresh, one LoggedModel per version
(its id is the node of the lineage), one registered model with the aliases `champion` and `previous`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from graceful.errors import RegistryError
from graceful.files import mark_used
from graceful.lineage import (
    base_copies,
    events,
    fleet,
    graph,
    pages,
    promotion,
    records,
    registration,
    repair,
    schema,
    tracking,
)
from graceful.lineage.events import Event
from graceful.lineage.family import Family, Key
from graceful.lineage.fleet import Fleet
from graceful.lineage.listing import Listed, from_mlflow
from graceful.lineage.promotion import Change
from graceful.lineage.registration import Registration
from graceful.lineage.registry import Registry, damaged_files, quoted
from graceful.lineage.repair import Repair
from graceful.lineage.schema import LineageRecord
from graceful.lineage.searches import SearchLog


class Store:
    """One registry. Building it touches nothing; the first question connects.

    Args:
        uri: MLflow tracking URI; None: $MLFLOW_TRACKING_URI, else sqlite and files under `home`.
        home: Folder of local state: default registry, fetched versions, locks.

    Raises:
        SpecError: A kind of URI that graceful does not use.
    """

    def __init__(self, uri: str | None, home: Path) -> None:
        self.registry = Registry(uri, home)

    @property
    def display_uri(self) -> str:
        """The URI without credentials."""
        return self.registry.address.display

    # --- writing ------------------------------------------------------------------------------------------------------

    def begin(self, spec: Mapping[str, Any], run_id: str) -> str:
        """Open the MLflow run of a refresh, or find it again.

        Args:
            spec: The resolved spec as JSON values.
            run_id: Identity of the refresh, `model-name`.

        Returns:
            MLflow's run id.

        Raises:
            SpecError: The refresh was begun with another spec, and not abandoned.
            RegistryError: Unreachable or refused.
        """
        with self.registry.client_for(f"begin {run_id}"):
            return tracking.begin(self.registry, spec, run_id)

    def log_history(self, run: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Record the training history; the same rows again change nothing.

        Args:
            run: MLflow's run id.
            rows: Each with an integer `step` and numbers; what is not a finite number is left out.

        Raises:
            RegistryError: Unreachable or refused.
        """
        with self.registry.client_for("log the history"):
            tracking.log_history(self.registry, run, rows)

    def search_log(self, spec: Mapping[str, Any], *, run_id: str) -> SearchLog:
        """Open the MLflow run of a search, or find it again; its trials become children.

        Raises:
            RegistryError: Unreachable or refused.
        """
        return SearchLog(self.registry, spec, run_id=run_id)

    def abandon(self, run: str) -> None:
        """Mark the run of a refresh that failed, so that it does not stay running; `begin` takes it up again."""
        with self.registry.client_for("mark the run as failed") as client:
            client.set_terminated(run, status="FAILED")

    def register(self, item: Registration) -> LineageRecord:
        """Register a version, passed or held, with its lineage; the same refresh again returns the same record.

        Raises:
            RegistryError: Unreachable, refused, or the refresh is registered with other files.
            StorageError: The bundle cannot be read.
        """
        with self.registry.client_for(f"register {item.model} {item.name}"):
            parents = [self.record(model_id) for model_id in item.parents]
            return registration.register(self.registry, item, parents)

    def promote(
        self, model: str, version: int, *, expected: int | None, reason: str, actor: str, waive: bool = False
    ) -> Event | None:
        """Move `champion` to a passed version, if it still is where the caller saw it.

        Args:
            model: Model family.
            version: Number to promote; if it is the champion already, nothing changes.
            expected: Number of the champion that the version was judged against; None: there was none.
            reason: Why, for the history.
            actor: Who.
            waive: Promote it although it is held; needs a reason.

        Returns:
            What was recorded; None where nothing had to change.

        Raises:
            SpecError: Retired, or a waiver without a reason.
            RegistryError: Held, unknown, or the champion moved meanwhile.
            IntegrityError: The registered files are not the ones recorded.
        """
        change = Change(model=model, version=version, expected=expected, reason=reason, actor=actor, waive=waive)
        with self.registry.client_for(f"promote {model} version {version}"):
            return self._refresh_pages(model, promotion.promote(self.registry, change))

    def rollback(
        self, model: str, version: int | None = None, *, expected: int | None = None, reason: str, actor: str
    ) -> Event | None:
        """Move `champion` back to what `previous` points to, or to a version, after verifying its files.

        Args:
            model: Model family.
            version: Number; None: `previous`.
            expected: Number of the champion to roll back from; None: whichever it is. With it, the same call again
                changes nothing.
            reason: Why, for the history.
            actor: Who.

        Returns:
            What was recorded; None where nothing had to change.

        Raises:
            SpecError: There is nothing to roll back to, or the version is retired.
            RegistryError: Held, unknown, or the champion moved meanwhile.
            IntegrityError: The registered files are not the ones recorded.
        """
        with self.registry.client_for(f"roll {model} back"):
            done = promotion.rollback(self.registry, model, version, expected=expected, reason=reason, actor=actor)
            return self._refresh_pages(model, done)

    def hold(self, model: str, version: int, *, reason: str, actor: str, release: bool = False) -> Event | None:
        """Keep a version from being promoted, or take that back; the champion cannot be held.

        Returns:
            What was recorded; None where nothing had to change.

        Raises:
            SpecError: It is champion or retired; or it is to be released, and the gate holds it.
            RegistryError: Unknown.
        """
        change = Change(model=model, version=version, expected=None, reason=reason, actor=actor)
        with self.registry.client_for(f"hold {model} version {version}"):
            return self._refresh_pages(model, (promotion.release if release else promotion.hold)(self.registry, change))

    def retire(self, model: str, version: int, *, reason: str, actor: str, force: bool = False) -> Event | None:
        """Leave a version out of the training and evaluation of later refreshes; the lineage keeps it.

        Args:
            model: Model family.
            version: Number.
            reason: Why, for the history.
            actor: Who.
            force: Even if it is champion: the model then has none.

        Returns:
            What was recorded; None where nothing had to change.

        Raises:
            SpecError: It is champion, and not forced.
            RegistryError: Unknown.
        """
        change = Change(model=model, version=version, expected=None, reason=reason, actor=actor, force=force)
        with self.registry.client_for(f"retire {model} version {version}"):
            return self._refresh_pages(model, promotion.retire(self.registry, change))

    def repair(self, model: str, *, dry_run: bool = False, older_than_hours: float = 24.0) -> list[Repair]:
        """Repair everything that derives from records and events; see `graceful.lineage.repair`.

        Args:
            model: Model family.
            dry_run: Change nothing.
            older_than_hours: A run of another machine that began earlier than that and is still running is dead.

        Returns:
            What was repaired, or would be; entries that cannot be repaired have `repaired` False.
        """
        with self.registry.client_for(f"repair {model}"):
            repairs = repair.repair(self.registry, model, dry_run=dry_run, older_than_hours=older_than_hours)
            if not dry_run:
                pages.refresh(self.registry, model, force=True)
            return repairs

    def _refresh_pages(self, model: str, event: Event | None) -> Event | None:
        """Render the model's page, also without a change: an earlier attempt may have ended before it did."""
        pages.refresh(self.registry, model)
        return event

    # --- reading ------------------------------------------------------------------------------------------------------

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

    def attach(self, record: LineageRecord, paths: Iterable[Path], *, folder: str) -> None:
        """Copy files beside a version, where people find them; they are not a part of its record."""
        with self.registry.client_for(f"keep files of {record.label}") as client:
            for path in paths:
                client.log_artifact(record.run_id, str(path), folder)

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
