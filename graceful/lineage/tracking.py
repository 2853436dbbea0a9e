"""The MLflow run of one refresh: found again by the refresh's id, with the spec and the history. Runs in the driver."""

from __future__ import annotations

import json
import math
import os
import re
import socket
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from graceful import redact
from graceful.errors import SpecError
from graceful.lineage import render, schema
from graceful.lineage.registry import Registry, quoted

BATCH = 1000
"""Metrics in one request, mlflow's limit."""
MAX_PARAMS = 100


def begin(registry: Registry, spec: Mapping[str, Any], run_id: str) -> str:
    """Do what `Store.begin` promises."""
    client, experiment = registry.client, registry.experiment(spec["model"])
    runs = _runs(registry, experiment, run_id)
    if not runs:
        client.create_run(experiment, run_name=run_id, tags=_tags(spec, run_id))
        runs = _runs(registry, experiment, run_id)
    first, *repeated = runs
    for run in repeated:
        client.delete_run(run.info.run_id)
    if first.data.tags.get(schema.TAG_SPEC) != schema.spec_digest(spec):
        if first.info.status == "FAILED":  # nothing came of it: a corrected spec may take the name
            client.delete_run(first.info.run_id)
            return begin(registry, spec, run_id)
        raise SpecError(f"run {run_id}: was begun with another spec; restore that one or give the version another name")
    if first.info.status == "FAILED":
        client.update_run(first.info.run_id, status="RUNNING")
    if first.data.tags.get(schema.TAG_OWNER) != owner():
        client.set_tag(first.info.run_id, schema.TAG_OWNER, owner())
    params = [param for param in _params(spec) if param.key not in first.data.params]
    client.log_batch(first.info.run_id, params=params)
    return str(first.info.run_id)


def owner(process: int | None = None) -> str:
    """Return who works on a run: machine, process, and when that began, since numbers of processes come again.

    Args:
        process: Another one than this; one that is gone has no beginning.
    """
    number = os.getpid() if process is None else process
    try:
        stat = Path(f"/proc/{number}/stat").read_text(encoding="utf-8", errors="replace")
        began = stat.rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        began = "" if process is None else "gone"
    return f"{socket.gethostname()}/{number}.{began}"


def log_history(registry: Registry, run: str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Do what `Store.log_history` promises. Times derive from the step, so that equal rows are stored once."""
    from mlflow.entities import Metric

    start = registry.client.get_run(run).info.start_time
    metrics = [
        Metric(_key(key), float(value), start + int(row["step"]), int(row["step"]))
        for row in rows
        for key, value in row.items()
        if key != "step" and isinstance(value, int | float) and math.isfinite(value)
    ]
    for index in range(0, len(metrics), BATCH):
        registry.client.log_batch(run, metrics=metrics[index : index + BATCH])


def _runs(registry: Registry, experiment: str, run_id: str) -> list[Any]:
    """Return the runs of one refresh, oldest first; more than one only after a repeated request."""
    query = f"tags.{schema.TAG_REFRESH} = {quoted(run_id)} and tags.{schema.TAG_KIND} = 'refresh'"
    runs = registry.client.search_runs([experiment], query)
    return sorted(runs, key=lambda run: (run.info.start_time, run.info.run_id))


def _tags(spec: Mapping[str, Any], run_id: str) -> dict[str, str]:
    """Return the tags of a refresh's run."""
    return {
        schema.TAG_REFRESH: run_id,
        schema.TAG_KIND: "refresh",
        schema.TAG_FAMILY: str(spec["model"]),
        schema.TAG_SPEC: schema.spec_digest(spec),
        schema.TAG_OWNER: owner(),
        "mlflow.source.name": "graceful refresh",
        "mlflow.note.content": render.escape_markdown(str(spec.get("description") or "")),
    }


def _params(spec: Mapping[str, Any]) -> list[Any]:
    """Return the spec as run parameters, without its addresses, which may contain a password."""
    from mlflow.entities import Param

    settings = {key: value for key, value in spec.items() if key not in ("home", "registry", "description")}
    flat = list(_flat("", settings))[:MAX_PARAMS]
    return [Param(_key(key), redact.shown(value, key)[:500]) for key, value in flat]


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(f"{prefix}.{key}" if prefix else str(key), inner)
    else:
        yield prefix, value if isinstance(value, str) else json.dumps(value)


def _key(text: str) -> str:
    """Return a name that mlflow accepts for a metric or a parameter."""
    return re.sub(r"[^\w.\-/: ]", "_", text)[:250]
