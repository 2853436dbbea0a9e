"""One open registry: the few questions and downloads that every step is made of. Driver and client."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from graceful import homes, redact
from graceful.errors import IntegrityError, RegistryError, SpecError
from graceful.lineage import connection, schema
from graceful.lineage.schema import LineageRecord
from graceful.storage import sha256_file

RECORD = "lineage/lineage.json"
BATCH = 100
"""Nodes or runs in one question: mlflow's page of logged models, and short enough for an address."""


class Registry:
    """Where versions are kept. Building it touches nothing; the first question connects.

    Args:
        uri: MLflow tracking URI; None: $MLFLOW_TRACKING_URI, else sqlite and files under `home`.
        home: Folder of local state.
    """

    def __init__(self, uri: str | None, home: Path) -> None:
        self.home = homes.folder(home)
        self.address = connection.resolve(uri, self.home)
        self._experiments: dict[str, str] = {}

    @cached_property
    def client(self) -> Any:
        """Return the connected mlflow client."""
        return connection.connect(self.address)

    @contextmanager
    def client_for(self, action: str) -> Iterator[Any]:
        """Yield the client; errors within the block become one RegistryError line."""
        client = self.client
        with connection.translated_errors(self.address, action):
            yield client

    def experiment(self, model: str) -> str:
        """Return the id of the family's experiment, made if missing."""
        from mlflow.exceptions import MlflowException

        experiment_id = self.known_experiment(model)
        if experiment_id is None:
            name = f"graceful-{model}"
            try:
                self.client.create_experiment(name, artifact_location=self.address.artifacts)
            except MlflowException as e:  # made by someone else meanwhile, or by a request whose answer was lost
                if e.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            experiment_id = self.known_experiment(model)
        if experiment_id is None:
            raise RegistryError(
                f"registry {self.address.display}: made experiment graceful-{model} and has none; retry"
            )
        return experiment_id

    def known_experiment(self, model: str) -> str | None:
        """Return the id of the family's experiment, requested once; None where there is none yet.

        Raises:
            RegistryError: It was deleted.
        """
        if model not in self._experiments:
            name = f"graceful-{model}"
            experiment = self.client.get_experiment_by_name(name)
            if experiment is None:
                return None
            if experiment.lifecycle_stage != "active":
                raise RegistryError(
                    f"registry {self.address.display}: experiment {name} is deleted; restore it in MLflow"
                )
            self._experiments[model] = str(experiment.experiment_id)
        return self._experiments[model]

    def aliases(self, model: str) -> dict[str, int]:
        """Return the version number of each alias; {} for an unknown family."""
        registered = self.point(self.client.get_registered_model, model)
        return {} if registered is None else {name: int(version) for name, version in registered.aliases.items()}

    def node(self, model_id: str) -> Any | None:
        """Return the LoggedModel; None where there is none."""
        return self.point(self.client.get_logged_model, model_id)

    def point(self, call: Callable[..., Any], *key: str) -> Any | None:
        """Return what one call about one entry answers; None where there is no such entry (any more)."""
        from mlflow.exceptions import MlflowException

        try:
            return call(*key)
        except MlflowException as e:
            if e.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise

    def unrecorded(self, node: Any) -> RegistryError:
        """Return the error for a version without a record: foreign, or its registration was interrupted."""
        if schema.TAG_REFRESH in node.tags:
            return RegistryError(f"{node.name} ({node.model_id}): not completely registered; run its refresh again")
        return RegistryError(
            f"{node.name} ({node.model_id}): was not registered by graceful; name a version that was, and move aliases"
            " of graceful away from it"
        )

    def node_id(self, listed: Any) -> str:
        """Return the identity of a registered version."""
        model_id = str(listed.source).removeprefix("models:/")
        if not re.match(schema.NODE_ID, model_id):
            raise RegistryError(
                f"{listed.name} version {listed.version}: was not registered by graceful (source"
                f" {redact.message(str(listed.source))}); move the alias to a version that was"
            )
        return model_id

    def listed(self, model: str, model_id: str) -> list[Any]:
        """Return the registered versions of a node, lowest number first; a repeated request may have left several."""
        query = f"name = {quoted(model)} and source_path = {quoted(f'models:/{model_id}')}"
        return sorted(self.client.search_model_versions(query), key=lambda item: int(item.version))

    def record_text(self, node: Any, *, sealed: bool = True) -> str | None:
        """Return `lineage.json` of a node as it was written; None where its registration was never finished.

        Args:
            node: The LoggedModel.
            sealed: Compare it with the digest in the node's tag.

        Raises:
            IntegrityError: It was altered.
        """
        run = node.source_run_id
        if not run or RECORD not in {item.path for item in self.client.list_artifacts(run, "lineage")}:
            return None
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(self.client.download_artifacts(run, RECORD, scratch))
            if sealed:
                where = f"{node.name} ({node.model_id}): lineage.json"
                require_same_digest(where, actual=sha256_file(path), expected=node.tags.get(schema.TAG_RECORD, "none"))
            return path.read_text(encoding="utf-8")

    def recorded(self, node: Any, *, sealed: bool = True) -> LineageRecord | None:
        """Return the record in `record_text`; None where the registration was never finished.

        Raises:
            IntegrityError: It was altered, or belongs to another node.
            RegistryError: It is not a record.
        """
        where = f"{node.name} ({node.model_id}): lineage.json"
        text = self.record_text(node, sealed=sealed)
        if text is None:
            return None
        record = LineageRecord.from_json(text, where=where)
        if record.model_id != node.model_id:
            raise IntegrityError(f"{where}: is about {record.model_id}; restore the file that belongs here")
        return record

    def evidence(self, record: LineageRecord, name: str, folder: Path) -> Path:
        """Copy one file of the run's `lineage/`, as `Store.evidence` promises."""
        expected = record.evidence.get(name)
        if expected is None:
            raise RegistryError(
                f"{record.label}: {name} was not recorded with it; it was registered before graceful did so"
            )
        path = Path(self.client.download_artifacts(record.run_id, f"lineage/{name}", str(folder)))
        require_same_digest(f"{record.label}: {name}", actual=sha256_file(path), expected=expected)
        return path

    def listings(self, records: Sequence[LineageRecord], model_ids: Iterable[str]) -> dict[str, tuple[str, int]]:
        """Return identity -> (model, number) for records and further identities; what is not listed is left out."""
        listings = {record.model_id: (record.model, record.version) for record in records if record.version}
        wanted = [model_id for model_id in model_ids if model_id not in listings]
        if len(wanted) > 1:
            for model in dict.fromkeys(record.model for record in records):
                listings |= self._family_listings(model, wanted)
        for model_id in wanted:
            if model_id not in listings:
                listed = self.client.search_model_versions(f"source_path = {quoted(f'models:/{model_id}')}")
                for item in sorted(listed, key=lambda item: -int(item.version)):
                    listings[model_id] = (str(item.name), int(item.version))
        return listings

    def _family_listings(self, model: str, model_ids: Sequence[str]) -> dict[str, tuple[str, int]]:
        """Return the listings of one family, with two requests per hundred versions."""
        listings = {}
        for start in range(0, len(model_ids), BATCH):
            batch = ", ".join(quoted(model_id) for model_id in model_ids[start : start + BATCH])
            nodes = self.client.search_logged_models(
                [self.experiment(model)], f"model_id IN ({batch})", max_results=BATCH
            )
            if not nodes:
                continue
            runs = ", ".join(quoted(node.source_run_id) for node in nodes if node.source_run_id)
            listed = self.client.search_model_versions(f"name = {quoted(model)} and run_id IN ({runs})")
            for item in sorted(listed, key=lambda item: -int(item.version)):
                listings[str(item.source).removeprefix("models:/")] = (model, int(item.version))
        return {model_id: listing for model_id, listing in listings.items() if model_id in set(model_ids)}

    def download(self, record: LineageRecord, folder: Path, *, removable: Collection[str] = ()) -> frozenset[str]:
        """Copy the registered files; verify the manifest's digest before and each file's after.

        Returns:
            Those of the `removable` files that the registry has no more.
        """
        from mlflow.artifacts import download_artifacts

        node = self.node(record.model_id)
        if node is None:
            raise RegistryError(f"registry {self.address.display}: holds no {record.label}; restore it from a backup")
        digest_tag = f"{record.label}: tag {schema.TAG_DIGEST}"
        require_same_digest(digest_tag, actual=node.tags.get(schema.TAG_DIGEST, "none"), expected=record.manifest)
        stored = {item.path for item in self.client.list_logged_model_artifacts(record.model_id)}
        removed = frozenset(removable).intersection(record.files) - stored
        for path in sorted(record.files.keys() - removed):
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            uri = f"{node.artifact_location}/{path}"
            download_artifacts(uri, dst_path=str(target.parent), tracking_uri=self.address.uri)
        for path, actual in damaged_files(folder, record):
            if path not in removed:
                require_same_digest(f"{record.label}: {path}", actual=actual, expected=record.files[path])
        return removed

    def registered_file(self, model_id: str, name: str) -> bytes:
        """Return one registered file of a version as the registry has it; the caller compares it with its record."""
        from mlflow.artifacts import download_artifacts

        location = self.client.get_logged_model(model_id).artifact_location
        with tempfile.TemporaryDirectory() as scratch:
            uri = f"{location}/{name}"
            return Path(download_artifacts(uri, dst_path=scratch, tracking_uri=self.address.uri)).read_bytes()


def quoted(text: str) -> str:
    """Return a literal of MLflow's filter language, which has no escapes.

    Raises:
        SpecError: The text holds a quote.
    """
    if "'" in text or "\\" in text:
        raise SpecError(f"{text!r}: a name must not hold quotes; use letters, digits and hyphens")
    return f"'{text}'"


def damaged_files(folder: Path, record: LineageRecord) -> Iterator[tuple[str, str]]:
    """Yield files that do not have the recorded digest, each with the digest it has."""
    for path, expected in sorted(record.files.items()):
        actual = sha256_file(folder / path) if (folder / path).is_file() else "nothing"
        if actual != expected:
            yield path, actual


def require_same_digest(subject: str, *, actual: str, expected: str) -> None:
    """Compare a digest with the recorded digest.

    Raises:
        IntegrityError: They differ.
    """
    if actual != expected:
        raise IntegrityError(
            f"{subject}: SHA-256 must be {expected}, got {actual}; restore it from a backup, or register the version"
            " again under another name",
            {"expected": expected, "found": actual},
        )
