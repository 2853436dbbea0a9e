"""The registry of versions and their lineage: reading chains, fetching bundles, and the ways to write. Driver, client.

    begin -> log_history -> register -> promote        one refresh; every step may be repeated and changes nothing
    chain, record, find, versions, fetch               what the next refresh and people ask

MLflow holds: one experiment per model family (`graceful-<model>`), one run per refresh, one LoggedModel per version (its
id is the node of the lineage), one registered model with aliases `champion` and `previous`.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from graceful.errors import IntegrityError, RegistryError, SpecError
from graceful.lineage import connection, graph, promote, register, schema
from graceful.lineage.schema import LineageRecord
from graceful.storage import sha256_file

RECORD = "lineage/lineage.json"


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
    """

    def __init__(self, uri: str | None, home: Path) -> None:
        self.home = Path(home).expanduser().absolute()
        self.place = connection.resolve(uri, self.home)

    @property
    def display_uri(self) -> str:
        """The URI without credentials."""
        return self.place.display

    @cached_property
    def client(self) -> Any:
        """The connected mlflow client."""
        return connection.connect(self.place)

    @contextmanager
    def door(self, doing: str) -> Iterator[Any]:
        """The client, with whatever is raised around it turned into one RegistryError line."""
        client = self.client
        with connection.translated(self.place, doing):
            yield client

    # --- writing ------------------------------------------------------------------------------------------------------

    def begin(self, spec: Mapping[str, Any], run_id: str) -> str:
        """Open the MLflow run of a refresh, or find it again.

        Args:
            spec: The resolved spec as JSON values.
            run_id: Identity of the refresh, `model-name`.

        Returns:
            MLflow's run id.

        Raises:
            SpecError: The refresh was begun with another spec.
            RegistryError: Unreachable or refused.
        """
        with self.door(f"begin {run_id}") as client:
            experiment = self.experiment(spec["model"])
            runs = self._runs(experiment, run_id)
            if not runs:
                name_and_tags = register.begun(spec, run_id)
                client.create_run(experiment, run_name=run_id, tags=name_and_tags)
                runs = self._runs(experiment, run_id)
            first, *repeated = runs
            for run in repeated:
                client.delete_run(run.info.run_id)
            if first.data.tags[schema.TAG_SPEC] != schema.spec_digest(spec):
                raise SpecError(f"run {run_id} was begun with another spec; restore that one or give the version another name")
            client.log_batch(first.info.run_id, params=register.params(spec))
        return str(first.info.run_id)

    def log_history(self, run: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Record the training history; the same rows again change nothing.

        Args:
            run: MLflow's run id.
            rows: Each with an integer `step` and numbers; what is not a finite number is left out.
        """
        from mlflow.entities import Metric

        with self.door("log the history") as client:
            start = client.get_run(run).info.start_time
            metrics = [
                Metric(re.sub(r"[^\w.\-/: ]", "_", key), float(value), start + int(row["step"]), int(row["step"]))
                for row in rows
                for key, value in row.items()
                if key != "step" and isinstance(value, int | float) and math.isfinite(value)
            ]
            for index in range(0, len(metrics), 1000):
                client.log_batch(run, metrics=metrics[index : index + 1000])

    def abandon(self, run: str) -> None:
        """Mark the run of a refresh that failed, so that it does not stay running for ever."""
        with self.door("mark the run as failed") as client:
            client.set_terminated(run, status="FAILED")

    def register(self, item: register.Registration) -> LineageRecord:
        """Register a version, passed or held, with its lineage; the same refresh again returns the same record.

        Raises:
            RegistryError: Unreachable, refused, or the refresh is registered with other files.
            StorageError: The bundle cannot be read.
        """
        with self.door(f"register {item.model} {item.name}"):
            return register.register(self, item)

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
        with self.door(f"promote {model} version {version}"), connection.exclusive(self.place.lock):
            promote.promote(self, model, version, expected=expected, reason=reason, actor=actor)

    # --- reading ------------------------------------------------------------------------------------------------------

    def chain(self, model: str, alias: str = schema.CHAMPION) -> list[LineageRecord]:
        """The version an alias points to and its ancestors, by recorded parents; [] where there is no such alias.

        Raises:
            RegistryError: Unreachable, an ancestor is missing, or the lineage has a cycle.
            IntegrityError: A record was altered.
        """
        with self.door(f"read the chain of {model}") as client:
            number = self.aliases(model).get(alias)
            if number is None:
                return []
            listed = client.get_model_version(model, str(number))
            return graph.trace(self.node_of(listed), self.record)

    def record(self, model_id: str) -> LineageRecord:
        """What was recorded about one version.

        Raises:
            RegistryError: Unknown, or its registration was never finished.
            IntegrityError: The record was altered.
        """
        with self.door(f"read the record of {model_id}") as client:
            node = self.node(model_id)
            if node is None:
                raise RegistryError(f"registry {self.display_uri}: holds no {model_id}; restore it from a backup")
            record = self.recorded(node)
            if record is None:
                raise RegistryError(f"{node.name} ({model_id}): not completely registered; run its refresh again")
            numbers = [int(listed.version) for listed in self.listed(client, record)]
        return _numbered(record, min(numbers, default=0))

    def find(self, model: str, name: str) -> LineageRecord | None:
        """The version of a family by its name; None where there is none."""
        with self.door(f"find {model} {name}") as client:
            wanted = _quoted(schema.refresh_id(model, name))
            query = f"name = {_quoted(model)} and tags.{schema.TAG_REFRESH} = {wanted}"
            found = sorted(client.search_model_versions(query), key=lambda listed: int(listed.version))
            return self.record(self.node_of(found[0])) if found else None

    def versions(self, model: str) -> list[Listed]:
        """Every version of a family, newest first; [] where the family is unknown."""
        with self.door(f"list the versions of {model}") as client:
            aliases = self.aliases(model)
            found = client.search_model_versions(f"name = {_quoted(model)}")
            return sorted((_line(model, item, aliases) for item in found), key=lambda item: -item.version)

    def fetch(self, record: LineageRecord, into: Path | None = None) -> Path:
        """The version's files in a local folder; what is there and has the recorded digests is not copied again.

        Args:
            record: Which version.
            into: Folder that holds one folder per version; None: `versions` under home.

        Raises:
            IntegrityError: The registry holds bytes other than those recorded.
            RegistryError: Unreachable, or a file is missing.
        """
        folder = (into or self.home / "versions") / record.model_id
        if folder.is_dir() and not any(_damage(folder, record)):
            return folder
        with self.door(f"fetch {record.label}"):
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetch-") as scratch:
                fresh = Path(scratch) / "files"
                self.download(record, fresh)
                if folder.exists():
                    shutil.rmtree(folder)
                os.replace(fresh, folder)
        return folder

    # --- for the other modules of this room; call them inside `door` --------------------------------------------------

    def experiment(self, model: str) -> str:
        """Id of the family's experiment, made if missing."""
        from mlflow.exceptions import MlflowException

        name = f"graceful-{model}"
        found = self.client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self.client.create_experiment(name, artifact_location=self.place.artifacts))
            except MlflowException as e:  # made by someone else meanwhile, or by a request whose answer was lost
                if e.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                found = self.client.get_experiment_by_name(name)
        if found is None or found.lifecycle_stage != "active":
            raise RegistryError(f"registry {self.display_uri}: experiment {name} is deleted; restore it in MLflow")
        return str(found.experiment_id)

    def aliases(self, model: str) -> dict[str, int]:
        """Alias -> version number; {} for an unknown family."""
        found = self.point(self.client.get_registered_model, model)
        return {} if found is None else {name: int(version) for name, version in found.aliases.items()}

    def node(self, model_id: str) -> Any | None:
        """The LoggedModel; None where there is none."""
        return self.point(self.client.get_logged_model, model_id)

    def point(self, read: Any, *key: str) -> Any | None:
        """One point read that may find nothing."""
        from mlflow.exceptions import MlflowException

        try:
            return read(*key)
        except MlflowException as e:
            if e.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise

    def node_of(self, listed: Any) -> str:
        """Identity of a registered version."""
        model_id = str(listed.source).removeprefix("models:/")
        if not re.match(schema.NODE_ID, model_id):
            raise RegistryError(
                f"{listed.name} version {listed.version}: was not registered by graceful (source {listed.source}); move"
                " the alias to a version that was"
            )
        return model_id

    def listed(self, client: Any, record: LineageRecord) -> list[Any]:
        """Registered versions of a node, lowest number first; more than one only after a lost answer."""
        query = f"name = {_quoted(record.model)} and source_path = {_quoted(f'models:/{record.model_id}')}"
        return sorted(client.search_model_versions(query), key=lambda item: int(item.version))

    def recorded(self, node: Any) -> LineageRecord | None:
        """Read and verify `lineage.json` of a node; None where its registration was never finished."""
        run = node.source_run_id
        folder, _, _name = RECORD.rpartition("/")
        if RECORD not in {item.path for item in self.client.list_artifacts(run, folder)}:
            return None
        where = f"{node.name} ({node.model_id}): lineage.json"
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(self.client.download_artifacts(run, RECORD, scratch))
            _same(where, sha256_file(path), node.tags.get(schema.TAG_RECORD, "none"))
            record = LineageRecord.from_json(path.read_text(encoding="utf-8"), where=where)
        if record.model_id != node.model_id:
            raise IntegrityError(f"{where}: is about {record.model_id}; restore the file that belongs here")
        return record

    def download(self, record: LineageRecord, folder: Path) -> None:
        """Copy the registered files and verify each digest and the manifest's."""
        from mlflow.artifacts import download_artifacts

        node = self.node(record.model_id)
        if node is None:
            raise RegistryError(f"registry {self.display_uri}: holds no {record.label}; restore it from a backup")
        _same(f"{record.label}: tag {schema.TAG_DIGEST}", node.tags.get(schema.TAG_DIGEST, "none"), record.manifest)
        for path in sorted(record.files):
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            download_artifacts(f"{node.artifact_location}/{path}", dst_path=str(target.parent), tracking_uri=self.place.uri)
        for path, found in _damage(folder, record):
            _same(f"{record.label}: {path}", found, record.files[path])

    def _runs(self, experiment: str, run_id: str) -> list[Any]:
        query = f"tags.{schema.TAG_REFRESH} = {_quoted(run_id)} and tags.{schema.TAG_KIND} = 'refresh'"
        return sorted(
            self.client.search_runs([experiment], query), key=lambda run: (run.info.start_time, run.info.run_id)
        )


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


def _numbered(record: LineageRecord, version: int) -> LineageRecord:
    from dataclasses import replace

    return replace(record, version=version)


def _quoted(text: str) -> str:
    """A literal of MLflow's filter language, which has no escapes."""
    if "'" in text or "\\" in text:
        raise RegistryError(f"{text!r}: a name must not hold quotes; use letters, digits and hyphens")
    return f"'{text}'"


def _damage(folder: Path, record: LineageRecord) -> Iterator[tuple[str, str]]:
    """Files that do not have the recorded digest, with what they have."""
    for path, expected in sorted(record.files.items()):
        found = sha256_file(folder / path) if (folder / path).is_file() else "nothing"
        if found != expected:
            yield path, found


def _same(what: str, found: str, expected: str) -> None:
    if found != expected:
        raise IntegrityError(
            f"{what}: SHA-256 must be {expected}, got {found}; restore it from a backup, or register the version again"
            " under another name",
            {"expected": expected, "found": found},
        )
