"""A version in MLflow's own tables and charts: inputs, output, metrics. Derived from the record. Runs in the driver."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from graceful.lineage.registry import Registry
from graceful.lineage.schema import LineageRecord, Node

PAIRED = ("pair_recall_at_1", "pair_map", "pair_share_map", "pair_gain_map", "pair_query_alone_map")
"""Metrics of a query model on a gallery model that charts of MLflow show, in percent."""


def write(
    registry: Registry,
    record: LineageRecord,
    parents: Sequence[LineageRecord | Node],
    listings: Mapping[str, tuple[str, int]],
) -> None:
    """Log inputs, output and metrics of a version; equal rows are stored once, so that a repetition adds nothing.

    Args:
        registry: Where.
        record: The version.
        parents: Its direct predecessors.
        listings: Identity -> model and number of every ancestor that is listed.
    """
    from mlflow.entities import LoggedModelInput, LoggedModelOutput, Metric
    from mlflow.exceptions import MlflowException

    client, run = registry.client, record.run_id
    links = client.get_run(run)
    known = {item.model_id for item in links.inputs.model_inputs}
    inputs = [edge.model_id for edge in record.edges] + [parent.model_id for parent in parents]
    missing = [model_id for model_id in dict.fromkeys(inputs) if model_id not in known]
    client.log_inputs(run, datasets=_datasets(record), models=[LoggedModelInput(item) for item in missing])
    if not links.outputs.model_outputs:
        try:
            client.log_outputs(run, [LoggedModelOutput(record.model_id, 0)])
        except MlflowException:  # refused as a duplicate when the first answer was lost: then it is there
            if not client.get_run(run).outputs.model_outputs:
                raise
    time = int(datetime.fromisoformat(record.created).timestamp() * 1000)
    rows = [(key, value, 0) for key, value in headline(record).items()]
    for edge in record.edges:
        model, number = listings.get(edge.model_id, ("", 0))
        if edge.value is not None and model == record.model:  # numbers of another model would be taken for its own
            rows.append(("nfr_by_predecessor_pct", 100 * edge.value, number))
    metrics = [Metric(key, value, time, step, model_id=record.model_id) for key, value, step in rows]
    client.log_batch(run, metrics=metrics)


def headline(record: LineageRecord) -> dict[str, float]:
    """Return the metrics of a version's page; rates that charts must not round away are in percent."""
    numbers = dict(record.metrics)
    if "error_rate" in numbers:
        numbers["error_rate_pct"] = 100 * numbers["error_rate"]
        numbers["accuracy"] = 1.0 - numbers["error_rate"]
    if record.worst is not None:
        numbers["nfr_max_pct"] = 100 * record.worst
    for edge in record.edges:
        if edge.value is not None:
            numbers[f"nfr_pct/{edge.name}"] = 100 * edge.value
        if edge.bound is not None:
            numbers[f"nfr_budget_pct/{edge.name}"] = 100 * edge.bound
        for name in PAIRED if edge.relation != "ancestor" else ():
            if name in edge.metrics:
                numbers[f"{name}_pct/{edge.name}"] = 100 * edge.metrics[name]
    return numbers


def _datasets(record: LineageRecord) -> list[Any]:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    return [
        DatasetInput(
            Dataset(name=f"{record.model}-{split}", digest=digest[:32], source_type="graceful", source="{}"),
            [InputTag("mlflow.data.context", "gate")],
        )
        for split, digest in sorted(record.data.items())
    ]
