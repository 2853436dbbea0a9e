"""The registry of versions and their lineage, as programs and people use it. Driver and client.

    begin -> log_history -> register -> promote        one refresh; every step may be repeated and changes nothing
    chain, record, versions, fetch, history      what the next refresh and people ask
    rollback, hold, retire, repair               what people do; each is an event

MLflow holds: one experiment per model family (`graceful-<model>`), one run per refresh, one LoggedModel per version
(its id is the node of the lineage), one registered model with the aliases `champion` and `previous`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from graceful.lineage import pages, promotion, registration, repair, tracking
from graceful.lineage.events import Event
from graceful.lineage.family_state import Repair
from graceful.lineage.promotion import Change
from graceful.lineage.reading import Reader
from graceful.lineage.registration import Registration
from graceful.lineage.schema import LineageRecord
from graceful.lineage.searches import SearchLog


class Store(Reader):
    """One registry, read and written. Building it connects to nothing; the first request does.

    Args:
        uri: MLflow tracking URI; None: $MLFLOW_TRACKING_URI, else sqlite and files under `home`.
        home: Folder of local state: default registry, fetched versions, locks.

    Raises:
        SpecError: A kind of URI that graceful does not use.
    """

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

    def attach(self, record: LineageRecord, paths: Iterable[Path], *, folder: str) -> None:
        """Copy files beside a version, where people find them; they are not a part of its record."""
        with self.registry.client_for(f"keep files of {record.label}") as client:
            for path in paths:
                client.log_artifact(record.run_id, str(path), folder)

    def _refresh_pages(self, model: str, event: Event | None) -> Event | None:
        """Render the model's page, also without a change: an earlier attempt may have ended before it did."""
        pages.refresh(self.registry, model)
        return event
