"""Many records at once: a few questions for a whole chain, and none for the bytes read before. Driver and client.

A record never changes, so its bytes are kept on disk under its identity and digest; what is read there must have the
digest that the registry's tag names. Promotion and repair do not use them, they read `lineage.json` itself.
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
    nodes = _nodes(registry, model, wanted)
    nodes |= {key: node for key in wanted if key not in nodes and (node := registry.node(key)) is not None}
    unread = [node for node in nodes.values() if not _kept(registry, node).is_file()]
    places = _places(registry, model, [node.source_run_id for node in unread if node.source_run_id])
    found = each(registry, partial(_record, registry, places), nodes.values())
    records = [record for record in found if record is not None]
    numbers = _numbers(registry, records)
    return {record.model_id: replace(record, version=numbers.get(record.model_id, 0)) for record in records}


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


def _nodes(registry: Registry, model: str, model_ids: Sequence[str]) -> dict[str, Any]:
    experiment = registry.experiment(model)
    found = {}
    for batch in _batches(model_ids):
        for node in registry.client.search_logged_models([experiment], f"model_id IN ({batch})", max_results=BATCH):
            found[node.model_id] = node
    return found


def _numbers(registry: Registry, records: Sequence[LineageRecord]) -> dict[str, int]:
    """The lowest number of each; more than one only after a lost answer."""
    numbers: dict[str, int] = {}
    for model in dict.fromkeys(record.model for record in records):
        runs = [record.run_id for record in records if record.model == model]
        for batch in _batches(runs):
            for listed in registry.client.search_model_versions(f"name = {quoted(model)} and run_id IN ({batch})"):
                model_id = str(listed.source).removeprefix("models:/")
                numbers[model_id] = min(int(listed.version), numbers.get(model_id, int(listed.version)))
    return numbers


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
    path, digest = _kept(registry, node), node.tags.get(schema.TAG_RECORD, "")
    if digest and path.is_file() and sha256_file(path) == digest:
        return LineageRecord.from_json(path.read_text(encoding="utf-8"), where=str(path))
    text = _fetched(registry, places.get(node.source_run_id, ""), digest) or registry.record_text(node)
    if text is None:
        return None
    write_text(path, text)
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


def _kept(registry: Registry, node: Any) -> Path:
    return registry.home / "records" / f"{node.model_id}-{node.tags.get(schema.TAG_RECORD, '')[:16]}.json"


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
    raise RegistryError(f"{node.name} ({model_id}): not completely registered; run its refresh again")
