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
    """Records by identity, each with its number in the registry; what is unknown or unfinished is left out.

    Args:
        registry: Where.
        model: Family to which most of them belong; others cost a question each.
        model_ids: Identities.

    Raises:
        IntegrityError: A record was altered.
    """
    wanted = [key for key in dict.fromkeys(model_ids) if re.match(schema.NODE_ID, key)]
    known, numbers = _known(registry, wanted)
    unread = nodes(registry, model, [key for key in wanted if key not in known])
    places = _places(registry, model, [node.source_run_id for node in unread.values() if node.source_run_id])
    found = each(registry, partial(_record, registry, places), unread.values())
    fresh = [record for record in found if record is not None]
    numbers |= {model_id: number for model_id, (number, _) in _listed(registry, fresh).items()}
    records = {record.model_id: record for record in (*known.values(), *fresh)}
    return {key: replace(records[key], version=numbers.get(key, 0)) for key in wanted if key in records}


def ancestors(registry: Registry, model: str, root: str) -> dict[str, LineageRecord]:
    """A version and every ancestor, by identity: those that it was measured against in one go, others by generation."""
    records: dict[str, LineageRecord] = {}
    wanted = [root]
    while wanted:
        found = read(registry, model, wanted)
        records |= found
        near = {edge.model_id for record in found.values() for edge in record.edges}
        near |= {parent.model_id for record in found.values() for parent in record.parents}
        wanted = sorted(near - {*records})
        if not found:
            break
    return records


def nodes(registry: Registry, model: str, model_ids: Sequence[str]) -> dict[str, Any]:
    """LoggedModels by identity, a hundred of the family in one question, others one by one; unknown ones left out."""
    wanted = [key for key in dict.fromkeys(model_ids) if re.match(schema.NODE_ID, key)]
    experiment, found = registry.experiment(model) if wanted else "", dict[str, Any]()
    for batch in _batches(wanted):
        for node in registry.client.search_logged_models([experiment], f"model_id IN ({batch})", max_results=BATCH):
            found[node.model_id] = node
    others = {key: registry.node(key) for key in wanted if key not in found}
    return found | {key: node for key, node in others.items() if node is not None}


def _known(registry: Registry, model_ids: Sequence[str]) -> tuple[dict[str, LineageRecord], dict[str, int]]:
    """Records on disk whose files the registry still lists under the same digest, and their numbers."""
    kept = {key: record for key in model_ids if (record := _kept(registry, key)) is not None}
    listed = _listed(registry, list(kept.values()))
    known = {key: kept[key] for key, (_, manifest) in listed.items() if manifest == kept[key].manifest}
    return known, {key: listed[key][0] for key in known}


def _listed(registry: Registry, records: Sequence[LineageRecord]) -> dict[str, tuple[int, str]]:
    """Number and manifest digest of each; the lowest number, more than one is there only after a lost answer."""
    found: dict[str, tuple[int, str]] = {}
    wanted = {record.model_id for record in records}
    for model in dict.fromkeys(record.model for record in records):
        runs = [record.run_id for record in records if record.model == model]
        for batch in _batches(runs):
            for item in registry.client.search_model_versions(f"name = {quoted(model)} and run_id IN ({batch})"):
                key, number = str(item.source).removeprefix("models:/"), int(item.version)
                if key in wanted and number < found.get(key, (number + 1, ""))[0]:
                    found[key] = number, item.tags.get(schema.TAG_DIGEST, "")
    return found


def _batches(keys: Sequence[str]) -> Iterator[str]:
    for start in range(0, len(keys), BATCH):
        yield ", ".join(quoted(key) for key in keys[start : start + BATCH])


def each(registry: Registry, ask: Callable[[Any], T], items: Iterable[Any]) -> list[T]:
    """Answers in order; a server gives several at once, a database file would only make them wait for each other."""
    if not registry.place.server:
        return [ask(item) for item in items]
    with ThreadPoolExecutor(max_workers=READERS) as pool:
        return list(pool.map(ask, items))


def _places(registry: Registry, model: str, runs: Sequence[str]) -> dict[str, str]:
    """Where runs keep their artifacts, a hundred in one question; mlflow itself would ask twice for each."""
    found = {}
    for batch in _batches(runs):
        for run in registry.client.search_runs([registry.experiment(model)], f"attributes.run_id IN ({batch})"):
            found[run.info.run_id] = run.info.artifact_uri
    return found


def _record(registry: Registry, places: Mapping[str, str], node: Any) -> LineageRecord | None:
    digest = node.tags.get(schema.TAG_RECORD, "")
    text = _fetched(registry, places.get(node.source_run_id, ""), digest) or registry.record_text(node)
    if text is None:
        return None
    write_text(_folder(registry) / f"{node.model_id}-{digest}.json", text)
    return LineageRecord.from_json(text, where=f"{node.name} ({node.model_id}): lineage.json")


def _fetched(registry: Registry, place: str, digest: str) -> str | None:
    """`lineage.json` of a place if it is there and right; None sends the caller the long way, which says why not."""
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    if not place:
        return None
    with tempfile.TemporaryDirectory() as scratch, suppress(MlflowException, OSError):
        found = Path(download_artifacts(f"{place}/{RECORD}", dst_path=scratch, tracking_uri=registry.place.uri))
        return found.read_text(encoding="utf-8") if sha256_file(found) == digest else None
    return None


def _folder(registry: Registry) -> Path:
    return registry.home / "records"


def _kept(registry: Registry, model_id: str) -> LineageRecord | None:
    """The record on disk, if its bytes are still those whose digest is in its name."""
    for path in _folder(registry).glob(f"{model_id}-*.json"):
        if sha256_file(path) == path.stem.removeprefix(f"{model_id}-"):
            return LineageRecord.from_json(path.read_text(encoding="utf-8"), where=str(path))
    return None


def require(records: dict[str, LineageRecord], registry: Registry, model_id: str) -> LineageRecord:
    """One of them.

    Raises:
        RegistryError: Unknown, or its registration was never finished.
    """
    if model_id in records:
        return records[model_id]
    node = registry.node(model_id)
    if node is None:
        raise RegistryError(f"registry {registry.place.display}: holds no {model_id}; restore it from a backup")
    raise registry.unrecorded(node)
