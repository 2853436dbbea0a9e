"""Registering a version: files, numbers, edges, and `lineage.json` last. Runs in the driver, once per refresh.

Each step looks before it writes, because an answer lost on the network makes mlflow's client repeat a request that was
carried out: duplicates are folded onto the oldest. A record that exists is final; what is missing after it is added.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

import graceful
from graceful import documents
from graceful.errors import RegistryError, StorageError
from graceful.gate import Verdict
from graceful.lineage import base_copies, card, flips_table, pages, render, schema, tables
from graceful.lineage.connection import as_global
from graceful.lineage.registry import RECORD, Registry, quoted
from graceful.lineage.schema import LineageRecord, Node
from graceful.report import Report
from graceful.storage import sha256_file

LOADER = "graceful.lineage.serving"


@dataclass(frozen=True, kw_only=True)
class Registration:
    """Everything that makes a version.

    Attributes:
        spec: The resolved spec as JSON values.
        model: Model family.
        name: Name of the version.
        run_id: Identity of the refresh, `model-name`.
        tracking_run: What `Store.begin` returned.
        bundle: Folder of the version bundle; every file in it is registered.
        digest: Digest of the bundle.
        parents: Identities of the direct predecessors, the one it was refreshed from first.
        report: The evidence.
        verdict: Outcome of the gate.
        attachments: Further files beside the version, e.g. report.html, predictions.npz.
        flips: Negative flips as rows for MLflow's table: sample id, ancestor, what it said.
        thumbnails: Sample id -> PNG, for tasks with images.
        training: What it was trained from, as `LineageRecord.training` says.
    """

    spec: Mapping[str, Any]
    model: str
    name: str
    run_id: str
    tracking_run: str
    bundle: Path
    digest: str
    parents: tuple[str, ...]
    report: Report
    verdict: Verdict
    attachments: tuple[Path, ...] = ()
    flips: tuple[Mapping[str, Any], ...] = ()
    thumbnails: Mapping[str, bytes] = field(default_factory=dict)
    training: Mapping[str, str] = field(default_factory=dict)


def register(registry: Registry, item: Registration, parents: Sequence[LineageRecord]) -> LineageRecord:
    """Do what `Store.register` promises; `parents` are the records of `item.parents`."""
    node = _node(registry, item)
    record = registry.recorded(node)
    if record is None:
        record = _write(registry, item, node, parents)
    elif record.digest != item.digest or record.spec_digest != schema.spec_digest(item.spec):
        raise RegistryError(
            f"{record.label}: is registered with other weights or another spec; give the version another name"
        )
    measured = [edge.model_id for edge in record.edges]
    number = list_version(registry, record, registry.listings(parents, measured))
    description = render.escape_markdown(str(item.spec.get("description") or ""))
    link = render.version_link(record.model, number)
    page = f"{description}\n\nVersion {number}: [{record.model} {record.name}]({link})"
    registry.client.set_tag(record.run_id, "mlflow.note.content", page.strip())
    registry.client.set_terminated(record.run_id, status="FINISHED")
    searched = [edge.model_id for edge in record.partners("gallery")]
    galleries = [model for model, _ in registry.listings([], searched).values()] if searched else []
    for model in dict.fromkeys((record.model, *(parent.model for parent in parents), *galleries)):
        pages.refresh(registry, model)
    return replace(record, version=number)


# --- the node ---------------------------------------------------------------------------------------------------------


def _node(registry: Registry, item: Registration) -> Any:
    """Return the LoggedModel of a refresh, made if missing."""
    experiment = registry.experiment(item.model)
    nodes = _nodes(registry, experiment, item.run_id)
    if not nodes:
        registry.client.create_logged_model(
            experiment,
            name=item.run_id,
            source_run_id=item.tracking_run,
            model_type="graceful",
            tags=_node_tags(item),
            params={"name": item.name, "n_predecessors": str(len(item.report.comparisons))},
        )
        nodes = _nodes(registry, experiment, item.run_id)
    first, *repeated = nodes
    for node in repeated:
        registry.point(registry.client.delete_logged_model, node.model_id)
    return first


def _nodes(registry: Registry, experiment: str, run_id: str) -> list[Any]:
    nodes = registry.client.search_logged_models([experiment], f"tags.{schema.TAG_REFRESH} = {quoted(run_id)}")
    return sorted(nodes, key=lambda node: (node.creation_timestamp, node.model_id))


def _node_tags(item: Registration) -> dict[str, str]:
    edges = {schema.parent_tag(edge.model_id): edge.verdict for edge in schema.edges(item.report, item.verdict)}
    return {
        schema.TAG_REFRESH: item.run_id,
        schema.TAG_FAMILY: item.model,
        schema.TAG_SCHEMA: str(schema.SCHEMA),
        schema.TAG_GATE: str(item.verdict.outcome),
        schema.TAG_BASE: item.parents[0] if item.parents else "",
        **edges,
    }


def record_tags(record: LineageRecord, listings: Mapping[str, tuple[str, int]]) -> dict[str, str]:
    """Return the tags of a finished node; all of them derive from its record, and the last seals it."""
    return {
        schema.TAG_REFRESH: record.refresh_id,
        schema.TAG_FAMILY: record.model,
        schema.TAG_SCHEMA: str(schema.SCHEMA),
        schema.TAG_GATE: record.verdict,
        schema.TAG_BASE: record.parents[0].model_id if record.parents else "",
        **{schema.parent_tag(edge.model_id): edge.verdict for edge in record.edges},
        schema.TAG_DIGEST: record.manifest,
        "mlflow.note.content": render.description(record, listings),
        schema.TAG_RECORD: hashlib.sha256(record.to_json().encode()).hexdigest(),
    }


# --- what it consists of ----------------------------------------------------------------------------------------------


def _write(registry: Registry, item: Registration, node: Any, parents: Sequence[LineageRecord]) -> LineageRecord:
    client = registry.client
    created = datetime.now(UTC).isoformat(timespec="seconds")
    base_copies.keep(registry, item.spec, item.bundle)
    with tempfile.TemporaryDirectory() as scratch:
        files, notes = Path(scratch) / "files", Path(scratch) / "lineage"
        digests = _stage(item, node, files, created)
        evidence = _evidence(item, notes)
        record = replace(_record(item, node, parents, digests, created), evidence=evidence)
        listings = registry.listings(parents, [edge.model_id for edge in record.edges])
        client.log_model_artifacts(node.model_id, str(files))
        client.finalize_logged_model(node.model_id, "READY")
        tables.write(registry, record, parents, listings)
        _views(record, notes, listings)
        client.log_artifacts(record.run_id, str(notes), "lineage")
        if item.flips:
            client.set_tag(record.run_id, "mlflow.loggedArtifacts", flips_table.TAG)
        last = Path(scratch) / "lineage.json"
        last.write_text(record.to_json(), encoding="utf-8")
        client.set_logged_model_tags(node.model_id, record_tags(record, listings))
        client.set_tag(record.run_id, schema.TAG_GATE, record.verdict)
        client.log_artifact(record.run_id, str(last), RECORD.rpartition("/")[0])
    return record


def _stage(item: Registration, node: Any, folder: Path, created: str) -> dict[str, str]:
    """Copy the bundle, add what `mlflow.pyfunc` needs to serve it, and digest all of it."""
    if not item.bundle.is_dir():
        raise StorageError(f"{item.bundle}: no such folder; give the folder of the version bundle")
    shutil.copytree(item.bundle, folder, ignore=shutil.ignore_patterns(".*"))
    flavor = {"python_function": {"loader_module": LOADER, "env": {"virtualenv": "python_env.yaml"}}}
    described = {
        "artifact_path": node.name,
        "flavors": flavor,
        "model_id": node.model_id,
        "model_uuid": node.model_id.removeprefix("m-"),
        "run_id": item.tracking_run,
        "utc_time_created": created,
    }
    requirement = f"graceful-ai{_extra(item.spec)}=={graceful.__version__}"
    (folder / "MLmodel").write_text(yaml.safe_dump(described), encoding="utf-8")
    (folder / "requirements.txt").write_text(requirement + "\n", encoding="utf-8")
    environment = {"python": "3.11", "dependencies": ["-r requirements.txt"]}
    (folder / "python_env.yaml").write_text(yaml.safe_dump(environment), encoding="utf-8")
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in paths}


def _extra(spec: Mapping[str, Any]) -> str:
    """Return the extra of graceful whose packages a version's network needs where it is served; empty: none."""
    task = spec.get("task", {})
    kind = (task.get("network") or {}).get("kind")
    if kind == "transformers":
        return "[text]" if (task.get("columns") or task.get("members") or {}).get("text") else "[vision]"
    return "[zoo]" if kind == "timm" else ""


def _record(
    item: Registration, node: Any, parents: Sequence[LineageRecord], digests: dict[str, str], created: str
) -> LineageRecord:
    measured = item.report.measurements.items()
    return LineageRecord(
        model=item.model,
        name=item.name,
        model_id=node.model_id,
        refresh_id=item.run_id,
        run_id=item.tracking_run,
        parents=tuple(Node(model_id=parent.model_id, name=parent.name) for parent in parents),
        constraints=tuple(dict(entry) for entry in item.spec.get("gate", {}).get("constraints", ())),
        edges=schema.edges(item.report, item.verdict),
        verdict="passed" if item.verdict.outcome == "passed" else "held",
        reasons=tuple(finding.reason for finding in item.verdict.findings),
        metrics={name: measurement.value for name, measurement in measured if measurement.value is not None},
        spec_digest=schema.spec_digest(item.spec),
        data=dict(item.report.data),
        training=dict(item.training),
        certificate=None if item.report.certificate is None else dict(item.report.certificate),
        digest=item.digest,
        files=digests,
        manifest=schema.manifest_digest(digests),
        code_version=graceful.__version__,
        created=created,
    )


def _evidence(item: Registration, folder: Path) -> dict[str, str]:
    """Put what the verdict rests on beside the run, and digest it; `lineage.json` is not among it, it comes last."""
    folder.mkdir()
    spec = {key: value for key, value in item.spec.items() if key not in ("home", "registry")}
    texts = {
        "report.json": item.report.to_json(),
        "verdict.json": item.verdict.to_json(),
        "spec.yaml": documents.dump(spec),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    for path in item.attachments:
        shutil.copy(path, folder / path.name)
    if item.flips:
        flips_table.write(folder, item.flips, item.thumbnails)
    return {path.name: sha256_file(path) for path in sorted(folder.iterdir()) if path.is_file()}


def _views(record: LineageRecord, folder: Path, listings: Mapping[str, tuple[str, int]]) -> None:
    """Return the files for people that derive from the record."""
    texts = {
        "manifest.sha256": schema.manifest_text(record.files),
        "lineage.svg": render.picture(record),
        "README.md": card.markdown(record, listings),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


# --- the number in the registry ---------------------------------------------------------------------------------------


def list_version(registry: Registry, record: LineageRecord, listings: Mapping[str, tuple[str, int]]) -> int:
    """List the node under its family once, whatever was lost or repeated; returns its number.

    Args:
        registry: Where.
        record: The version.
        listings: Identity -> model and number of its parents and of every ancestor it was measured against.
    """
    _family(registry, record.model)
    if not registry.listed(record.model, record.model_id):
        with as_global(registry.address):
            registry.client.create_model_version(
                record.model,
                source=f"models:/{record.model_id}",
                run_id=record.run_id,
                model_id=record.model_id,
                tags=version_tags(record, listings),
                description=render.description(record, listings),
                await_creation_for=0,
            )
    first, *repeated = registry.listed(record.model, record.model_id)
    aliased = set(registry.aliases(record.model).values()) if repeated else set()
    for listed in repeated:
        key = (record.model, str(listed.version))  # another writer may be folding the same duplicates
        registry.point(registry.client.set_model_version_tag, *key, schema.TAG_DUPLICATE, str(first.version))
        if int(listed.version) not in aliased:
            registry.point(registry.client.delete_model_version, *key)
    return int(first.version)


def _family(registry: Registry, model: str) -> None:
    from mlflow.exceptions import MlflowException

    if registry.point(registry.client.get_registered_model, model) is None:
        try:
            registry.client.create_registered_model(model, tags={schema.TAG_FAMILY: model})
        except MlflowException as e:  # made by someone else meanwhile, or by a request whose answer was lost
            if e.error_code != "RESOURCE_ALREADY_EXISTS":
                raise


def version_tags(record: LineageRecord, listings: Mapping[str, tuple[str, int]]) -> dict[str, str]:
    """Return the tags of a version, at most five, because MLflow's table shows all of them in every row.

    Query models, and gallery models that have some, have one more.
    """
    parents = [listings[parent.model_id] for parent in record.parents if parent.model_id in listings]
    galleries, queries = (
        [listings[edge.model_id] for edge in record.partners(relation) if edge.model_id in listings]
        for relation in ("gallery", "query")
    )
    tags = {
        schema.TAG_REFRESH: record.refresh_id,
        schema.TAG_GATE: record.verdict,
        schema.TAG_PARENTS: _versions([*parents, *galleries]),
        schema.TAG_DIGEST: record.manifest,
    }
    if galleries:
        tags[schema.TAG_GALLERIES] = _versions(galleries)
    if queries:
        tags[schema.TAG_QUERIES] = _versions(queries)
    if record.worst is not None:
        tags[schema.TAG_NFR_MAX] = f"{100 * record.worst:.2f}"
    return tags


def _versions(keys: Iterable[tuple[str, int]]) -> str:
    """Return versions as a tag names them, so that they can be searched: `/glyphs@2/glyphs@3/`."""
    return "".join(f"/{model}@{number}" for model, number in keys) + "/"
