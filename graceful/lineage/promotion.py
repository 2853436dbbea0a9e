"""Promotion: the one place that moves the alias `champion`. Call it under the writer's lock. Driver and client.

mlflow's alias calls are last-writer-wins and keep no history. Here the champion is compared with what the caller judged
against, the evidence and the bytes are verified, and an audit run (`graceful_kind` = promotion) is opened before and
closed after the aliases move. A promotion that was interrupted is completed by repeating it.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graceful.errors import RegistryError
from graceful.lineage import schema
from graceful.lineage.registry import Registry, require_same

_KIND = "promotion"


@dataclass(frozen=True, kw_only=True)
class Promotion:
    """One wanted move of the champion; see `Store.promote`."""

    model: str
    version: int
    expected: int | None
    reason: str
    actor: str


def promote(registry: Registry, change: Promotion) -> None:
    """Do what `Store.promote` promises."""
    champion = registry.aliases(change.model).get(schema.CHAMPION)
    if champion == change.version:
        for audit in _open_audits(registry, change):
            registry.client.set_terminated(audit.info.run_id, status="FINISHED")
        return
    if champion != change.expected:
        raise RegistryError(
            f"{change.model}: champion is {_named(champion)}, not {_named(change.expected)} as when version"
            f" {change.version} was judged; refresh it under another name, from the champion of now"
        )
    _verify(registry, change)
    audit = _audit(registry, change)
    if champion is not None:
        registry.client.set_registered_model_alias(change.model, schema.PREVIOUS, str(champion))
    registry.client.set_registered_model_alias(change.model, schema.CHAMPION, str(change.version))
    found = registry.aliases(change.model).get(schema.CHAMPION)
    if found != change.version:
        registry.client.set_terminated(audit, status="FAILED")
        raise RegistryError(
            f"{change.model}: champion is {_named(found)} after it was set to version {change.version}; another writer"
            " without graceful's lock moved it, look at the audit runs and promote again"
        )
    registry.client.set_terminated(audit, status="FINISHED")


def _named(version: int | None) -> str:
    return "unset" if version is None else f"version {version}"


def _verify(registry: Registry, change: Promotion) -> None:
    """Verdict and bytes of the version, from the record and not only from tags that anyone may edit."""
    listed = registry.point(registry.client.get_model_version, change.model, str(change.version))
    if listed is None:
        raise RegistryError(f"{change.model}: has no version {change.version}; take a number from the registry's list")
    node = registry.node(registry.node_id(listed))
    record = None if node is None else registry.recorded(node)
    if record is None:
        raise RegistryError(
            f"{change.model} version {change.version}: not completely registered; run its refresh again"
        )
    gate = listed.tags.get(schema.TAG_GATE, "none")
    if record.verdict != "passed" or gate != "passed":
        why = next(iter(record.reasons), "no reason recorded") if record.verdict != "passed" else f"its tag says {gate}"
        raise RegistryError(
            f"{change.model} {record.name} (version {change.version}): is held by the gate ({why}); only a version that"
            " passed can be promoted"
        )
    what = f"{record.label}: version tag {schema.TAG_DIGEST}"
    require_same(what, found=listed.tags.get(schema.TAG_DIGEST, "none"), expected=record.manifest)
    with tempfile.TemporaryDirectory() as scratch:
        registry.download(record, Path(scratch))


def _audit(registry: Registry, change: Promotion) -> str:
    """The audit run of this promotion: one left open by an interrupted attempt, else a new one."""
    for audit in _open_audits(registry, change):
        if audit.data.tags.get("graceful_from") == str(change.expected):
            return str(audit.info.run_id)
    tags = {
        schema.TAG_KIND: _KIND,
        "graceful_from": str(change.expected),
        "graceful_to": str(change.version),
        "graceful_actor": change.actor[:500],
        "graceful_reason": change.reason[:5000],
    }
    name = f"promote-{change.model}-{change.version}"
    run = registry.client.create_run(registry.experiment(change.model), run_name=name, tags=tags)
    return str(run.info.run_id)


def _open_audits(registry: Registry, change: Promotion) -> list[Any]:
    query = (
        f"tags.{schema.TAG_KIND} = '{_KIND}' and tags.graceful_to = '{int(change.version)}'"
        " and attributes.status = 'RUNNING'"
    )
    return list(registry.client.search_runs([registry.experiment(change.model)], query))
