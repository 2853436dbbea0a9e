"""The MLflow runs of one search: a parent and a child for each trial, found again by the search's id. In the driver."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from graceful.lineage import render, schema
from graceful.lineage.registry import Registry, quoted

TAG_TRIAL = "graceful_trial"
PARENT = "mlflow.parentRunId"
LOGGED = ("error", "excess", "excess_upper", "violation", "nfr", "nfr_upper", "reference_nfr", "retrieval", "seconds")


class SearchLog:
    """Records a search; every call may be repeated and changes nothing.

    Args:
        registry: Where.
        spec: The resolved spec as JSON values.
        run_id: Identity of the search, `model-name`.

    Raises:
        RegistryError: Unreachable or refused.
    """

    def __init__(self, registry: Registry, spec: Mapping[str, Any], *, run_id: str) -> None:
        self._registry, self._run_id = registry, run_id
        with registry.client_for(f"begin search {run_id}") as client:
            self._experiment = registry.experiment(spec["model"])
            parents = self._runs("search")
            if not parents:
                client.create_run(self._experiment, run_name=f"{run_id} search", tags=self._tags("search"))
                parents = self._runs("search")
            self._parent = str(parents[0].info.run_id)
            if parents[0].info.status != "RUNNING":
                client.update_run(self._parent, status="RUNNING")
            trials = ((run.data.tags.get(TAG_TRIAL, ""), run) for run in self._runs("trial"))
            self._children = {int(number): run for number, run in trials if re.fullmatch("[0-9]{1,9}", number)}

    def trial(self, number: int, *, point: Mapping[str, Any], record: Mapping[str, Any], state: str) -> None:
        """Record a trial that ended; those that run, wait or were given up are not recorded.

        Args:
            number: The number of the trial.
            point: Its parameters.
            record: Numbers of what came out; `failed`: why nothing did.
            state: complete or failed, else nothing is done.
        """
        if state not in ("complete", "failed") or number in self._children:
            return
        from mlflow.entities import Metric, Param

        with self._registry.client_for(f"record trial {number}") as client:
            tags = {**self._tags("trial"), TAG_TRIAL: str(number), PARENT: self._parent}
            if record.get("failed"):
                tags["mlflow.note.content"] = render.escape_markdown(str(record["failed"]))
            run = client.create_run(self._experiment, run_name=f"trial {number}", tags=tags)
            at = run.info.start_time
            numbers = {key: record[key] for key in LOGGED if isinstance(record.get(key), int | float)}
            metrics = [Metric(key, float(value), at, 0) for key, value in numbers.items() if math.isfinite(value)]
            client.log_batch(
                run.info.run_id, metrics=metrics, params=[Param(key, str(value)) for key, value in point.items()]
            )
            if "feasible" in record:
                client.set_tag(run.info.run_id, "feasible", str(record["feasible"]).lower())
            client.set_terminated(run.info.run_id, status="FINISHED" if state == "complete" else "FAILED")
            self._children[number] = run

    def end(self, document: Mapping[str, Any], files: Sequence[Path]) -> None:
        """Record the result and its files with the parent."""
        from mlflow.entities import Metric

        with self._registry.client_for(f"record the result of search {self._run_id}") as client:
            at = client.get_run(self._parent).info.start_time
            metrics = [
                Metric("hypervolume", share, at + step, step) for step, share in enumerate(document["hypervolume"])
            ]
            for part in ("promised", "held_back", "test"):
                score = (document["best"] or {}).get(part) or {}
                metrics += [Metric(f"{part}_{key}", score[key], at, 0) for key in ("error", "nfr") if key in score]
            client.log_batch(self._parent, metrics=metrics[:1000])
            client.set_tag(self._parent, "outcome", str(document["outcome"]))
            for file in files:
                client.log_artifact(self._parent, str(file))
            client.set_terminated(self._parent, status="FINISHED")

    def _runs(self, kind: str) -> list[Any]:
        query = f"tags.{schema.TAG_REFRESH} = {quoted(self._run_id)} and tags.{schema.TAG_KIND} = '{kind}'"
        runs: list[Any] = []
        token = None
        while True:
            listed = self._registry.client.search_runs([self._experiment], query, page_token=token)
            runs += listed
            token = listed.token
            if not token:
                return sorted(runs, key=lambda run: (run.info.start_time, run.info.run_id))

    def _tags(self, kind: str) -> dict[str, str]:
        return {
            schema.TAG_REFRESH: self._run_id,
            schema.TAG_KIND: kind,
            "mlflow.source.name": "graceful tune",
        }
