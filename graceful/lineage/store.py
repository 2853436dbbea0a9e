"""The registry of versions and their lineage, as programs and people use it. Driver and client.

    begin -> log_history -> register -> promote        one refresh; every step may be repeated and changes nothing
    chain, record, versions, fetch               what the next refresh and people ask

MLflow holds: one experiment per model family (`graceful-<model>`), one run per refresh, one LoggedModel per version
(its id is the node of the lineage), one registered model with the aliases `champion` and `previous`.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from graceful.errors import RegistryError
from graceful.lineage import connection, graph, promotion, registration, schema, tracking
from graceful.lineage.registration import Registration
from graceful.lineage.registry import Registry, damage, quoted
from graceful.lineage.schema import LineageRecord
from graceful.lineage.searches import SearchLog


@dataclass(frozen=True, kw_only=True)
class Listed:
    """One line of `versions`.

    Attributes:
        version: Number in the registry.
        name: Name of the version.
        model_id: Its identity; empty where a version was not registered by graceful.
        gate: passed, held, or empty.
        aliases: E.g. champion, previous.
        nfr_max_pct: Worst negative flip rate in percent, as text; empty for a first link.
        created: Milliseconds since 1970.
    """

    version: int
    name: str
    model_id: str
    gate: str
    aliases: tuple[str, ...]
    nfr_max_pct: str
    created: int


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
        return self.registry.place.display

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
        with self.registry.door(f"begin {run_id}"):
            return tracking.begin(self.registry, spec, run_id)

    def log_history(self, run: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Record the training history; the same rows again change nothing.

        Args:
            run: MLflow's run id.
            rows: Each with an integer `step` and numbers; what is not a finite number is left out.

        Raises:
            RegistryError: Unreachable or refused.
        """
        with self.registry.door("log the history"):
            tracking.log_history(self.registry, run, rows)

    def search_log(self, spec: Mapping[str, Any], *, run_id: str) -> SearchLog:
        """Open the MLflow run of a search, or find it again; its trials become children.

        Raises:
            RegistryError: Unreachable or refused.
        """
        return SearchLog(self.registry, spec, run_id=run_id)

    def abandon(self, run: str) -> None:
        """Mark the run of a refresh that failed, so that it does not stay running; `begin` takes it up again."""
        with self.registry.door("mark the run as failed") as client:
            client.set_terminated(run, status="FAILED")

    def register(self, item: Registration) -> LineageRecord:
        """Register a version, passed or held, with its lineage; the same refresh again returns the same record.

        Raises:
            RegistryError: Unreachable, refused, or the refresh is registered with other files.
            StorageError: The bundle cannot be read.
        """
        with self.registry.door(f"register {item.model} {item.name}"):
            parents = [self.record(model_id) for model_id in item.parents]
            return registration.register(self.registry, item, parents)

    def promote(self, model: str, version: int, *, expected: int | None, reason: str, actor: str) -> None:
        """Move `champion` to a passed version, if it still is where the caller saw it.

        Args:
            model: Model family.
            version: Number to promote; if it is the champion already, nothing changes.
            expected: Number of the champion that the version was judged against; None: there was none.
            reason: Why, for the audit.
            actor: Who.

        Raises:
            RegistryError: Held, unknown, or the champion moved meanwhile.
            IntegrityError: The registered files are not the ones recorded.
        """
        change = promotion.Promotion(model=model, version=version, expected=expected, reason=reason, actor=actor)
        with self.registry.door(f"promote {model} version {version}"), connection.exclusive(self.registry.place.lock):
            promotion.promote(self.registry, change)

    # --- reading ------------------------------------------------------------------------------------------------------

    def chain(self, model: str, alias: str = schema.CHAMPION) -> list[LineageRecord]:
        """The version an alias points to and its ancestors, by recorded parents; [] where there is no such alias.

        Raises:
            RegistryError: Unreachable, an ancestor is missing, or the lineage has a cycle.
            IntegrityError: A record was altered.
        """
        with self.registry.door(f"read the chain of {model}") as client:
            number = self.registry.aliases(model).get(alias)
            if number is None:
                return []
            listed = client.get_model_version(model, str(number))
            return graph.trace(self.registry.node_id(listed), self.record)

    def record(self, model_id: str) -> LineageRecord:
        """What was recorded about one version.

        Raises:
            RegistryError: Unknown, or its registration was never finished.
            IntegrityError: The record was altered.
        """
        with self.registry.door(f"read the record of {model_id}"):
            node = self.registry.node(model_id)
            if node is None:
                raise RegistryError(f"registry {self.display_uri}: holds no {model_id}; restore it from a backup")
            record = self.registry.recorded(node)
            if record is None:
                raise RegistryError(f"{node.name} ({model_id}): not completely registered; run its refresh again")
            numbers = [int(listed.version) for listed in self.registry.listed(record.model, model_id)]
        return replace(record, version=min(numbers, default=0))

    def versions(self, model: str) -> list[Listed]:
        """Every version of a family, newest first; [] where the family is unknown."""
        with self.registry.door(f"list the versions of {model}") as client:
            aliases = self.registry.aliases(model)
            found = client.search_model_versions(f"name = {quoted(model)}")
            return sorted((_line(model, item, aliases) for item in found), key=lambda line: -line.version)

    def fetch(self, record: LineageRecord, into: Path | None = None) -> Path:
        """The version's files in a local folder; what is there and has the recorded digests is not copied again.

        Args:
            record: Which version.
            into: Folder that holds one folder per version; None: `versions` under home.

        Raises:
            IntegrityError: The registry holds bytes other than those recorded.
            RegistryError: Unreachable, or a file is missing.
        """
        folder = (into or self.registry.home / "versions") / record.model_id
        if folder.is_dir() and not any(damage(folder, record)):
            return folder
        with self.registry.door(f"fetch {record.label}"):
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetch-") as scratch:
                fresh = Path(scratch) / "files"
                self.registry.download(record, fresh)
                _put(fresh, folder, aside=Path(scratch) / "damaged", record=record)
        return folder


def _put(fresh: Path, folder: Path, *, aside: Path, record: LineageRecord) -> None:
    """Move a verified download into place; a process that was faster with the same files wins."""
    if folder.exists():
        os.replace(folder, aside)
    try:
        os.replace(fresh, folder)
    except OSError:
        if not folder.is_dir() or any(damage(folder, record)):
            raise


def _line(model: str, listed: Any, aliases: Mapping[str, int]) -> Listed:
    number, source = int(listed.version), str(listed.source).removeprefix("models:/")
    return Listed(
        version=number,
        name=listed.tags.get(schema.TAG_REFRESH, "").removeprefix(f"{model}-"),
        model_id=source if re.match(schema.NODE_ID, source) else "",
        gate=listed.tags.get(schema.TAG_GATE, ""),
        aliases=tuple(sorted(alias for alias, target in aliases.items() if target == number)),
        nfr_max_pct=listed.tags.get(schema.TAG_NFR_MAX, ""),
        created=int(listed.creation_timestamp),
    )
