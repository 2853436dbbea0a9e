"""Many records at once: a few questions for a whole chain, and none for the bytes read before. Driver and client.

A record never changes, so its bytes are kept on disk under its identity and digest, after they were compared with the
registry's seal. They count as long as the registry lists a version of that identity with the same digest of its files.
Promotion and repair do not use them, they read `lineage.json` itself.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from graceful.errors import RegistryError
from graceful.lineage import schema
from graceful.lineage.registry import BATCH, RECORD, Registry, quoted
from graceful.lineage.schema import LineageRecord
from graceful.storage import sha256_file, write_text

READERS = 8
"""Records that are fetched from a server at a time."""
T = TypeVar("T")


def read(registry: Registry, model: str, model_ids: Iterable[str]) -> dict[str, LineageRecord]:
    """Return records by identity, each with its number in the registry; what is unknown or unfinished is left out.

    Args:
        registry: Where.
        model: Family to which most of them belong; others cost a question each.
        model_ids: Identities.

    Raises:
        IntegrityError: A record was altered.
    """
    wanted = [key for key in dict.fromkeys(model_ids) if re.match(schema.NODE_ID, key)]
    known, numbers = _cached_records(registry, wanted)
    unread = nodes(registry, model, [key for key in wanted if key not in known])
    artifact_uris = _artifact_uris(
        registry, model, [node.source_run_id for node in unread.values() if node.source_run_id]
    )
    fetched = map_items(registry, partial(_record, registry, artifact_uris), unread.values())
    fresh = [record for record in fetched if record is not None]
    numbers |= {model_id: number for model_id, (number, _) in _numbers_and_digests(registry, fresh).items()}
    records = {record.model_id: record for record in (*known.values(), *fresh)}
    return {key: replace(records[key], version=numbers.get(key, 0)) for key in wanted if key in records}


def ancestors(registry: Registry, model: str, root: str) -> dict[str, LineageRecord]:
    """Return a version and every ancestor by identity; one read for all it was measured against, then by generation."""
    records: dict[str, LineageRecord] = {}
    wanted = [root]
    while wanted:
        generation = read(registry, model, wanted)
        records |= generation
        relatives = {edge.model_id for record in generation.values() for edge in record.edges}
        relatives |= {parent.model_id for record in generation.values() for parent in record.parents}
        wanted = sorted(relatives - {*records})
        if not generation:
            break
    return records


def nodes(registry: Registry, model: str, model_ids: Sequence[str]) -> dict[str, Any]:
    """Return LoggedModels by identity, a hundred of the family per request, others one by one; without unknown ones."""
    wanted = [key for key in dict.fromkeys(model_ids) if re.match(schema.NODE_ID, key)]
    experiment, nodes_by_id = registry.experiment(model) if wanted else "", dict[str, Any]()
    for batch in _batches(wanted):
        for node in registry.client.search_logged_models([experiment], f"model_id IN ({batch})", max_results=BATCH):
            nodes_by_id[node.model_id] = node
    others = {key: registry.node(key) for key in wanted if key not in nodes_by_id}
    return nodes_by_id | {key: node for key, node in others.items() if node is not None}


def _cached_records(registry: Registry, model_ids: Sequence[str]) -> tuple[dict[str, LineageRecord], dict[str, int]]:
    """Return cached records whose files the registry still lists under the same digest, and their numbers."""
    cached = {key: record for key in model_ids if (record := _cached_record(registry, key)) is not None}
    listed = _numbers_and_digests(registry, list(cached.values()))
    known = {key: cached[key] for key, (_, manifest) in listed.items() if manifest == cached[key].manifest}
    return known, {key: listed[key][0] for key in known}


def _numbers_and_digests(registry: Registry, records: Sequence[LineageRecord]) -> dict[str, tuple[int, str]]:
    """Return the number and manifest digest of each record; the lowest number where a repeated request left several."""
    listings: dict[str, tuple[int, str]] = {}
    wanted = {record.model_id for record in records}
    for model in dict.fromkeys(record.model for record in records):
        runs = [record.run_id for record in records if record.model == model]
        for batch in _batches(runs):
            for item in registry.client.search_model_versions(f"name = {quoted(model)} and run_id IN ({batch})"):
                key, number = str(item.source).removeprefix("models:/"), int(item.version)
                if key in wanted and number < listings.get(key, (number + 1, ""))[0]:
                    listings[key] = number, item.tags.get(schema.TAG_DIGEST, "")
    return listings


def _batches(keys: Sequence[str]) -> Iterator[str]:
    for start in range(0, len(keys), BATCH):
        yield ", ".join(quoted(key) for key in keys[start : start + BATCH])


def map_items(registry: Registry, function: Callable[[Any], T], items: Iterable[Any]) -> list[T]:
    """Return the results in order; a server is asked in parallel, a database file one by one because it would block."""
    if not registry.address.server:
        return [function(item) for item in items]
    with ThreadPoolExecutor(max_workers=READERS) as pool:
        return list(pool.map(function, items))


def _artifact_uris(registry: Registry, model: str, runs: Sequence[str]) -> dict[str, str]:
    """Return the artifact URI of each run, a hundred per request; MLflow itself makes two requests for each run."""
    artifact_uris = {}
    for batch in _batches(runs):
        for run in registry.client.search_runs([registry.experiment(model)], f"attributes.run_id IN ({batch})"):
            artifact_uris[run.info.run_id] = run.info.artifact_uri
    return artifact_uris


def _record(registry: Registry, artifact_uris: Mapping[str, str], node: Any) -> LineageRecord | None:
    digest = node.tags.get(schema.TAG_RECORD, "")
    text = _download_record(registry, artifact_uris.get(node.source_run_id, ""), digest) or registry.record_text(node)
    if text is None:
        return None
    write_text(_folder(registry) / f"{node.model_id}-{digest}.json", text)
    return LineageRecord.from_json(text, where=f"{node.name} ({node.model_id}): lineage.json")


def _download_record(registry: Registry, uri: str, digest: str) -> str | None:
    """Return `lineage.json` below a URI, or None: the caller then uses `Registry.record_text`, which says why."""
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    if not uri:
        return None
    with tempfile.TemporaryDirectory() as scratch, suppress(MlflowException, OSError):
        path = Path(download_artifacts(f"{uri}/{RECORD}", dst_path=scratch, tracking_uri=registry.address.uri))
        return path.read_text(encoding="utf-8") if sha256_file(path) == digest else None
    return None


def _folder(registry: Registry) -> Path:
    return registry.home / "records"


def _cached_record(registry: Registry, model_id: str) -> LineageRecord | None:
    """Return the cached record if its bytes still have the digest in the file name."""
    for path in _folder(registry).glob(f"{model_id}-*.json"):
        if sha256_file(path) == path.stem.removeprefix(f"{model_id}-"):
            return LineageRecord.from_json(path.read_text(encoding="utf-8"), where=str(path))
    return None


def require(records: dict[str, LineageRecord], registry: Registry, model_id: str) -> LineageRecord:
    """Return one of the records.

    Raises:
        RegistryError: Unknown, or its registration was never finished.
    """
    if model_id in records:
        return records[model_id]
    node = registry.node(model_id)
    if node is None:
        raise RegistryError(f"registry {registry.address.display}: holds no {model_id}; restore it from a backup")
    raise registry.unrecorded(node)
