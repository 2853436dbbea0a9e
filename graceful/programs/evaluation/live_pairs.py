"""Measure all query models of a fleet on all of its gallery models. Runs in the driver."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from graceful.chain.ancestor import Link
from graceful.lineage.fleet import Fleet, FleetModel
from graceful.lineage.reference import Reference
from graceful.metrics.inputs import VersionOutputs
from graceful.metrics.query_gallery import ranked, score
from graceful.programs.outputs.model_outputs import Evaluated, run_versions
from graceful.programs.runs import ancestry
from graceful.programs.runs.run import Run
from graceful.tasks.base import Task


def live_pairs(run: Run, task: Task) -> dict[str, Any]:
    """Measure every live query model on every live gallery of the fleet that a run's family belongs to.

    Returns:
        Nothing where there are no query models. Else `live_pairs`: `queries`, `galleries`, labels; `map` and
        `recall_at_1`, [query][gallery], None where the two cannot be compared; `live`, [query][gallery], whether the
        pair is; `alone` and `paragon`, the mAP of each query and gallery model on an index of its own.
    """
    spec = run.spec
    family = spec.model if spec.gallery is None else Reference.parse(spec.gallery.version).model
    fleet = run.store.fleet(family)
    if not fleet.queries or not spec.evaluate.retrieval:
        return {}
    queries, galleries = _opened(run, fleet.queries, "query"), _opened(run, fleet.galleries, "gallery")
    samples, size = Evaluated.of(task, with_retrieval=True), spec.evaluate.batch_size
    versions = {version.name: version for version in (*queries, *galleries) if not version.unrunnable_reason}
    outputs = dict(zip(versions, run_versions(list(versions.values()), samples, batch_size=size), strict=True))

    def cell(query: str, gallery: str, metric: str) -> float | None:
        if query not in outputs or gallery not in outputs or not _same_length(outputs[query], outputs[gallery]):
            return None
        return score(ranked(outputs[query], outputs[gallery]), metric)

    rows, columns = [model.label for model in fleet.queries], [model.label for model in fleet.galleries]
    return {
        "live_pairs": {
            "queries": rows,
            "galleries": columns,
            "live": _live(fleet),
            "alone": [cell(name, name, "map") for name in rows],
            "paragon": [cell(name, name, "map") for name in columns],
            **{
                metric: [[cell(query, gallery, metric) for gallery in columns] for query in rows]
                for metric in ("map", "recall_at_1")
            },
        }
    }


def _opened(run: Run, models: Sequence[FleetModel], role: Any) -> list[Any]:
    links = [
        Link(
            name=model.label,
            model_id=model.model_id,
            version=model.key.version,
            digest=run.store.record(model.model_id).digest,
            role=role,
        )
        for model in models
    ]
    return [ancestor.stored.open() for ancestor in ancestry.fetch(run, links)]


def _live(fleet: Fleet) -> list[list[bool]]:
    return [[(query.key, gallery.key) in fleet.pairs for gallery in fleet.galleries] for query in fleet.queries]


def _same_length(query: VersionOutputs, gallery: VersionOutputs) -> bool:
    return query.queries is not None and gallery.gallery is not None and query.queries.size == gallery.gallery.size
