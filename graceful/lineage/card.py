"""The model card of a version: README.md in the run's `lineage/`, written from the record. Pure; any process.

Front matter as model hubs read it, then tables and links. No images: MLflow shows none in a Markdown artifact.
"""

from __future__ import annotations

from collections.abc import Mapping

import yaml

from graceful import catalogue
from graceful.lineage.render import edge_rows, escape_markdown, percent, summary
from graceful.lineage.schema import LineageRecord


def markdown(record: LineageRecord, listings: Mapping[str, tuple[str, int]]) -> str:
    """Render the card.

    Args:
        record: The version.
        listings: Identity -> model and number of every ancestor that is listed, for links.
    """
    parts = [
        _front_matter(record),
        f"# {escape_markdown(record.model)} {escape_markdown(record.name)}\n\n{summary(record)}",
        _parents(record, listings),
        "## Verdict\n\n" + "\n".join(f"- {escape_markdown(reason)}" for reason in record.reasons or ("no findings",)),
        _table("Measurements", {name: _measured(name, value) for name, value in sorted(record.metrics.items())}),
        _table("Certificate", {name: str(value) for name, value in (record.certificate or {}).items()}),
        _table(
            "Data, SHA-256", {**record.data, **{f"training {key}": value for key, value in record.training.items()}}
        ),
        _table(
            "Identity",
            {
                "node": record.model_id,
                "run": record.run_id,
                "spec": record.spec_digest,
                "bundle": record.digest,
                "manifest": record.manifest,
                "graceful": record.code_version,
                "created": record.created,
            },
        ),
        _table("Files, SHA-256", record.files),
        "## Use\n\n```python\nimport mlflow\n\n"
        f'model = mlflow.pyfunc.load_model("models:/{record.model_id}")\nmodel.predict(items)\n```',
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(record: LineageRecord) -> str:
    facts: dict[str, object] = {
        "library_name": "graceful",
        "model_name": f"{record.model} {record.name}",
        "tags": ["graceful", record.verdict],
    }
    if record.parents:
        facts["base_model"] = [parent.name for parent in record.parents]
        facts["base_model_relation"] = "finetune" if len(record.parents) == 1 else "merge"
    return "---\n" + yaml.safe_dump(facts, sort_keys=False) + "---"


def _parents(record: LineageRecord, listings: Mapping[str, tuple[str, int]]) -> str:
    if not record.edges:
        return "## Predecessors\n\nnone: the first version"
    rows = edge_rows(record, listings)
    worst = "" if record.worst is None else f"\n\nWorst negative flip rate: {percent(record.worst)}"
    return "\n".join(["## Predecessors\n", *rows]) + worst


def _measured(name: str, value: float) -> str:
    """Return a value with its unit; without one and with more digits where the metric's package is not installed
    here."""
    unit = catalogue.unit_of(name)
    return catalogue.shown(value, unit) if unit else f"{value:.6g}"


def _table(title: str, rows: Mapping[str, str]) -> str:
    if not rows:
        return ""
    lines = [f"| {escape_markdown(key)} | {escape_markdown(value)} |" for key, value in rows.items()]
    return "\n".join([f"## {title}\n", "| | |", "|---|---|", *lines])
